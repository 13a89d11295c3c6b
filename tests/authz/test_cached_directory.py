"""The copy of the directory: bounded, short-lived, filled once at a time, and never older than a change it heard of."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from authz.cached_directory import CachedDirectory, CacheLimits
from authz.directory import DirectoryOutage
from authz.principal import Handle, Principal, PrincipalKind
from tests.sidecar.embedded.processes import until
from tests.support.memory_directory import MemoryDirectory
from tests.support.values import principal, tenant

K = Handle(PrincipalKind.API_KEY, "k")
U = Handle(PrincipalKind.API_KEY, "u")
LIMITS = CacheLimits(ttl=4.0, refresh=2.0, stale=300.0, capacity=3, unknown_capacity=2)


def version(key: int = 1, of_tenant: int = 1, name: str = "k") -> Principal:
    return principal(id=f"key_{name}", versions=((f"api_keys:{name}", key), ("tenants:ten_a", of_tenant)))


FIRST, SECOND = version(1), version(2)


@dataclass(slots=True)
class Seconds:
    """A monotonic clock, turned by hand."""

    at: float = 1000.0

    def __call__(self) -> float:
        return self.at


@dataclass(slots=True)
class SlowDirectory:
    """Answers when the test says so, with what the test says."""

    questions: list["asyncio.Future[Principal | None]"] = field(default_factory=list)

    async def find(self, handle: Handle) -> Principal | None:
        del handle
        self.questions.append(asyncio.get_running_loop().create_future())
        return await self.questions[-1]


@pytest.fixture
def clock() -> Seconds:
    return Seconds()


@pytest.fixture
def directory() -> MemoryDirectory:
    return MemoryDirectory({K: FIRST})


@pytest.fixture
def cached(directory: MemoryDirectory, clock: Seconds) -> CachedDirectory:
    return CachedDirectory(directory, now=clock, limits=LIMITS)


async def _asked(
    cached: CachedDirectory, slow: SlowDirectory, *, callers: int = 1
) -> list["asyncio.Task[Principal | None]"]:
    """Callers whose question has reached the directory."""
    before = len(slow.questions)
    tasks = [asyncio.create_task(cached.find(K)) for _ in range(callers)]
    await until(lambda: len(slow.questions) > before)
    return tasks


async def _landed(condition: Callable[[], bool]) -> None:
    await until(condition)


@pytest.mark.parametrize(("age", "asked"), [(0.0, 1), (2.0, 1), (4.001, 2)])
async def test_a_copy_is_used_until_its_ttl(
    cached: CachedDirectory, directory: MemoryDirectory, clock: Seconds, age: float, asked: int
) -> None:
    assert cached.held(K) == (False, None)
    assert await cached.find(K) is FIRST
    assert cached.held(K) == (True, FIRST)
    clock.at += age
    assert await cached.find(K) is FIRST
    assert directory.asked == asked


async def test_a_copy_that_grows_old_is_read_anew_while_it_is_used(clock: Seconds) -> None:
    slow = SlowDirectory()
    cached = CachedDirectory(slow, now=clock, limits=LIMITS)
    [caller] = await _asked(cached, slow)
    slow.questions[0].set_result(FIRST)
    await caller
    clock.at += 3.0
    assert [cached.held(K) for _ in range(5)] == [(True, FIRST)] * 5
    await until(lambda: len(slow.questions) == 2)
    slow.questions[1].set_result(SECOND)
    await _landed(lambda: cached.held(K) == (True, SECOND))
    assert len(slow.questions) == 2


async def test_a_copy_that_has_not_changed_stays_the_same_object(
    cached: CachedDirectory, directory: MemoryDirectory, clock: Seconds
) -> None:
    await cached.find(K)
    directory.records[K] = version(1)
    clock.at += 5.0
    assert await cached.find(K) is FIRST


async def test_an_unknown_handle_is_remembered_as_unknown(
    cached: CachedDirectory, directory: MemoryDirectory, clock: Seconds
) -> None:
    assert await cached.find(U) is None
    assert await cached.find(U) is None
    assert cached.held(U) == (True, None)
    assert directory.asked == 1
    directory.records[U] = version(name="u")
    clock.at += LIMITS.ttl + 1
    assert await cached.find(U) is not None


async def test_guesses_do_not_push_out_who_is_known(cached: CachedDirectory) -> None:
    await cached.find(K)
    for at in range(10):
        await cached.find(Handle(PrincipalKind.API_KEY, f"guess{at}"))
    assert cached.held(K) == (True, FIRST)
    assert cached.held(Handle(PrincipalKind.API_KEY, "guess0")) == (False, None)
    assert cached.held(Handle(PrincipalKind.API_KEY, "guess9")) == (True, None)


async def test_handles_of_another_kind_are_others(cached: CachedDirectory) -> None:
    await cached.find(K)
    assert await cached.find(Handle(PrincipalKind.WORKLOAD, "k")) is None


async def test_callers_of_the_same_handle_share_one_flight(clock: Seconds) -> None:
    slow = SlowDirectory()
    cached = CachedDirectory(slow, now=clock)
    callers = await _asked(cached, slow, callers=50)
    slow.questions[0].set_result(FIRST)
    assert await asyncio.gather(*callers) == [FIRST] * 50
    assert len(slow.questions) == 1


async def test_different_handles_do_not_wait_for_each_other(clock: Seconds) -> None:
    slow = SlowDirectory()
    cached = CachedDirectory(slow, now=clock)
    callers = [asyncio.create_task(cached.find(handle)) for handle in (K, U)]
    await until(lambda: len(slow.questions) == 2)
    slow.questions[1].set_result(None)
    assert await callers[1] is None
    slow.questions[0].set_result(FIRST)
    assert await callers[0] is FIRST


async def test_a_caller_that_leaves_does_not_end_the_flight_of_the_others(clock: Seconds) -> None:
    slow = SlowDirectory()
    cached = CachedDirectory(slow, now=clock)
    leaving, staying = await _asked(cached, slow, callers=2)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    slow.questions[0].set_result(FIRST)
    assert await staying is FIRST
    assert cached.held(K) == (True, FIRST)


async def test_a_failed_flight_whose_callers_have_all_left_is_forgotten(clock: Seconds) -> None:
    slow = SlowDirectory()
    cached = CachedDirectory(slow, now=clock)
    [caller] = await _asked(cached, slow)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    slow.questions[0].set_exception(ValueError("a defect"))
    for _ in range(5):  # it lands
        await asyncio.sleep(0)
    [again] = await _asked(cached, slow)
    slow.questions[1].set_result(FIRST)
    assert await again is FIRST


@pytest.mark.parametrize("change", ["api_keys:k:2", "tenants:ten_a:9", "*", None, "rubbish", "api_keys:k:x"])
async def test_a_change_ends_the_use_of_the_copy(
    cached: CachedDirectory, directory: MemoryDirectory, clock: Seconds, change: str | None
) -> None:
    await cached.find(K)
    directory.records[K] = version(2, 9)
    cached.announce(change)
    assert cached.held(K) == (False, None)
    clock.at += 0.001
    assert await cached.find(K) is directory.records[K]
    assert cached.held(K)[0]


@pytest.mark.parametrize("change", ["api_keys:other:2", "tenants:ten_b:9", "api_keys:k:1", "tenants:ten_a:1"])
async def test_a_change_of_something_else_or_one_that_is_known_leaves_the_copy(
    cached: CachedDirectory, change: str
) -> None:
    await cached.find(K)
    cached.announce(change)
    assert cached.held(K) == (True, FIRST)


async def test_any_change_may_have_made_who_was_unknown(
    cached: CachedDirectory, directory: MemoryDirectory, clock: Seconds
) -> None:
    assert await cached.find(U) is None
    directory.records[U] = version(7, name="u")
    cached.announce("api_keys:u:7")
    clock.at += 0.001
    assert await cached.find(U) is directory.records[U]


async def test_an_unknown_that_was_asked_for_before_the_change_is_not_remembered(clock: Seconds) -> None:
    slow = SlowDirectory()
    cached = CachedDirectory(slow, now=clock)
    [caller] = await _asked(cached, slow)
    clock.at += 1
    cached.announce("api_keys:k:7")
    slow.questions[0].set_result(None)
    assert await caller is None
    assert cached.held(K) == (False, None)


async def test_an_answer_from_before_the_change_is_asked_for_again(clock: Seconds) -> None:
    slow = SlowDirectory()
    cached = CachedDirectory(slow, now=clock)
    [caller] = await _asked(cached, slow)
    cached.announce("api_keys:k:2")
    slow.questions[0].set_result(FIRST)
    await until(lambda: len(slow.questions) == 2)
    slow.questions[1].set_result(SECOND)
    assert await caller is SECOND
    assert cached.held(K) == (True, SECOND)


async def test_a_directory_that_lags_behind_what_was_announced_lets_nobody_in(clock: Seconds) -> None:
    slow = SlowDirectory()
    cached = CachedDirectory(slow, now=clock)
    [caller] = await _asked(cached, slow)
    cached.announce("tenants:ten_a:5")
    for at in range(2):
        await until(lambda at=at: len(slow.questions) == at + 1)  # type: ignore[misc]
        slow.questions[at].set_result(FIRST)
    with pytest.raises(DirectoryOutage):
        await caller
    assert cached.held(K) == (False, None)


async def test_a_slower_older_answer_never_overwrites_a_newer_one(clock: Seconds) -> None:
    slow = SlowDirectory()
    cached = CachedDirectory(slow, now=clock)
    [old] = await _asked(cached, slow)
    clock.at += 1
    cached.announce(None)  # forgets the flight
    clock.at += 1
    [new] = await _asked(cached, slow)
    slow.questions[1].set_result(SECOND)
    await new
    slow.questions[0].set_result(FIRST)
    assert await old is SECOND
    assert cached.held(K) == (True, SECOND)


async def test_an_older_version_never_overwrites_a_newer_one_whenever_it_was_read(
    cached: CachedDirectory, directory: MemoryDirectory, clock: Seconds
) -> None:
    directory.records[K] = SECOND
    await cached.find(K)
    directory.records[K] = FIRST  # a replica that lags
    clock.at += LIMITS.ttl + 1
    assert await cached.find(K) is SECOND


@pytest.mark.parametrize(("age", "known"), [(5.0, True), (300.0, True), (300.001, False)])
async def test_who_is_known_goes_on_for_a_while_when_the_directory_is_out(
    cached: CachedDirectory, directory: MemoryDirectory, clock: Seconds, age: float, *, known: bool
) -> None:
    await cached.find(K)
    directory.out = True
    clock.at += age
    if known:
        assert await cached.find(K) is FIRST
    else:
        with pytest.raises(DirectoryOutage):
            await cached.find(K)


async def test_an_outage_is_not_waited_for_by_every_request(
    cached: CachedDirectory, directory: MemoryDirectory, clock: Seconds
) -> None:
    await cached.find(K)
    directory.out = True
    clock.at += 10
    for _ in range(20):
        await cached.find(K)
    assert directory.asked == 2
    directory.out = False
    directory.records[K] = SECOND
    clock.at += 1.001
    assert await cached.find(K) is SECOND


async def test_who_is_known_does_not_wait_long_for_a_directory_that_hangs(clock: Seconds) -> None:
    slow = SlowDirectory()
    cached = CachedDirectory(slow, now=clock, limits=replace(LIMITS, patience=0.01))
    [caller] = await _asked(cached, slow)
    slow.questions[0].set_result(FIRST)
    await caller
    clock.at += LIMITS.ttl + 1
    assert await cached.find(K) is FIRST
    assert len(slow.questions) == 2
    assert not slow.questions[1].done()
    slow.questions[1].set_result(SECOND)
    await until(lambda: cached.held(K) == (True, SECOND))


async def test_who_has_changed_does_not_go_on_in_an_outage(cached: CachedDirectory, directory: MemoryDirectory) -> None:
    await cached.find(K)
    cached.announce("api_keys:k:2")  # a revocation, perhaps
    directory.out = True
    for _ in range(2):
        with pytest.raises(DirectoryOutage):
            await cached.find(K)


async def test_nobody_new_is_let_in_during_an_outage(
    cached: CachedDirectory, directory: MemoryDirectory, clock: Seconds
) -> None:
    assert await cached.find(U) is None
    directory.out = True
    clock.at += LIMITS.ttl + 1
    for name in ("u", "never asked"):
        with pytest.raises(DirectoryOutage):
            await cached.find(Handle(PrincipalKind.API_KEY, name))


async def test_the_copy_is_bounded_and_drops_the_oldest(cached: CachedDirectory, directory: MemoryDirectory) -> None:
    handles = [Handle(PrincipalKind.API_KEY, name) for name in "abcd"]
    for handle in handles:
        directory.records[handle] = version(name=handle.name)
        await cached.find(handle)
    assert [cached.held(handle)[0] for handle in handles] == [False, True, True, True]
    cached.announce("tenants:ten_a:2")
    assert not any(cached.held(handle)[0] for handle in handles)


async def test_a_row_that_is_gone_is_forgotten(
    cached: CachedDirectory, directory: MemoryDirectory, clock: Seconds
) -> None:
    await cached.find(K)
    del directory.records[K]
    cached.announce("api_keys:k:2")
    clock.at += 0.001
    assert await cached.find(K) is None
    directory.out = True
    clock.at += LIMITS.ttl + 1
    with pytest.raises(DirectoryOutage):
        await cached.find(K)


def with_role(version_of_role: int) -> Principal:
    return principal(id="key_k", versions=(("api_keys:k", 1), ("roles:x", version_of_role)))


@pytest.mark.parametrize("announced", [True, False])
async def test_a_deleted_role_gives_nothing_any_more(
    cached: CachedDirectory, directory: MemoryDirectory, clock: Seconds, *, announced: bool
) -> None:
    directory.records[K] = with_role(5)
    await cached.find(K)
    directory.records[K] = without = with_role(0)
    if announced:
        cached.announce("roles:x:9")
    clock.at += LIMITS.ttl + 1
    assert await cached.find(K) is without
    assert cached.held(K) == (True, without)


async def test_a_role_that_was_not_there_yet_is_asked_for_again(clock: Seconds) -> None:
    slow = SlowDirectory()
    cached = CachedDirectory(slow, now=clock)
    [caller] = await _asked(cached, slow)
    cached.announce("roles:x:9")
    slow.questions[0].set_result(with_role(0))
    await until(lambda: len(slow.questions) == 2)
    made = with_role(9)
    slow.questions[1].set_result(made)
    assert await caller is made


async def test_a_tenant_is_told_apart_from_one_of_the_same_beginning(
    cached: CachedDirectory, directory: MemoryDirectory
) -> None:
    directory.records[U] = replace(
        version(name="u"), tenant=tenant(id="ten_ab"), versions=(("api_keys:u", 1), ("tenants:ten_ab", 1))
    )
    await cached.find(K)
    await cached.find(U)
    cached.announce("tenants:ten_a:2")
    assert (cached.held(K)[0], cached.held(U)[0]) == (False, True)
