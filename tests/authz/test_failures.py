"""Guessing is slowed: failures count by address, here at once and over all workers soon, and a block has its end."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz import failures
from authz.failures import Count, CountOutage, FailureGuard, source_of
from tests.sidecar.embedded.processes import until

LIMIT, WINDOW = 3, 60
SOURCE = "192.0.2.7"


@dataclass(slots=True)
class Seconds:
    """A monotonic clock, turned by hand."""

    at: float = 1000.0

    def __call__(self) -> float:
        return self.at


@dataclass(slots=True)
class SharedCounts:
    """The counts of all workers, in memory; `out` makes it fail."""

    clock: Callable[[], float]
    windows: dict[str, tuple[int, float]] = field(default_factory=dict)
    out: bool = False
    asked: int = 0

    async def add(self, source: str) -> Count:
        self.asked += 1
        if self.out:
            raise CountOutage("the counts in memory are out")
        count, end = self.windows.get(source, (0, 0.0))
        if end <= self.clock():
            count, end = 0, self.clock() + WINDOW
        self.windows[source] = count + 1, end
        return Count(failures=count + 1, reset_ms=round((end - self.clock()) * 1000))


@dataclass(slots=True)
class SlowCounts:
    """Answers when the test says so, with what the test says."""

    questions: list["asyncio.Future[Count]"] = field(default_factory=list)

    async def add(self, source: str) -> Count:
        del source
        self.questions.append(asyncio.get_running_loop().create_future())
        return await self.questions[-1]


@pytest.fixture
def clock() -> Seconds:
    return Seconds()


@pytest.fixture
def shared(clock: Seconds) -> SharedCounts:
    return SharedCounts(clock)


def _guard(counts: SharedCounts | SlowCounts, clock: Seconds) -> FailureGuard:
    return FailureGuard(counts, limit=LIMIT, window_seconds=WINDOW, now=clock)


@pytest.fixture
def guard(shared: SharedCounts, clock: Seconds) -> FailureGuard:
    return _guard(shared, clock)


async def _fail(guard: FailureGuard, times: int = 1, source: str = SOURCE) -> None:
    for _ in range(times):
        guard.note(source)
    await guard.drain()


@pytest.mark.parametrize("out", [False, True])
async def test_a_source_is_blocked_from_its_limit_until_its_window_ends(
    guard: FailureGuard, shared: SharedCounts, clock: Seconds, *, out: bool
) -> None:
    shared.out = out
    assert guard.blocked_ms(SOURCE) is None
    await _fail(guard)
    clock.at += 10
    await _fail(guard, LIMIT - 2)
    assert guard.blocked_ms(SOURCE) is None
    await _fail(guard)
    assert guard.blocked_ms(SOURCE) == 50_000
    clock.at += 49.9999
    assert guard.blocked_ms(SOURCE) == 1
    clock.at += 0.0001
    assert guard.blocked_ms(SOURCE) is None
    await _fail(guard)
    assert guard.blocked_ms(SOURCE) is None


async def test_sources_do_not_count_for_each_other(guard: FailureGuard) -> None:
    await _fail(guard, LIMIT)
    await _fail(guard, LIMIT - 1, source="192.0.2.8")
    assert guard.blocked_ms("192.0.2.8") is None
    assert guard.blocked_ms("192.0.2.9") is None


async def test_more_failures_do_not_prolong_the_block(guard: FailureGuard, clock: Seconds) -> None:
    await _fail(guard, LIMIT)
    clock.at += 30
    await _fail(guard, 100)
    assert guard.blocked_ms(SOURCE) == 30_000


async def test_it_counts_here_before_anybody_has_answered(clock: Seconds) -> None:
    slow = SlowCounts()
    guard = _guard(slow, clock)
    for _ in range(LIMIT):
        guard.note(SOURCE)
    assert not slow.questions
    assert guard.blocked_ms(SOURCE) == WINDOW * 1000
    await until(lambda: len(slow.questions) == LIMIT)
    for question in slow.questions:
        question.set_exception(CountOutage("out"))
    await guard.drain()
    assert guard.blocked_ms(SOURCE) == WINDOW * 1000


async def test_workers_share_their_counts(shared: SharedCounts, clock: Seconds) -> None:
    one, other = _guard(shared, clock), _guard(shared, clock)
    await _fail(one, LIMIT - 1)
    clock.at += 20
    await _fail(other)
    assert other.blocked_ms(SOURCE) == 40_000
    # The first learns of it by its next failure.
    await _fail(one)
    assert one.blocked_ms(SOURCE) == 40_000


async def test_an_overtaken_answer_changes_nothing(clock: Seconds) -> None:
    slow = SlowCounts()
    guard = _guard(slow, clock)
    guard.note(SOURCE)
    guard.note(SOURCE)
    await until(lambda: len(slow.questions) == 2)
    slow.questions[1].set_result(Count(failures=LIMIT, reset_ms=5000))
    await until(lambda: guard.blocked_ms(SOURCE) is not None)
    slow.questions[0].set_result(Count(failures=LIMIT - 1, reset_ms=9000))
    await guard.drain()
    assert guard.blocked_ms(SOURCE) == 5000


async def test_after_an_outage_the_shared_count_is_heard_again(
    guard: FailureGuard, shared: SharedCounts, clock: Seconds
) -> None:
    shared.out = True
    await _fail(guard)
    shared.out = False
    await _fail(_guard(shared, clock), LIMIT - 1)
    assert guard.blocked_ms(SOURCE) is None
    await _fail(guard)
    assert guard.blocked_ms(SOURCE) == WINDOW * 1000


async def test_no_more_counts_are_under_way_than_allowed(clock: Seconds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "_MAX_TASKS", 5)
    slow = SlowCounts()
    guard = _guard(slow, clock)
    for number in range(50):
        guard.note(f"source {number}")
        guard.note(SOURCE)
    await until(lambda: len(slow.questions) == 5)
    assert guard.blocked_ms(SOURCE) is not None
    for question in slow.questions:
        question.set_exception(CountOutage("out"))
    await guard.drain()
    assert len(slow.questions) == 5


async def test_no_more_sources_are_remembered_than_allowed(
    guard: FailureGuard, clock: Seconds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "_MAX_SOURCES", 10)
    await _fail(guard, LIMIT)
    for number in range(30):
        guard.note(f"source {number}")
        assert len(guard._windows) <= 10
    await guard.drain()
    # Pushed out, it is blocked again by its next failure, because the shared count knows it.
    assert guard.blocked_ms(SOURCE) is None
    await _fail(guard)
    assert guard.blocked_ms(SOURCE) == WINDOW * 1000
    clock.at += WINDOW
    await _fail(guard, source="another")
    assert len(guard._windows) == 1, "what has ended is forgotten"


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::FFFF:C000:0207", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:0DB8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", "''"),
        ("@", "'@'"),
        ("192.0.2.007", "'192.0.2.007'"),
    ],
)
def test_an_address_is_counted_under_its_network(address: str, source: str) -> None:
    assert source_of(address) == source


@given(st.text(st.characters()) | st.ip_addresses().map(str))
def test_any_text_has_a_source_that_is_short_and_can_be_sent(address: str) -> None:
    source = source_of(address)
    assert source.isascii()
    assert len(source) <= 1000


@given(st.integers(1, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_no_host_escapes_within_its_network(network: int, host: int, other: int) -> None:
    one, another = (IPv6Address(network << 64 | part) for part in (host, other))
    assert source_of(str(one)) == source_of(another.exploded)
