"""The quota step: who is shed, who is refused, what is told, and what an outage costs and means."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from authz import grant as grants
from authz.caps import Caps
from authz.refusal import Reason, Refusal
from extproc import admission as admissions
from extproc import admitter
from extproc.admitter import Admitted, Candidate
from extproc.ending import read
from extproc.inference_request import InferenceRequest
from extproc.lifecycle import Cause
from extproc.record import Degraded
from extproc.settlement import GRACE_SECONDS
from quota.limit import Limit, Mode, OnOutage
from tests.extproc.admitting import PROBE_MS, Admitting
from tests.support.values import NOON_MS, arrival, grant, observation, sliding, slots, tokens_a_day

TOKENS, SLOTS = tokens_a_day(1000), slots(1)


@pytest.fixture
def admitting() -> Admitting:
    return Admitting()


def _candidate(*limits: Limit, request_id: str = "a", named: int | None = 100, **changes: Any) -> Candidate:
    grant_of = grant(*limits, **changes)
    return Candidate(
        grant_text=grants.encode(grant_of),
        grant=grant_of,
        arrival=arrival(request_id=request_id),
        request=InferenceRequest(model="demo", stream=True, max_output_tokens=named, size=80),
    )


def _local(limit: Limit) -> Limit:
    return msgspec.structs.replace(limit, on_outage=OnOutage.LOCAL)


def _open(limit: Limit) -> Limit:
    return msgspec.structs.replace(limit, on_outage=OnOutage.OPEN)


async def _admitted(admitting: Admitting, candidate: Candidate) -> Admitted:
    found = await admitting.admitter.admit(candidate)
    assert isinstance(found, Admitted)
    return found


async def _refused(admitting: Admitting, candidate: Candidate) -> Refusal:
    found = await admitting.admitter.admit(candidate)
    assert isinstance(found, Refusal)
    return found


async def _turns_until(condition: Callable[[], bool]) -> None:
    """Let the loop turn, no longer than needed."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a turn of the loop is what is waited for
            await asyncio.sleep(0)


async def test_with_room_a_request_is_admitted_and_told_how_its_limits_stand(admitting: Admitting) -> None:
    found = await _admitted(admitting, _candidate(TOKENS, sliding(9, name="requests_per_minute")))
    assert await admitting.settling.used(TOKENS) == (120,)
    assert (found.admission.degraded, found.admission.admitted_ms) == (Degraded.NO, NOON_MS)
    assert admissions.decode(found.record) == found.admission
    assert dict(found.headers)["x-ratelimit-remaining-requests"] == "8"


async def test_a_request_that_has_ended_before_is_told_nothing(admitting: Admitting) -> None:
    one = await _admitted(admitting, _candidate(TOKENS))
    admitting.settling.settler.settle(one.admission, read(observation(), one.admission))
    await admitting.settling.settler.finish()
    again = await _admitted(admitting, _candidate(TOKENS))
    assert again.headers == ()


async def test_without_room_a_request_is_refused_and_told_how_its_limits_stand(admitting: Admitting) -> None:
    limit = sliding(1, name="requests_per_minute")
    await _admitted(admitting, _candidate(limit))
    found = await _refused(admitting, _candidate(limit, request_id="b"))
    assert found.reason is Reason.RATE_LIMIT_EXCEEDED
    assert dict(found.headers)["x-ratelimit-remaining-requests"] == "0"


async def test_the_first_request_of_a_fresh_key_passes_if_its_input_fits(admitting: Admitting) -> None:
    limit = tokens_a_day(25)
    await _admitted(admitting, _candidate(limit, named=None))
    assert await admitting.settling.used(limit) == (25,)


@pytest.mark.parametrize(("named", "cap", "fits"), [(100, 100, True), (101, 100, False), (101, 0, True)])
async def test_a_maximum_above_the_plans_cap_is_refused_by_its_field(
    admitting: Admitting, *, named: int, cap: int, fits: bool
) -> None:
    candidate = _candidate(TOKENS, named=named, caps=Caps(output_tokens=cap))
    if fits:
        assert (await _admitted(admitting, candidate)).admission.output_reserved == named
        return
    found = await _refused(admitting, candidate)
    assert (found.reason, found.param) == (Reason.EXCEEDS_LIMIT, "max_tokens")
    assert found.details == {"output_tokens": cap}
    assert admitting.settling.flaky.asked == []


async def test_without_a_maximum_no_more_than_the_plans_cap_is_reserved(admitting: Admitting) -> None:
    caps = Caps(output_tokens=7)
    found = await _admitted(admitting, _candidate(TOKENS, named=None, caps=caps))
    assert (found.admission.output_reserved, found.admission.caps) == (7, caps)
    assert await admitting.settling.used(TOKENS) == (27,)


async def test_a_limit_in_shadow_mode_is_told_and_refuses_nobody(admitting: Admitting) -> None:
    shadow = msgspec.structs.replace(sliding(1, name="tried"), mode=Mode.SHADOW)
    for request_id in "abc":
        await _admitted(admitting, _candidate(shadow, SLOTS_FOR_ALL, request_id=request_id))
    assert [applied.limit.name for applied in admitting.shadowed] == ["tried", "tried"]


SLOTS_FOR_ALL = slots(10, name="many")


async def test_under_overload_the_lowest_priority_is_refused_before_anybody_is_asked(admitting: Admitting) -> None:
    for number in range(100):
        admitting.shedding.refuses(number % 2 * 9, str(number))
    admitting.shedding.shed(500)
    found = await _refused(admitting, _candidate(TOKENS, priority=0))
    assert found.reason is Reason.OVERLOADED
    assert found.retry_after_ms is not None
    assert admitting.settling.flaky.asked == []
    await _admitted(admitting, _candidate(TOKENS, priority=9))


async def test_a_slot_that_frees_within_the_grace_is_given(
    admitting: Admitting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admitter, "_SLOT_GRACE_SECONDS", (0.001, 0.001))
    one = await _admitted(admitting, _candidate(SLOTS))
    await _refused(admitting, _candidate(SLOTS, request_id="b"))
    third = asyncio.create_task(_admitted(admitting, _candidate(SLOTS, request_id="c")))
    # Refused once, and waiting for the grace.
    await _turns_until(lambda: admitting.settling.flaky.asked.count("reserve") == 5)
    admitting.settling.settler.settle(one.admission, read(observation(), one.admission))
    await third


@pytest.mark.parametrize("limit", [slots(0), sliding(0), tokens_a_day(5)])
async def test_nobody_waits_for_room_that_does_not_come_in_a_moment(admitting: Admitting, limit: Limit) -> None:
    await _refused(admitting, _candidate(limit))
    assert admitting.settling.flaky.asked == ["reserve"]


async def test_under_a_closed_limit_an_outage_refuses_and_what_was_taken_is_undone(admitting: Admitting) -> None:
    settling = admitting.settling
    settling.flaky.deaf = True  # the reservation is made, its answer lost
    found = await _refused(admitting, _candidate(TOKENS, SLOTS))
    assert (found.reason, found.retry_after_ms) == (Reason.LIMITS_UNAVAILABLE, 1000)
    settling.flaky.deaf = False
    await settling.settler.finish()
    assert await settling.used(TOKENS, SLOTS) == (0, 0)
    assert await settling.flaky.kept.read(count=10, wait_ms=0) == []


async def test_in_an_outage_only_who_tries_waits_and_nothing_is_owed_for_the_others(admitting: Admitting) -> None:
    admitting.settling.flaky.out = True
    for number in range(100):
        await _refused(admitting, _candidate(TOKENS, request_id=str(number)))
    await admitting.settling.settler.finish()
    assert admitting.settling.flaky.asked.count("reserve") == 1
    assert admitting.settling.settler.waiting == 1
    assert admitting.outages == [True]
    assert len(admitting.decided) == 100


async def test_when_the_limits_answer_again_they_are_asked_again(admitting: Admitting) -> None:
    admitting.settling.flaky.out = True
    await _refused(admitting, _candidate(TOKENS))
    admitting.settling.flaky.out = False
    await _refused(admitting, _candidate(TOKENS))
    admitting.settling.clock.ms += PROBE_MS
    assert (await _admitted(admitting, _candidate(TOKENS))).admission.degraded is Degraded.NO
    assert admitting.outages == [True, False]


@pytest.mark.parametrize(
    ("limits", "degraded"),
    [((), Degraded.OPEN), ((_open(TOKENS),), Degraded.OPEN), ((_open(TOKENS), _local(slots(4))), Degraded.LOCAL)],
)
async def test_what_passes_in_an_outage_says_so_in_the_record_that_travels(
    admitting: Admitting, limits: tuple[Limit, ...], degraded: Degraded
) -> None:
    admitting.settling.flaky.out = True
    found = await _admitted(admitting, _candidate(*limits))
    assert admissions.decode(found.record).degraded is found.admission.degraded is degraded
    assert found.headers == ()


async def test_a_share_is_used_up_and_its_slots_come_back_with_the_end_of_the_stream(admitting: Admitting) -> None:
    admitting.settling.flaky.out = True
    limit = _local(slots(4))
    one = await _admitted(admitting, _candidate(limit))
    assert (await _refused(admitting, _candidate(limit, request_id="b"))).reason is Reason.RATE_LIMIT_EXCEEDED
    admitting.admitter.stream_closed(one.admission)
    await _admitted(admitting, _candidate(limit, request_id="c"))


@pytest.mark.parametrize("taken", [True, False])
async def test_what_passed_in_an_outage_is_settled_once_and_held_by_the_counters_only_if_room_was_taken(
    admitting: Admitting, *, taken: bool
) -> None:
    settling, limit = admitting.settling, _open(TOKENS)
    settling.flaky.deaf, settling.flaky.out = taken, not taken
    one = await _admitted(admitting, _candidate(limit))
    settling.flaky.deaf = settling.flaky.out = False
    travelled = admissions.decode(one.record)
    settling.settler.settle(travelled, read(observation(input_tokens=7, output_tokens=30), travelled))
    await settling.settler.finish()
    admitting.admitter.stream_closed(one.admission)
    settling.clock.ms += int(GRACE_SECONDS * 1000) + 1
    await settling.settler.tick()
    await settling.settler.finish()
    [event] = await settling.flaky.kept.read(count=10, wait_ms=0)
    assert (event.reserved_ms is not None) is taken
    assert await settling.used(limit) == ((37,) if taken else (0,))
    assert [ending.cause for _, ending in settling.observed] == [Cause.FINISHED]


async def test_a_client_that_leaves_while_room_is_taken_leaves_nothing_behind(admitting: Admitting) -> None:
    settling = admitting.settling
    settling.flaky.held = asyncio.Event()
    task = asyncio.create_task(admitting.admitter.admit(_candidate(TOKENS, SLOTS)))
    await _turns_until(lambda: "reserve" in settling.flaky.asked)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    settling.flaky.held.set()
    await settling.settler.finish()
    assert await settling.used(TOKENS, SLOTS) == (0, 0)
