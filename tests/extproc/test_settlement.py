"""Every admitted request is settled exactly once, whoever learns of its end first and whatever is out meanwhile."""

import asyncio

import msgspec
import pytest

from extproc import admission as admissions
from extproc import ending as endings
from extproc import lifecycle_events
from extproc import settlement as settlements
from extproc.ending import read
from extproc.lifecycle import LIVE, STOPPING, Cause, State
from extproc.record import Admission, Degraded, UsageSource
from extproc.settlement import GRACE_SECONDS, sweep
from quota.reservation import Reservation
from tests.extproc.flaky_reservations import Settling
from tests.sidecar.embedded.processes import until
from tests.support.values import admission, claim, held, observation, progress, slots, tokens_a_day

TOKENS, SLOTS = tokens_a_day(1000), slots(3)
FINISHED = read(observation(input_tokens=7, output_tokens=30), admission())
GRACE_MS = int(GRACE_SECONDS * 1000)


@pytest.fixture
def settling() -> Settling:
    return Settling()


async def _reserved(settling: Settling, name: str = "a", *, lease_ms: int = 20_000) -> Admission:
    one = admission(request_id=name)
    asked = msgspec.structs.replace(admissions.claim(one, held(TOKENS, SLOTS)), lease_ms=lease_ms)
    assert isinstance(await settling.flaky.kept.reserve(asked), Reservation)
    return one


async def _events(settling: Settling) -> list[tuple[str, Cause]]:
    return [
        (admissions.decode(event.admission).request_id, endings.decode(event.ending).cause)
        for event in await settling.flaky.kept.read(count=1000, wait_ms=0)
    ]


async def _held(settling: Settling) -> tuple[int, ...]:
    return await settling.used(TOKENS, SLOTS)


async def test_an_end_that_is_known_is_settled_at_once(settling: Settling) -> None:
    one = await _reserved(settling)
    settling.settler.settle(one, FINISHED)
    await settling.settler.finish()
    assert await _events(settling) == [("a", Cause.FINISHED)]
    assert settling.observed == [(one, FINISHED)]
    assert await _held(settling) == (37, 0)


async def test_an_end_told_twice_is_settled_and_observed_once(settling: Settling) -> None:
    one = await _reserved(settling)
    for _ in range(3):
        settling.settler.settle(one, FINISHED)
    await settling.settler.finish()
    settling.settler.settle(one, FINISHED)
    await settling.settler.finish()
    assert len(await _events(settling)) == len(settling.observed) == 1


async def test_an_end_is_settled_from_the_log_when_the_store_has_lost_the_reservation(settling: Settling) -> None:
    settling.settler.settle(admission(request_id="a"), FINISHED)
    await settling.settler.finish()
    assert await _events(settling) == [("a", Cause.FINISHED)]


async def test_settlements_wait_for_an_outage_to_end_and_are_made_once(settling: Settling) -> None:
    ones = [await _reserved(settling, name) for name in "abc"]
    settling.flaky.out = True
    for one in ones:
        settling.settler.settle(one, FINISHED)
    await settling.settler.finish()
    assert (settling.settler.waiting, settling.observed) == (3, [])
    await settling.settler.tick()
    assert settling.settler.waiting == 3
    settling.flaky.out = False
    await settling.settler.tick()
    await settling.settler.tick()
    assert settling.settler.waiting == 0
    assert sorted(await _events(settling)) == [(name, Cause.FINISHED) for name in "abc"]
    assert len(settling.observed) == 3


async def test_a_settlement_whose_answer_was_lost_is_not_made_twice(settling: Settling) -> None:
    one = await _reserved(settling)
    settling.flaky.deaf = True
    settling.settler.settle(one, FINISHED)
    await settling.settler.finish()
    assert settling.settler.waiting == 1
    settling.flaky.deaf = False
    await settling.settler.tick()
    assert settling.settler.waiting == 0
    assert len(await _events(settling)) == 1


async def test_what_waits_is_bounded_and_the_oldest_is_left_to_its_lease(
    settling: Settling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settlements, "MAX_WAITING", 2)
    ones = [await _reserved(settling, name) for name in "abc"]
    settling.flaky.out = True
    for one in ones:
        settling.settler.settle(one, FINISHED)
        settling.settler.stream_closed(one)
        await settling.settler.finish()
    assert settling.settler.waiting == 2
    settling.flaky.out = False
    await settling.settler.tick()
    assert sorted(name for name, _ in await _events(settling)) == ["b", "c"]
    settling.clock.ms += 20_001
    [(swept, ending)] = await sweep(settling.flaky, now_ms=settling.clock.ms)
    assert (swept.request_id, ending.cause) == ("a", Cause.GATEWAY_LOST)


async def test_more_than_a_batch_is_worked_off_in_one_round(settling: Settling) -> None:
    settling.flaky.out = True
    for number in range(1200):
        settling.settler.settle(admission(request_id=f"r{number}"), FINISHED)
    await settling.settler.finish()
    settling.flaky.out = False
    await settling.settler.tick()
    assert settling.settler.waiting == 0
    assert len(settling.observed) == 1200


async def test_a_closed_stream_is_settled_as_lost_only_after_the_grace(settling: Settling) -> None:
    one = await _reserved(settling)
    settling.settler.stream_closed(one)
    settling.clock.ms += GRACE_MS - 1
    await settling.settler.tick()
    assert await _events(settling) == []
    settling.clock.ms += 2
    await settling.settler.tick()
    await settling.settler.finish()
    assert await _events(settling) == [("a", Cause.GATEWAY_LOST)]
    assert await _held(settling) == (120, 0)


@pytest.mark.parametrize("cause", sorted(STOPPING))
async def test_a_stopped_stream_that_nobody_else_settles_ends_for_the_reason_of_its_stop(
    settling: Settling, cause: Cause
) -> None:
    one = await _reserved(settling)
    await settling.flaky.kept.renew("org_a", "a", lease_ms=20_000, progress=progress(8))
    settling.settler.stream_closed(one, cause)
    settling.clock.ms += GRACE_MS + 1
    await settling.settler.tick()
    await settling.settler.finish()
    [(_, ending)] = settling.observed
    assert (ending.state, ending.cause) == (State.CANCELLED, cause)
    assert (ending.output_tokens, ending.usage_source) == (8, UsageSource.ESTIMATED)
    assert await _held(settling) == (28, 0)


async def test_a_stopped_stream_whose_end_is_known_ends_as_it_did(settling: Settling) -> None:
    one = await _reserved(settling)
    settling.settler.stream_closed(one, Cause.CLIENT_CANCEL)
    settling.settler.settle(one, FINISHED)
    settling.clock.ms += GRACE_MS + 1
    await settling.settler.finish()
    assert await _events(settling) == [("a", Cause.FINISHED)]


@pytest.mark.parametrize("noticed_by", ["tick", "settle"])
async def test_after_an_outage_those_who_know_the_end_come_first(settling: Settling, noticed_by: str) -> None:
    one = await _reserved(settling)
    settling.settler.stream_closed(one)
    settling.clock.ms += GRACE_MS - 100
    settling.flaky.out = True
    if noticed_by == "tick":
        await settling.settler.tick()
    else:
        settling.settler.settle(admission(request_id="another"), FINISHED)
        await settling.settler.finish()
    settling.flaky.out = False
    settling.clock.ms += GRACE_MS - 1
    await settling.settler.tick()
    assert "a" not in [name for name, _ in await _events(settling)]
    settling.clock.ms += 2
    await settling.settler.tick()
    await settling.settler.finish()
    assert ("a", Cause.GATEWAY_LOST) in await _events(settling)


@pytest.mark.parametrize("log_first", [True, False])
async def test_a_closed_stream_whose_log_came_is_not_lost(settling: Settling, *, log_first: bool) -> None:
    one = await _reserved(settling)
    if log_first:
        settling.settler.settle(one, FINISHED)
    settling.settler.stream_closed(one)
    if not log_first:
        settling.clock.ms += GRACE_MS - 100
        settling.settler.settle(one, FINISHED)
    await settling.settler.finish()
    settling.clock.ms += 10 * GRACE_MS
    await settling.settler.tick()
    await settling.settler.finish()
    assert await _events(settling) == [("a", Cause.FINISHED)]


async def test_a_closed_stream_whose_log_another_worker_got_is_left_alone(settling: Settling) -> None:
    one = await _reserved(settling)
    settling.settler.stream_closed(one)
    await settling.flaky.kept.settle(settlements.settlement(one, FINISHED))
    settling.clock.ms += 2 * GRACE_MS
    await settling.settler.tick()
    await settling.settler.finish()
    assert await _events(settling) == [("a", Cause.FINISHED)]
    assert settling.observed == []


async def test_a_known_end_that_waits_for_redis_is_not_overtaken_by_the_grace(settling: Settling) -> None:
    one = await _reserved(settling)
    settling.flaky.out = True
    settling.settler.settle(one, FINISHED)
    settling.settler.stream_closed(one)
    await settling.settler.finish()
    settling.clock.ms += 10 * GRACE_MS
    await settling.settler.tick()
    settling.flaky.out = False
    for _ in range(3):
        await settling.settler.tick()
    await settling.settler.finish()
    assert await _events(settling) == [("a", Cause.FINISHED)]


async def test_a_known_end_that_is_on_its_way_is_not_overtaken_by_the_grace(settling: Settling) -> None:
    one = await _reserved(settling)
    settling.settler.stream_closed(one)
    settling.clock.ms += 2 * GRACE_MS
    settling.flaky.held = asyncio.Event()
    ticking = asyncio.create_task(settling.settler.tick())
    await asyncio.sleep(0)
    settling.settler.settle(one, FINISHED)  # while the store is asked what is open
    await asyncio.sleep(0)
    settling.flaky.held.set()
    await ticking
    await settling.settler.finish()
    assert await _events(settling) == [("a", Cause.FINISHED)]


async def test_closed_streams_wait_for_an_outage_to_end(settling: Settling) -> None:
    one = await _reserved(settling)
    settling.settler.stream_closed(one)
    settling.clock.ms += 2 * GRACE_MS
    settling.flaky.out = True
    await settling.settler.tick()
    settling.flaky.out = False
    settling.clock.ms += GRACE_MS + 1
    await settling.settler.tick()
    await settling.settler.finish()
    assert await _events(settling) == [("a", Cause.GATEWAY_LOST)]


async def test_a_release_is_retried_until_the_reservation_is_undone(settling: Settling) -> None:
    one = await _reserved(settling)
    settling.flaky.out = True
    settling.settler.release(one)
    await settling.settler.finish()
    assert await _held(settling) == (120, 1)
    settling.flaky.out = False
    await settling.settler.tick()
    assert await _held(settling) == (0, 0)
    assert (await _events(settling), settling.observed) == ([], [])


@pytest.mark.parametrize("reserved", [True, False])
async def test_a_request_that_never_passed_is_settled_only_if_it_was_reserved(
    settling: Settling, *, reserved: bool
) -> None:
    one = await _reserved(settling) if reserved else admission(request_id="a")
    settling.settler.settle_if_reserved(one, read(observation(passed=False, events=0), one))
    await settling.settler.finish()
    assert await _events(settling) == ([("a", Cause.GATEWAY_ERROR)] if reserved else [])
    assert await _held(settling) == (0, 0)


async def test_a_client_that_left_before_its_reservation_was_made_is_not_called_lost(settling: Settling) -> None:
    one = admission(request_id="a")
    left = read(observation(passed=False, events=0, client_gone=True), one)
    settling.settler.settle_if_reserved(one, left)
    await settling.settler.finish()
    await _reserved(settling)
    settling.settler.stream_closed(one)
    settling.clock.ms += GRACE_MS - 1
    await settling.settler.tick()
    await settling.settler.finish()
    assert await _events(settling) == [("a", Cause.CLIENT_DISCONNECT)]
    assert await _held(settling) == (0, 0)
    settling.clock.ms += GRACE_MS
    await settling.settler.tick()
    await settling.settler.finish()
    assert len(await _events(settling)) == 1


async def test_the_background_task_retries_until_it_is_cancelled(
    settling: Settling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settlements, "RETRY_SECONDS", 0.001)
    one = await _reserved(settling)
    settling.flaky.out = True
    settling.settler.settle(one, FINISHED)
    running = asyncio.create_task(settling.settler.run())
    await until(lambda: settling.flaky.asked.count("settle") >= 3)
    settling.flaky.out = False
    await until(lambda: settling.settler.waiting == 0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await _events(settling) == [("a", Cause.FINISHED)]


async def test_the_sweeper_settles_what_nobody_reports_by_its_progress(settling: Settling) -> None:
    await _reserved(settling, "silent", lease_ms=10)
    await _reserved(settling, "streaming", lease_ms=10)
    await _reserved(settling, "alive", lease_ms=60_000)
    await settling.flaky.kept.renew("org_a", "streaming", lease_ms=10, progress=progress(8))
    settling.clock.ms += 11
    swept = await sweep(settling.flaky, now_ms=settling.clock.ms)
    assert {(one.request_id, ending.output_tokens, ending.events) for one, ending in swept} == {
        ("silent", 100, 0),
        ("streaming", 8, 8),
    }
    assert await sweep(settling.flaky, now_ms=settling.clock.ms) == []
    assert await _held(settling) == (120 + 28 + 120, 1)


@pytest.mark.parametrize(
    ("why", "state", "cause"),
    [(cause.value, State.CANCELLED, cause) for cause in sorted(STOPPING)]
    + [("", State.FAILED, Cause.GATEWAY_LOST), ("of another version", State.FAILED, Cause.GATEWAY_LOST)],
)
async def test_a_request_that_was_to_be_stopped_and_is_not_reported_has_been(
    settling: Settling, why: str, state: State, cause: Cause
) -> None:
    await _reserved(settling, lease_ms=10)
    if why:
        assert await settling.flaky.kept.stop("org_a", "a", why=why)
    settling.clock.ms += 11
    [(_, ending)] = await sweep(settling.flaky, now_ms=settling.clock.ms)
    assert (ending.state, ending.cause) == (state, cause)
    assert await _held(settling) == (120, 0), "charged by what it reserved"


async def test_the_end_is_told_to_observers_with_the_bill_and_once(settling: Settling) -> None:
    one = await _reserved(settling)
    for _ in range(2):
        settling.settler.settle(one, FINISHED)
    await settling.settler.finish()
    told = [lifecycle_events.decode(text) for text in settling.flaky.kept.log]
    assert told == [lifecycle_events.admitted(one), lifecycle_events.ended(one, FINISHED)]


async def test_a_request_that_ended_otherwise_is_not_ended_again(settling: Settling) -> None:
    one = await _reserved(settling)
    ends = settlements.settlement(one, FINISHED)
    assert (ends.tenant_id, ends.progress.stage) == ("ten_a", State.COMPLETED)
    assert set(ends.progress.after) == LIVE
    assert await settling.flaky.kept.settle(ends)
    lost = endings.lost(one, events=0, ended_ms=1, cause=Cause.REVOKED)
    assert not await settling.flaky.kept.settle(settlements.settlement(one, lost))


async def test_a_request_that_comes_to_life_again_while_it_is_swept_goes_on(settling: Settling) -> None:
    one = await _reserved(settling, lease_ms=10)
    settling.clock.ms += 11
    overdue = await settling.flaky.overdue(limit=10)
    assert len(overdue) == 1
    await settling.flaky.kept.renew("org_a", "a", lease_ms=60_000, progress=progress(1))
    late = settlements.settlement(one, FINISHED, only_if_overdue=True)
    assert not await settling.flaky.settle(late)
    assert await settling.flaky.progress([("org_a", "a")]) == [1]


@pytest.mark.parametrize("made", [True, False])
async def test_what_was_admitted_in_an_outage_and_not_logged_is_settled_once_whether_the_store_knew_it_or_not(
    settling: Settling, *, made: bool
) -> None:
    one = await _reserved(settling) if made else admission(request_id="a")
    settling.settler.stream_closed(msgspec.structs.replace(one, degraded=Degraded.OPEN))
    settling.clock.ms += GRACE_MS + 1
    await settling.settler.tick()
    await settling.settler.finish()
    assert await _events(settling) == [("a", Cause.GATEWAY_LOST)]
    [event] = await settling.flaky.kept.read(count=10, wait_ms=0)
    assert (event.reserved_ms is None) is not made


async def test_what_was_admitted_in_an_outage_and_is_settled_elsewhere_is_not_settled_again(settling: Settling) -> None:
    one = admission(request_id="a", degraded=Degraded.LOCAL)
    settling.settler.stream_closed(one)
    await settling.flaky.kept.settle(settlements.settlement(one, FINISHED))
    settling.clock.ms += GRACE_MS + 1
    await settling.settler.tick()
    await settling.settler.finish()
    assert await _events(settling) == [("a", Cause.FINISHED)]
    assert settling.observed == []


async def test_a_request_that_came_to_nothing_gives_everything_back(settling: Settling) -> None:
    one = await _reserved(settling)
    refused = read(observation(status=503, details="no_healthy_upstream", events=0, response_bytes=207), one)
    settling.settler.settle(one, refused)
    await settling.settler.finish()
    assert await _held(settling) == (0, 0)
    assert await _events(settling) == [("a", Cause.UPSTREAM_RESET)]


def test_a_settlement_is_made_of_what_was_used_and_carries_a_copy_for_a_store_that_forgot() -> None:
    known = settlements.settlement(admission(), FINISHED)
    assert (known.charges, known.admission) == (FINISHED.charges, admissions.encode(admission()))
    swept = settlements.settlement(admission(), FINISHED, only_if_overdue=True)
    assert (swept.charges, swept.admission, swept.only_if_overdue) == (FINISHED.charges, None, True)


async def test_a_release_never_undoes_a_settlement_for_the_same_request(settling: Settling) -> None:
    one = await _reserved(settling)
    settling.settler.settle(one, FINISHED)
    settling.settler.release(one)
    await settling.settler.finish()
    assert await _held(settling) == (37, 0)
    assert isinstance(await settling.flaky.kept.reserve(claim("b", held(SLOTS))), Reservation)
