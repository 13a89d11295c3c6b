"""The copy of the directory: bounded, short-lived, filled once at a time, and never older than a change it heard of."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from authz.directory import CachedDirectory, DirectoryOutage, KeyRecord
from tests.sidecar.embedded.processes import until
from tests.support.memory_directory import MemoryDirectory
from tests.support.values import key_record

RECORD = key_record(id="k")
REVOKED = replace(RECORD, tenant_suspended=True)
TTL, STALE = 5.0, 300.0


@dataclass(slots=True)
class Seconds:
    """A monotonic clock, turned by hand."""

    at: float = 1000.0

    def __call__(self) -> float:
        return self.at


@dataclass(slots=True)
class SlowDirectory:
    """Answers when the test says so, with what the test says."""

    questions: list["asyncio.Future[KeyRecord | None]"] = field(default_factory=list)

    async def find_key(self, key_id: str) -> KeyRecord | None:
        del key_id
        self.questions.append(asyncio.get_running_loop().create_future())
        return await self.questions[-1]


@pytest.fixture
def clock() -> Seconds:
    return Seconds()


@pytest.fixture
def directory() -> MemoryDirectory:
    return MemoryDirectory({"k": RECORD})


@pytest.fixture
def cached(directory: MemoryDirectory, clock: Seconds) -> CachedDirectory:
    return CachedDirectory(directory, now=clock, ttl_seconds=TTL, stale_seconds=STALE, capacity=3)


async def _asked(
    cached: CachedDirectory, slow: SlowDirectory, *, callers: int = 1
) -> list["asyncio.Task[KeyRecord | None]"]:
    """Callers whose question has reached the directory."""
    before = len(slow.questions)
    tasks = [asyncio.create_task(cached.find_key("k")) for _ in range(callers)]
    await until(lambda: len(slow.questions) > before)
    return tasks


@pytest.mark.parametrize(("age", "asked"), [(0.0, 1), (TTL, 1), (TTL + 0.001, 2)])
async def test_a_copy_is_fresh_until_its_ttl(
    cached: CachedDirectory, directory: MemoryDirectory, clock: Seconds, age: float, asked: int
) -> None:
    assert cached.fresh("k") == (False, None)
    assert await cached.find_key("k") == RECORD
    assert cached.fresh("k") == (True, RECORD)
    clock.at += age
    assert await cached.find_key("k") == RECORD
    assert directory.asked == asked


async def test_an_unknown_key_is_remembered_as_unknown(
    cached: CachedDirectory, directory: MemoryDirectory, clock: Seconds
) -> None:
    assert await cached.find_key("u") is None
    assert await cached.find_key("u") is None
    assert cached.fresh("u") == (True, None)
    assert directory.asked == 1
    directory.add(replace(RECORD, id="u"))
    clock.at += TTL + 1
    assert await cached.find_key("u") is not None


async def test_callers_of_the_same_key_share_one_flight(clock: Seconds) -> None:
    slow = SlowDirectory()
    cached = CachedDirectory(slow, now=clock)
    callers = await _asked(cached, slow, callers=50)
    slow.questions[0].set_result(RECORD)
    assert await asyncio.gather(*callers) == [RECORD] * 50
    assert len(slow.questions) == 1


async def test_different_keys_do_not_wait_for_each_other(clock: Seconds) -> None:
    slow = SlowDirectory()
    cached = CachedDirectory(slow, now=clock)
    callers = [asyncio.create_task(cached.find_key(key_id)) for key_id in ("a", "b")]
    await until(lambda: len(slow.questions) == 2)
    slow.questions[1].set_result(None)
    assert await callers[1] is None
    slow.questions[0].set_result(RECORD)
    assert await callers[0] == RECORD


async def test_a_caller_that_leaves_does_not_end_the_flight_of_the_others(clock: Seconds) -> None:
    slow = SlowDirectory()
    cached = CachedDirectory(slow, now=clock)
    leaving, staying = await _asked(cached, slow, callers=2)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    slow.questions[0].set_result(RECORD)
    assert await staying == RECORD
    assert cached.fresh("k") == (True, RECORD)


@pytest.mark.parametrize("failure", [DirectoryOutage("out"), ValueError("a defect")])
async def test_a_failed_flight_whose_callers_have_all_left_is_forgotten(clock: Seconds, failure: Exception) -> None:
    slow = SlowDirectory()
    cached = CachedDirectory(slow, now=clock)
    [caller] = await _asked(cached, slow)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    slow.questions[0].set_exception(failure)
    [again] = await _asked_until(cached, slow, lambda: len(slow.questions) == 2)
    slow.questions[1].set_result(RECORD)
    assert await again == RECORD


async def _asked_until(
    cached: CachedDirectory, slow: SlowDirectory, condition: Callable[[], bool]
) -> list["asyncio.Task[KeyRecord | None]"]:
    for _ in range(5):  # the failed flight lands first
        await asyncio.sleep(0)
    tasks = await _asked(cached, slow)
    assert condition()
    return tasks


async def test_a_failure_is_told_to_everyone_who_waits_and_not_remembered(clock: Seconds) -> None:
    slow = SlowDirectory()
    cached = CachedDirectory(slow, now=clock)
    callers = await _asked(cached, slow, callers=3)
    slow.questions[0].set_exception(DirectoryOutage("out"))
    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(answer) for answer in answers] == [DirectoryOutage] * 3
    [again] = await _asked(cached, slow)
    slow.questions[1].set_result(RECORD)
    assert await again == RECORD


async def test_a_change_drops_fresh_copies(cached: CachedDirectory, directory: MemoryDirectory, clock: Seconds) -> None:
    await cached.find_key("k")
    await cached.find_key("unknown")
    directory.add(REVOKED)
    directory.add(replace(RECORD, id="unknown"))
    cached.announce_change()
    assert cached.fresh("k") == cached.fresh("unknown") == (False, None)
    clock.at += 0.001
    assert await cached.find_key("k") == REVOKED
    assert await cached.find_key("unknown") is not None
    assert cached.fresh("k") == (True, REVOKED)


async def test_a_change_makes_an_answer_on_its_way_old(clock: Seconds) -> None:
    slow = SlowDirectory()
    cached = CachedDirectory(slow, now=clock)
    [before] = await _asked(cached, slow)
    clock.at += 1
    cached.announce_change()
    clock.at += 1
    [after] = await _asked(cached, slow)
    assert len(slow.questions) == 2, "who asks after the change does not join the flight from before it"
    slow.questions[0].set_result(RECORD)
    await before
    assert cached.fresh("k") == (False, None)
    slow.questions[1].set_result(REVOKED)
    assert await after == REVOKED
    assert cached.fresh("k") == (True, REVOKED)


async def test_a_slower_older_answer_never_overwrites_a_newer_one(clock: Seconds) -> None:
    slow = SlowDirectory()
    cached = CachedDirectory(slow, now=clock)
    [old] = await _asked(cached, slow)
    clock.at += 1
    cached.announce_change()
    clock.at += 1
    [new] = await _asked(cached, slow)
    slow.questions[1].set_result(REVOKED)
    await new
    slow.questions[0].set_result(RECORD)
    await old
    assert cached.fresh("k") == (True, REVOKED)
    assert await cached.find_key("k") == REVOKED


@pytest.mark.parametrize(("age", "known"), [(TTL + 1, True), (STALE, True), (STALE + 0.001, False)])
async def test_a_known_key_goes_on_for_a_while_when_the_directory_is_out(
    cached: CachedDirectory, directory: MemoryDirectory, clock: Seconds, age: float, *, known: bool
) -> None:
    await cached.find_key("k")
    directory.out = True
    clock.at += age
    if known:
        assert await cached.find_key("k") == RECORD
    else:
        with pytest.raises(DirectoryOutage):
            await cached.find_key("k")


async def test_a_stale_copy_is_not_fresh_and_a_healed_directory_is_asked(
    cached: CachedDirectory, directory: MemoryDirectory, clock: Seconds
) -> None:
    await cached.find_key("k")
    directory.out = True
    clock.at += TTL + 1
    await cached.find_key("k")
    assert cached.fresh("k") == (False, None)
    directory.out = False
    directory.add(REVOKED)
    assert await cached.find_key("k") == REVOKED


async def test_nobody_new_is_let_in_during_an_outage(
    cached: CachedDirectory, directory: MemoryDirectory, clock: Seconds
) -> None:
    assert await cached.find_key("unknown") is None
    directory.out = True
    clock.at += TTL + 1
    for key_id in ("unknown", "never asked"):
        with pytest.raises(DirectoryOutage):
            await cached.find_key(key_id)


async def test_the_copy_is_bounded_and_drops_the_oldest(cached: CachedDirectory, directory: MemoryDirectory) -> None:
    for key_id in ("a", "b", "c", "d"):
        directory.add(replace(RECORD, id=key_id))
        await cached.find_key(key_id)
    assert [cached.fresh(key_id)[0] for key_id in ("a", "b", "c", "d")] == [False, True, True, True]
