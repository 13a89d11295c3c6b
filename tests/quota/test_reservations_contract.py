"""The contract of `quota.reservation`: one suite, in memory and over a real Redis."""

import asyncio
from typing import Any

import msgspec
import pytest

from quota.applied import AppliedLimit
from quota.charges import NOTHING, Charges
from quota.limit import Limit, Mode, Unit, Window
from quota.reservation import Reservation, Settlement, Standing
from tests.quota.worlds import World, all_events, refused, reserved, used, uses
from tests.support.values import amounts, claim, held, progress, settlement, sliding, slots, tokens_a_day

TOKENS = tokens_a_day(1000)
REQUESTS = sliding(3)
SLOTS = slots(2)
ALL = held(REQUESTS, TOKENS, SLOTS)
NONE = held()
PATIENCE_MS = 5000


async def test_room_is_taken_under_every_limit(world: World) -> None:
    before = await world.now_ms()
    answer = await reserved(world, "a", ALL, amounts(120))
    assert answer.taken == (1, 120, 1)
    assert before <= answer.at_ms <= await world.now_ms()
    assert await uses(world, REQUESTS, TOKENS, SLOTS) == [1, 120, 1]


async def test_no_limit_at_all_is_granted(world: World) -> None:
    answer = await reserved(world, "a", NONE)
    assert (answer.taken, answer.standings) == ((), ())
    assert await world.reservations.settle(settlement("a"))


@pytest.mark.parametrize(
    "full", [sliding(0, name="full"), tokens_a_day(0, name="full"), slots(0, name="full")], ids=lambda limit: limit.unit
)
@pytest.mark.parametrize("place", [0, 1, 2, 3])
async def test_all_or_none_wherever_the_full_limit_stands(world: World, full: Limit, place: int) -> None:
    limits = [REQUESTS, TOKENS, SLOTS]
    limits.insert(place, full)
    answer = await refused(world, "a", held(*limits))
    assert answer.limit == AppliedLimit(full, "tenant:ten_a")
    assert [standing.used for standing in answer.standings] == [0, 0, 0, 0]
    assert await uses(world, REQUESTS, TOKENS, SLOTS) == [0, 0, 0]
    assert await world.reservations.progress([("org_a", "a")]) == [None]


async def test_asked_again_for_the_same_request_answers_the_same_and_takes_nothing(world: World) -> None:
    limits = held(REQUESTS, TOKENS, SLOTS, msgspec.structs.replace(slots(0, name="shadow"), mode=Mode.SHADOW))
    first = await reserved(world, "a", limits, amounts(700))
    assert first.shadowed == (3,)
    await world.pass_time(5)
    await reserved(world, "other", limits)
    assert await reserved(world, "a", limits, amounts(700)) == first
    # Not even when the second call would find no room, or asks for something else.
    assert await reserved(world, "a", held(TOKENS), amounts(5000)) == first
    assert await uses(world, REQUESTS, TOKENS, SLOTS) == [2, 701, 2]


@pytest.mark.parametrize("limit", [sliding(3), slots(3), tokens_a_day(3)], ids=lambda limit: limit.unit)
async def test_exactly_the_ceiling_is_admitted(world: World, limit: Limit) -> None:
    for request_id in ("a", "b", "c"):
        await reserved(world, request_id, held(limit))
    assert (await refused(world, "d", held(limit))).used == 3


@pytest.mark.parametrize(("amount", "fits"), [(999, True), (1000, True), (1001, False)])
async def test_one_amount_is_exact_at_the_ceiling(world: World, amount: int, *, fits: bool) -> None:
    answer = await world.reservations.reserve(claim("a", held(TOKENS), amounts(amount)))
    assert isinstance(answer, Reservation) is fits


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
        await reserved(world, "before", held(TOKENS), amounts(before))
    answer = await world.reservations.reserve(claim("a", held(TOKENS), amounts(amount), least=amounts(least)))
    assert (answer.taken[0] if isinstance(answer, Reservation) else None) == taken
    assert await used(world.reservations, TOKENS) == before + (taken or 0)


async def test_subjects_and_organizations_have_rooms_of_their_own(world: World) -> None:
    limit = slots(1)
    await reserved(world, "a", held(limit))
    await reserved(world, "b", held(limit, subject="tenant:ten_b"))
    await refused(world, "c", held(limit))


async def test_a_sliding_window_frees_room_but_never_early(world: World) -> None:
    limit = sliding(2, seconds=2)
    await reserved(world, "a", held(limit))
    await world.pass_time(800)
    second = await reserved(world, "b", held(limit))
    answer = await refused(world, "c", held(limit))
    assert answer.used == 2
    assert answer.retry_after_ms is not None
    assert 0 < answer.retry_after_ms <= limit.live_slices * limit.slice_ms - 800
    await world.pass_time(answer.retry_after_ms)
    third = await reserved(world, "c", held(limit))
    assert third.at_ms - second.at_ms < 2000
    assert (await refused(world, "d", held(limit))).used == 2


async def test_retry_after_waits_for_enough_room_not_just_for_some(world: World) -> None:
    limit = sliding(100, seconds=1, unit=Unit.TOKENS)
    await reserved(world, "small", held(limit), amounts(10))
    await world.pass_time(500)
    await reserved(world, "large", held(limit), amounts(90))
    for_a_little = (await refused(world, "a", held(limit), amounts(5))).retry_after_ms
    for_much = (await refused(world, "a", held(limit), amounts(50))).retry_after_ms
    assert for_a_little is not None
    assert for_much is not None
    assert for_a_little < 600 < for_much
    await world.pass_time(for_a_little)
    await reserved(world, "a", held(limit), amounts(5))


async def test_a_day_is_full_until_midnight(world: World) -> None:
    day_ms = 86_400_000
    await reserved(world, "a", held(TOKENS), amounts(1000))
    retry = (await refused(world, "b", held(TOKENS))).retry_after_ms
    assert retry is not None
    left = day_ms - await world.now_ms() % day_ms
    assert left <= retry <= left + PATIENCE_MS


@pytest.mark.parametrize("tokens", [0, 120, 399, 400, 401, 5000])
async def test_settling_puts_the_fact_in_place_of_what_was_reserved(world: World, tokens: int) -> None:
    await reserved(world, "a", ALL, amounts(400))
    assert await world.reservations.settle(settlement("a", amounts(tokens)))
    # The request has been made, its slot is free, its tokens are what it used: more than the ceiling, too.
    assert await uses(world, REQUESTS, TOKENS, SLOTS) == [1, tokens, 0]


async def test_each_unit_is_settled_by_its_own_number(world: World) -> None:
    limits = [
        Limit(name=unit, unit=unit, window=window, ceiling=1000, seconds=3600)
        for unit in Unit
        if unit is not Unit.CONCURRENT_REQUESTS
        for window in (Window.SLIDING, Window.CALENDAR_MONTH)
    ]
    asked = Charges(requests=1, input_tokens=20, output_tokens=300, tokens=320, cost=44)
    fact = Charges(requests=0, input_tokens=21, output_tokens=301, tokens=322, cost=45)
    for index in range(2):
        counted = held(*limits[index::2], subject=f"tenant:{index}")
        answer = await reserved(world, f"{index}", counted, asked)
        assert answer.taken == msgspec.structs.astuple(asked)
        assert await world.reservations.settle(settlement(f"{index}", fact))
        standings = await world.reservations.standings("org_a", counted)
        assert tuple(standing.used for standing in standings) == msgspec.structs.astuple(fact)
        assert [standing.reserved for standing in standings] == [0] * 5


async def test_nothing_is_left_of_a_request_that_counts_nothing(world: World) -> None:
    await reserved(world, "a", ALL, amounts(400))
    assert await world.reservations.settle(settlement("a", NOTHING))
    assert await world.reservations.standings("org_a", ALL) == (Standing(used=0, reserved=0, reset_ms=0),) * 3


async def test_a_request_is_settled_once_and_leaves_one_event(world: World) -> None:
    first = await reserved(world, "a", held(TOKENS), amounts(400))
    answers = await asyncio.gather(
        *(world.reservations.settle(settlement("a", amounts(tokens))) for tokens in (7, 8, 9))
    )
    assert sorted(answers) == [False, False, True]
    assert not await world.reservations.settle(settlement("a", amounts(10), admission=b"copy"))
    [event] = await all_events(world.events)
    assert (event.admission, event.ending, event.reserved_ms) == (b"admission of a", b"ending of a", first.at_ms)
    assert await used(world.reservations, TOKENS) == 7 + answers.index(True)
    assert await world.reservations.progress([("org_a", "a")]) == [None]


async def test_an_unknown_request_is_left_alone(world: World) -> None:
    assert not await world.reservations.settle(settlement("a", amounts(10)))
    assert not await world.reservations.settle(settlement("a", amounts(10), only_if_overdue=True))
    assert not await world.reservations.release("org_a", "a")
    assert await world.reservations.renew("org_a", "a", lease_ms=1000, progress=progress(1)) is None
    assert await all_events(world.events) == []


async def test_a_request_the_store_has_lost_is_settled_once_from_the_settlers_copy(world: World) -> None:
    lost = settlement("a", amounts(10), admission=b"the copy")
    assert await world.reservations.settle(lost)
    assert not await world.reservations.settle(lost)
    [event] = await all_events(world.events)
    assert (event.admission, event.ending, event.reserved_ms) == (b"the copy", b"ending of a", None)


@pytest.mark.parametrize(("copy", "told"), [(b"the copy", b"the copy"), (None, b"admission of a")])
async def test_the_settlers_copy_of_the_admission_wins_for_it_may_know_more(
    world: World, copy: bytes | None, told: bytes
) -> None:
    await reserved(world, "a", NONE)
    assert await world.reservations.settle(settlement("a", admission=copy))
    assert [event.admission for event in await all_events(world.events)] == [told]


async def test_a_reservation_that_comes_after_its_release_takes_nothing(world: World) -> None:
    assert not await world.reservations.release("org_a", "a")
    late = await world.reservations.reserve(claim("a", ALL))
    assert isinstance(late, Reservation)
    assert (late.taken, late.standings) == ((), ())
    assert await uses(world, REQUESTS, TOKENS, SLOTS) == [0, 0, 0]
    assert await world.reservations.overdue(limit=10) == []


async def test_releasing_undoes_everything_without_an_event(world: World) -> None:
    await reserved(world, "a", ALL, amounts(400))
    assert await world.reservations.release("org_a", "a")
    assert not await world.reservations.release("org_a", "a")
    assert not await world.reservations.settle(settlement("a", amounts(10)))
    assert await uses(world, REQUESTS, TOKENS, SLOTS) == [0, 0, 0]
    assert await all_events(world.events) == []
    # As if it had never been: it may come again.
    await reserved(world, "a", held(REQUESTS))


async def test_a_settled_request_cannot_be_released(world: World) -> None:
    await reserved(world, "a", held(REQUESTS))
    assert await world.reservations.settle(settlement("a"))
    assert not await world.reservations.release("org_a", "a")
    assert await used(world.reservations, REQUESTS) == 1
    assert not await world.reservations.settle(settlement("a", admission=b"copy"))


async def test_a_settlement_after_the_window_has_moved_on_changes_nothing_in_it(world: World) -> None:
    limit = sliding(100, seconds=1, unit=Unit.TOKENS)
    await reserved(world, "old", held(limit), amounts(60))
    await world.pass_time(1100)
    await reserved(world, "new", held(limit), amounts(50))
    assert await world.reservations.settle(settlement("old", amounts(5)))
    assert await used(world.reservations, limit) == 50


@pytest.mark.parametrize("text", [b"", b"\0\xff\n", '{"model":"\N{SNOWMAN}"}'.encode(), b"x" * 100_000])
async def test_admission_and_ending_are_kept_as_they_are(world: World, text: bytes) -> None:
    await world.reservations.settle(settlement("a", ending=text, admission=b"copy" + text))
    [event] = await all_events(world.events)
    assert (event.admission, event.ending) == (b"copy" + text, text)


async def test_events_come_oldest_first_and_are_gone_once_acknowledged(world: World) -> None:
    names = ["a", "b", "c", "d"]
    for name in names:
        await world.reservations.settle(settlement(name, admission=name.encode()))
    found = await all_events(world.events)
    assert [event.admission.decode() for event in found] == names
    assert sorted({event.sequence for event in found}) == [event.sequence for event in found]
    assert await all_events(world.events) == []


async def test_a_request_that_has_ended_is_not_opened_again(world: World) -> None:
    # A call that was delayed somewhere may come after the end.
    for ended in ("reserved", "lost"):
        if ended == "reserved":
            await reserved(world, ended, held(TOKENS, SLOTS), amounts(400))
        assert await world.reservations.settle(settlement(ended, amounts(40), admission=b"copy"))
        await world.reservations.reserve(claim(ended, held(TOKENS, SLOTS), amounts(400)))
        assert await uses(world, TOKENS, SLOTS) == [40, 0]
        assert not await world.reservations.release("org_a", ended)
        assert not await world.reservations.settle(settlement(ended, amounts(40), admission=b"copy"))
    assert len(await all_events(world.events)) == 2


@pytest.mark.parametrize("change", [{"charged": amounts(7)}, {"charged": NOTHING}, {"ending": b"other"}])
async def test_the_second_settlement_does_nothing_whatever_it_says(world: World, change: dict[str, Any]) -> None:
    await reserved(world, "a", held(TOKENS), amounts(400))
    assert await world.reservations.settle(settlement("a", amounts(40)))
    second: Settlement = settlement("a", **change)
    assert not await world.reservations.settle(second)
    assert await used(world.reservations, TOKENS) == 40
    assert [event.ending for event in await all_events(world.events)] == [b"ending of a"]
