"""The contract of `quota.reservation`: one suite, in memory and over a real Redis."""

import asyncio
from typing import Any

import pytest

from quota.limit import Limit, Unit
from quota.reservation import Demand, Exceeded, Reservation, Settlement
from tests.quota.worlds import World, all_events, used
from tests.support.values import claim, demand, settlement, sliding, slots, tokens_a_day

TOKENS = tokens_a_day(1000)
REQUESTS = sliding(3)
SLOTS = slots(2)
PATIENCE_MS = 5000


async def _reserved(world: World, request_id: str, *demands: Demand, lease_ms: int = 60_000) -> Reservation:
    answer = await world.reservations.reserve(claim(request_id, *demands, lease_ms=lease_ms))
    assert isinstance(answer, Reservation), answer
    return answer


async def _refused(world: World, request_id: str, *demands: Demand) -> Exceeded:
    answer = await world.reservations.reserve(claim(request_id, *demands))
    assert isinstance(answer, Exceeded), answer
    return answer


async def _uses(world: World, *limits: Limit) -> list[int]:
    return [await used(world.reservations, limit) for limit in limits]


async def test_room_is_taken_under_every_demand(world: World) -> None:
    before = await world.now_ms()
    answer = await _reserved(world, "a", demand(REQUESTS), demand(TOKENS, 120), demand(SLOTS))
    assert answer.taken == (1, 120, 1)
    assert before <= answer.at_ms <= await world.now_ms()
    assert await _uses(world, REQUESTS, TOKENS, SLOTS) == [1, 120, 1]


async def test_no_demand_at_all_is_granted(world: World) -> None:
    assert (await _reserved(world, "a")).taken == ()
    assert await world.reservations.settle(settlement("a"))


@pytest.mark.parametrize(
    "full", [sliding(0, name="full"), tokens_a_day(0, name="full"), slots(0, name="full")], ids=lambda limit: limit.unit
)
@pytest.mark.parametrize("place", [0, 1, 2, 3])
async def test_all_or_none_wherever_the_full_limit_stands(world: World, full: Limit, place: int) -> None:
    demands = [demand(REQUESTS), demand(TOKENS, 10), demand(SLOTS)]
    demands.insert(place, demand(full))
    assert (await _refused(world, "a", *demands)).limit == full
    assert await _uses(world, REQUESTS, TOKENS, SLOTS) == [0, 0, 0]
    assert await world.reservations.progress([("org_a", "a")]) == [None]


async def test_the_first_limit_that_has_no_room_is_named(world: World) -> None:
    other = slots(0, name="other")
    answer = await _refused(world, "a", demand(REQUESTS), demand(other), demand(slots(0)))
    assert answer == Exceeded(limit=other, used=0, retry_after_ms=None)


async def test_asked_again_for_the_same_request_answers_the_same_and_takes_nothing(world: World) -> None:
    demands = (demand(REQUESTS), demand(TOKENS, 700), demand(SLOTS))
    first = await _reserved(world, "a", *demands)
    await world.pass_time(5)
    assert await _reserved(world, "a", *demands) == first
    # Not even when the second call would find no room, or asks for something else.
    assert await _reserved(world, "a", demand(TOKENS, 5000)) == first
    assert await _uses(world, REQUESTS, TOKENS, SLOTS) == [1, 700, 1]


@pytest.mark.parametrize("limit", [sliding(3), slots(3), tokens_a_day(3)], ids=lambda limit: limit.unit)
async def test_exactly_the_ceiling_is_admitted(world: World, limit: Limit) -> None:
    for request_id in ("a", "b", "c"):
        await _reserved(world, request_id, demand(limit))
    assert (await _refused(world, "d", demand(limit))).used == 3


@pytest.mark.parametrize(("amount", "fits"), [(999, True), (1000, True), (1001, False)])
async def test_one_amount_is_exact_at_the_ceiling(world: World, amount: int, *, fits: bool) -> None:
    answer = await world.reservations.reserve(claim("a", demand(TOKENS, amount)))
    assert isinstance(answer, Reservation) is fits


async def test_what_can_never_fit_has_no_time_to_retry(world: World) -> None:
    for limit in (TOKENS, sliding(1000, unit=Unit.TOKENS)):
        assert (await _refused(world, "a", demand(limit, 1001))).retry_after_ms is None
        assert (await _refused(world, "a", demand(limit, 5000, least=1001))).retry_after_ms is None


@pytest.mark.parametrize(
    ("before", "amount", "least", "taken"),
    [
        (0, 400, 50, 400),  # room for all
        (600, 400, 50, 400),  # just
        (601, 400, 50, 399),  # one short: the rest of the room
        (900, 400, 50, 100),
        (950, 400, 50, 50),  # just the least
        (951, 400, 50, None),
        (0, 2000, 50, 1000),  # more than the ceiling, but content with less
        (1000, 400, 1, None),
    ],
)
async def test_an_amount_is_capped_to_the_room_between_least_and_amount(
    world: World, before: int, amount: int, least: int, taken: int | None
) -> None:
    if before:
        await _reserved(world, "before", demand(TOKENS, before))
    answer = await world.reservations.reserve(claim("a", demand(TOKENS, amount, least=least)))
    assert (answer.taken[0] if isinstance(answer, Reservation) else None) == taken
    assert await used(world.reservations, TOKENS) == before + (taken or 0)


async def test_subjects_and_organizations_have_rooms_of_their_own(world: World) -> None:
    limit = slots(1)
    await _reserved(world, "a", demand(limit))
    await _reserved(world, "b", demand(limit, subject="tenant:ten_b"))
    await _refused(world, "c", demand(limit))


async def test_a_sliding_window_frees_room_but_never_early(world: World) -> None:
    limit = sliding(2, seconds=2)
    await _reserved(world, "a", demand(limit))
    await world.pass_time(800)
    second = await _reserved(world, "b", demand(limit))
    answer = await _refused(world, "c", demand(limit))
    assert answer.used == 2
    assert answer.retry_after_ms is not None
    assert 0 < answer.retry_after_ms <= limit.live_slices * limit.slice_ms - 800
    await world.pass_time(answer.retry_after_ms)
    third = await _reserved(world, "c", demand(limit))
    assert third.at_ms - second.at_ms < 2000
    assert (await _refused(world, "d", demand(limit))).used == 2


async def test_retry_after_waits_for_enough_room_not_just_for_some(world: World) -> None:
    limit = sliding(100, seconds=1, unit=Unit.TOKENS)
    await _reserved(world, "small", demand(limit, 10))
    await world.pass_time(500)
    await _reserved(world, "large", demand(limit, 90))
    for_a_little = (await _refused(world, "a", demand(limit, 5))).retry_after_ms
    for_much = (await _refused(world, "a", demand(limit, 50))).retry_after_ms
    assert for_a_little is not None
    assert for_much is not None
    assert for_a_little < 600 < for_much
    await world.pass_time(for_a_little)
    await _reserved(world, "a", demand(limit, 5))


async def test_a_day_is_full_until_midnight(world: World) -> None:
    day_ms = 86_400_000
    await _reserved(world, "a", demand(TOKENS, 1000))
    retry = (await _refused(world, "b", demand(TOKENS))).retry_after_ms
    assert retry is not None
    left = day_ms - await world.now_ms() % day_ms
    assert left <= retry <= left + PATIENCE_MS


async def test_a_slot_is_worth_asking_for_again_soon(world: World) -> None:
    limit = slots(1)
    await _reserved(world, "a", demand(limit))
    assert (await _refused(world, "b", demand(limit))).retry_after_ms == 1000


async def test_a_slot_ends_with_its_lease_and_the_request_stays_open(world: World) -> None:
    limit = slots(1)
    await _reserved(world, "a", demand(limit), lease_ms=30)
    await world.pass_time(31)
    await _reserved(world, "b", demand(limit))
    assert await world.reservations.progress([("org_a", "a"), ("org_a", "b")]) == [0, 0]


@pytest.mark.parametrize(
    ("tokens", "left"), [(0, 0), (120, 120), (399, 399), (400, 400), (401, 401), (5000, 5000), (None, 400)]
)
async def test_settling_puts_the_fact_in_place_of_the_tokens_reserved(
    world: World, tokens: int | None, left: int
) -> None:
    await _reserved(world, "a", demand(REQUESTS), demand(TOKENS, 400), demand(SLOTS))
    assert await world.reservations.settle(settlement("a", tokens))
    # The request has been made, its slot is free, its tokens are what it used: more than the ceiling, too.
    assert await _uses(world, REQUESTS, TOKENS, SLOTS) == [1, left, 0]


async def test_a_request_is_settled_once_and_leaves_one_event(world: World) -> None:
    await _reserved(world, "a", demand(TOKENS, 400))
    answers = await asyncio.gather(*(world.reservations.settle(settlement("a", tokens)) for tokens in (7, 8, 9)))
    assert sorted(answers) == [False, False, True]
    assert not await world.reservations.settle(settlement("a", 10, admission=b"copy"))
    [event] = await all_events(world.events)
    assert (event.admission, event.ending) == (b"admission of a", b"ending of a")
    assert await used(world.reservations, TOKENS) == 7 + answers.index(True)
    assert await world.reservations.progress([("org_a", "a")]) == [None]


async def test_an_unknown_request_is_left_alone(world: World) -> None:
    assert not await world.reservations.settle(settlement("a", 10))
    assert not await world.reservations.settle(settlement("a", 10, only_if_overdue=True))
    assert not await world.reservations.release("org_a", "a")
    assert not await world.reservations.renew("org_a", "a", lease_ms=1000, events=1)
    assert await all_events(world.events) == []


async def test_a_request_the_store_has_lost_is_settled_once_from_the_settlers_copy(world: World) -> None:
    lost = settlement("a", 10, admission=b"the copy")
    assert await world.reservations.settle(lost)
    assert not await world.reservations.settle(lost)
    [event] = await all_events(world.events)
    assert (event.admission, event.ending) == (b"the copy", b"ending of a")


async def test_the_stores_own_admission_wins_over_the_settlers_copy(world: World) -> None:
    await _reserved(world, "a")
    assert await world.reservations.settle(settlement("a", admission=b"the copy"))
    assert [event.admission for event in await all_events(world.events)] == [b"admission of a"]


async def test_only_if_overdue_leaves_a_running_lease_alone(world: World) -> None:
    await _reserved(world, "a", demand(SLOTS), demand(TOKENS, 400), lease_ms=300)
    sweep = settlement("a", 1, only_if_overdue=True)
    assert not await world.reservations.settle(sweep)
    assert await _uses(world, SLOTS, TOKENS) == [1, 400]
    await world.pass_time(301)
    assert await world.reservations.settle(sweep)
    assert not await world.reservations.settle(sweep)
    assert await _uses(world, SLOTS, TOKENS) == [0, 1]
    assert len(await all_events(world.events)) == 1


async def test_releasing_undoes_everything_without_an_event(world: World) -> None:
    await _reserved(world, "a", demand(REQUESTS), demand(TOKENS, 400), demand(SLOTS))
    assert await world.reservations.release("org_a", "a")
    assert not await world.reservations.release("org_a", "a")
    assert not await world.reservations.settle(settlement("a", 10))
    assert await _uses(world, REQUESTS, TOKENS, SLOTS) == [0, 0, 0]
    assert await all_events(world.events) == []
    # As if it had never been: it may come again.
    await _reserved(world, "a", demand(REQUESTS))


async def test_a_settled_request_cannot_be_released(world: World) -> None:
    await _reserved(world, "a", demand(REQUESTS))
    assert await world.reservations.settle(settlement("a"))
    assert not await world.reservations.release("org_a", "a")
    assert await used(world.reservations, REQUESTS) == 1
    assert not await world.reservations.settle(settlement("a", admission=b"copy"))


async def test_a_settlement_after_the_window_has_moved_on_changes_nothing_in_it(world: World) -> None:
    limit = sliding(100, seconds=1, unit=Unit.TOKENS)
    await _reserved(world, "old", demand(limit, 60))
    await world.pass_time(1100)
    await _reserved(world, "new", demand(limit, 50))
    assert await world.reservations.settle(settlement("old", 5))
    assert await used(world.reservations, limit) == 50


async def test_renewing_keeps_the_slot_and_the_lease(world: World) -> None:
    limit = slots(1)
    await _reserved(world, "a", demand(limit), lease_ms=200)
    assert await world.reservations.renew("org_a", "a", lease_ms=60_000, events=3)
    await world.pass_time(250)
    assert (await _refused(world, "b", demand(limit))).used == 1
    assert await world.reservations.overdue(limit=10) == []
    assert not await world.reservations.settle(settlement("a", only_if_overdue=True))


async def test_a_settled_request_cannot_be_renewed(world: World) -> None:
    await _reserved(world, "a", demand(SLOTS))
    await world.reservations.settle(settlement("a"))
    assert not await world.reservations.renew("org_a", "a", lease_ms=60_000, events=3)
    assert await used(world.reservations, SLOTS) == 0
    assert await world.reservations.overdue(limit=10) == []


async def test_overdue_names_who_is_not_reported_any_more_with_the_furthest_progress(world: World) -> None:
    await _reserved(world, "fresh")
    await _reserved(world, "silent", lease_ms=20)
    await _reserved(world, "stopped", lease_ms=20)
    for events in (4, 9, 6):  # entries of the access log may overtake each other
        assert await world.reservations.renew("org_a", "stopped", lease_ms=20, events=events)
    await _reserved(world, "ended", lease_ms=20)
    await world.reservations.settle(settlement("ended"))
    await world.pass_time(21)
    found = {late.request_id: (late.admission, late.events) for late in await world.reservations.overdue(limit=10)}
    assert found == {"silent": (b"admission of silent", 0), "stopped": (b"admission of stopped", 9)}
    assert len(await world.reservations.overdue(limit=1)) == 1
    assert len(await world.reservations.overdue(limit=10)) == 2, "asking changes nothing"


async def test_progress_answers_in_the_order_of_the_question(world: World) -> None:
    await _reserved(world, "a")
    await _reserved(world, "b")
    await world.reservations.settle(settlement("b"))
    asked = [("org_a", request_id) for request_id in ("b", "a", "unknown", "a")]
    assert await world.reservations.progress(asked) == [None, 0, None, 0]
    assert await world.reservations.progress([]) == []


@pytest.mark.parametrize("text", [b"", b"\0\xff\n", '{"model":"\N{SNOWMAN}"}'.encode(), b"x" * 100_000])
async def test_admission_and_ending_are_kept_as_they_are(world: World, text: bytes) -> None:
    await world.reservations.settle(settlement("a", ending=text, admission=b"copy" + text))
    [event] = await all_events(world.events)
    assert (event.admission, event.ending) == (b"copy" + text, text)


async def test_events_come_oldest_first_and_are_gone_once_acknowledged(world: World) -> None:
    names = ["a", "b", "c", "d"]
    for name in names:
        await world.reservations.settle(settlement(name, admission=name.encode()))
    assert [event.admission.decode() for event in await all_events(world.events)] == names
    assert await all_events(world.events) == []


async def test_a_request_that_has_ended_is_not_opened_again(world: World) -> None:
    # A call that was delayed somewhere may come after the end.
    for ended in ("reserved", "lost"):
        if ended == "reserved":
            await _reserved(world, ended, demand(TOKENS, 400), demand(SLOTS))
        assert await world.reservations.settle(settlement(ended, 40, admission=b"copy"))
        await world.reservations.reserve(claim(ended, demand(TOKENS, 400), demand(SLOTS)))
        assert await _uses(world, TOKENS, SLOTS) == [40, 0]
        assert not await world.reservations.release("org_a", ended)
        assert not await world.reservations.settle(settlement(ended, 40, admission=b"copy"))
    assert len(await all_events(world.events)) == 2


@pytest.mark.parametrize("change", [{"tokens": 7}, {"tokens": None}, {"ending": b"other"}])
async def test_the_second_settlement_does_nothing_whatever_it_says(world: World, change: dict[str, Any]) -> None:
    await _reserved(world, "a", demand(TOKENS, 400))
    assert await world.reservations.settle(settlement("a", 40))
    second: Settlement = settlement("a", **change)
    assert not await world.reservations.settle(second)
    assert await used(world.reservations, TOKENS) == 40
    assert [event.ending for event in await all_events(world.events)] == [b"ending of a"]
