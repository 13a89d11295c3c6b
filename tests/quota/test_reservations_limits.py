"""Several limits on one request, in memory and over a real Redis: which is named, what is told, bursts, shadow mode."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from quota.applied import AppliedLimit, AppliedLimits
from quota.charges import NOTHING, Charges
from quota.limit import Limit, Mode, Unit, Window
from quota.memory import MemoryReservations
from quota.reservation import Exceeded, Reservation, Standing
from tests.quota.worlds import World, in_memory, used
from tests.support.values import Clock, amounts, claim, held, settlement, sliding, slots, tokens_a_day

DAY_MS = 86_400_000
HUGE = 10**15


def _changed(limit: Limit, **changes: Any) -> Limit:
    return msgspec.structs.replace(limit, **changes)


def _in_shadow(limit: Limit) -> Limit:
    return _changed(limit, mode=Mode.SHADOW)


def _bursting(burst: int, *, ceiling: int = 100, seconds: int = 10) -> Limit:
    return _changed(sliding(ceiling, seconds=seconds, unit=Unit.TOKENS, name="bursting"), burst=burst)


async def _ask(
    world: World, request_id: str, limits: AppliedLimits, asked: Charges | None = None, **changes: Any
) -> Reservation | Exceeded:
    return await world.reservations.reserve(claim(request_id, limits, asked, **changes))


async def _named(world: World, *limits: Limit, asked: Charges | None = None) -> str:
    answer = await _ask(world, "asks", held(*limits), asked)
    assert isinstance(answer, Exceeded)
    return answer.limit.limit.name


async def _fill(world: World, *limits: Limit) -> None:
    for limit in limits:
        await _ask(world, f"fills {limit.name}", held(limit), amounts(limit.ceiling))


async def test_of_all_that_refuse_the_highest_priority_is_named(world: World) -> None:
    day, minute, slot = tokens_a_day(10), sliding(1), slots(1, name="slot")
    await _fill(world, day, minute, slot)
    assert await _named(world, minute, _changed(slot, priority=1), day) == "slot"
    assert await _named(world, _changed(slots(0, name="never"), priority=-1), slot) == "slot"


async def test_of_one_priority_what_can_never_fit_is_named_before_what_holds_longest(world: World) -> None:
    day, minute, slot = tokens_a_day(10), sliding(1), slots(1, name="slot")
    await _fill(world, day, minute, slot)
    assert await _named(world, day, sliding(0, name="never"), slots(0, name="never, too")) == "never"
    month = Limit(name="month", unit=Unit.TOKENS, window=Window.CALENDAR_MONTH, ceiling=10)
    await _fill(world, month)
    assert await _named(world, slot, minute) == "sliding"
    assert await _named(world, slot, slots(0, name="never"), minute) == "never"
    assert await _named(world, minute, month, slot) == "month"


async def test_what_can_never_fit_has_no_time_to_retry(world: World) -> None:
    for limit in (tokens_a_day(1000), sliding(1000, unit=Unit.TOKENS)):
        for asked in (amounts(1001), amounts(5000)):
            answer = await _ask(world, "a", held(limit), asked, least=amounts(1001))
            assert isinstance(answer, Exceeded)
            assert answer.retry_after_ms is None


async def test_of_equals_the_first_is_named(world: World) -> None:
    assert await _named(world, slots(5), slots(0, name="one"), slots(0, name="other")) == "one"


async def test_a_refusal_tells_what_was_demanded_and_how_all_limits_stand(world: World) -> None:
    day, minute = tokens_a_day(100), sliding(5)
    await _ask(world, "a", held(day, minute), amounts(60))
    await _ask(world, "b", held(day, minute), amounts(30))
    await world.reservations.settle(settlement("a", amounts(50)))
    answer = await _ask(world, "c", held(minute, day, slots(2)), amounts(90), least=amounts(40))
    assert isinstance(answer, Exceeded)
    assert (answer.limit, answer.used, answer.demanded) == (AppliedLimit(day, "tenant:ten_a"), 80, 40)
    assert [(each.used, each.reserved) for each in answer.standings] == [(2, 1), (80, 30), (0, 0)]


async def test_an_answer_tells_how_each_limit_stands_and_so_does_asking_for_it(world: World) -> None:
    limits = held(sliding(5, seconds=3600), tokens_a_day(1000), slots(3), sliding(9, name="idle"))
    answer = await _ask(world, "a", AppliedLimits(limits.limits[:3]), amounts(60))
    assert isinstance(answer, Reservation)
    told = await world.reservations.standings("org_a", limits)
    assert [(each.used, each.reserved) for each in told] == [(1, 1), (60, 60), (1, 1), (0, 0)]
    assert [(each.used, each.reserved) for each in answer.standings] == [(1, 1), (60, 60), (1, 1)]
    assert [each.reset_ms for each in told[2:]] == [0, 0]
    hour, day = (each.reset_ms for each in answer.standings[:2])
    assert 3_600_000 < hour <= 3_660_000
    assert (answer.at_ms + day) % DAY_MS == 0
    again = await world.reservations.standings("org_a", limits)
    assert [(each.used, each.reserved) for each in again] == [(each.used, each.reserved) for each in told]


async def test_a_window_is_empty_when_it_was_said_to_be(world: World) -> None:
    limits = held(sliding(5, seconds=1))
    await _ask(world, "a", limits)
    await world.pass_time(300)
    answer = await _ask(world, "b", limits)
    assert isinstance(answer, Reservation)
    [standing] = answer.standings
    await world.pass_time(standing.reset_ms - 100)
    assert await used(world.reservations, limits.limits[0].limit) == 1
    await world.pass_time(100)
    assert await world.reservations.standings("org_a", limits) == (Standing(used=0, reserved=0, reset_ms=0),)


async def test_a_limit_in_shadow_mode_counts_past_its_ceiling_and_never_refuses(world: World) -> None:
    shadows = [
        _in_shadow(tokens_a_day(50)),
        _in_shadow(sliding(1)),
        _in_shadow(slots(1)),
        tokens_a_day(500, name="real"),
    ]
    first = await _ask(world, "a", held(*shadows), amounts(40))
    second = await _ask(world, "b", held(*shadows), amounts(40), least=amounts(20))
    assert isinstance(first, Reservation)
    assert isinstance(second, Reservation)
    assert (first.shadowed, second.shadowed) == ((), (0, 1, 2))
    assert second.taken == (40, 1, 1, 40)
    assert [standing.used for standing in second.standings] == [80, 2, 2, 80]
    for name in ("a", "b"):
        await world.reservations.settle(settlement(name, amounts(7)))
    told = await world.reservations.standings("org_a", held(*shadows))
    assert [standing.used for standing in told] == [14, 2, 0, 14]


async def test_a_limit_in_shadow_mode_does_not_lessen_what_is_taken_under_others(world: World) -> None:
    limits = held(_in_shadow(tokens_a_day(50)), tokens_a_day(500, name="real"))
    answer = await _ask(world, "a", limits, amounts(100), least=amounts(20))
    assert isinstance(answer, Reservation)
    assert (answer.taken, answer.shadowed) == ((100, 100), ())


async def test_a_refused_request_is_not_counted_in_shadow_mode_either(world: World) -> None:
    answer = await _ask(world, "a", held(_in_shadow(sliding(0)), slots(0)))
    assert isinstance(answer, Exceeded)
    assert answer.limit.limit.name == "slots"
    assert await used(world.reservations, sliding(0)) == 0


async def test_a_burst_is_the_most_at_once_and_comes_back_evenly(world: World) -> None:
    limits = held(_bursting(20))  # and ten a second
    assert isinstance(await _ask(world, "a", limits, amounts(20)), Reservation)
    answer = await _ask(world, "b", limits, amounts(5))
    assert isinstance(answer, Exceeded)
    assert (answer.used, answer.demanded) == (20, 5)
    assert answer.retry_after_ms is not None
    assert 0 < answer.retry_after_ms <= 500
    await world.pass_time(answer.retry_after_ms)
    assert isinstance(await _ask(world, "b", limits, amounts(5)), Reservation)


async def test_an_amount_is_capped_to_what_the_burst_leaves(world: World) -> None:
    answer = await _ask(world, "a", held(_bursting(20)), amounts(90), least=amounts(10))
    assert isinstance(answer, Reservation)
    assert answer.taken == (20,)


@pytest.mark.parametrize(("least", "fits"), [(20, True), (21, False), (100, False)])
async def test_more_than_a_burst_never_fits(world: World, least: int, *, fits: bool) -> None:
    answer = await _ask(world, "a", held(_bursting(20)), amounts(least))
    assert isinstance(answer, Reservation) is fits
    assert isinstance(answer, Reservation) or answer.retry_after_ms is None


async def test_a_burst_larger_than_the_ceiling_changes_nothing(world: World) -> None:
    answer = await _ask(world, "a", held(_bursting(500)), amounts(200), least=amounts(1))
    assert isinstance(answer, Reservation)
    assert answer.taken == (100,)


async def test_what_settling_gives_back_may_burst_again(world: World) -> None:
    limits = held(_bursting(20, seconds=3600))
    await _ask(world, "a", limits, amounts(20))
    await world.reservations.settle(settlement("a", NOTHING))
    answer = await _ask(world, "b", limits, amounts(20), least=amounts(19))
    assert isinstance(answer, Reservation)
    assert answer.taken[0] >= 19


async def test_what_was_used_beyond_the_reservation_fills_the_bucket_and_no_more(world: World) -> None:
    limits = held(_bursting(20))
    await _ask(world, "a", limits, amounts(20))
    await world.reservations.settle(settlement("a", amounts(30)))
    answer = await _ask(world, "b", limits, amounts(20))
    assert isinstance(answer, Exceeded)
    assert answer.retry_after_ms is not None
    assert 1000 < answer.retry_after_ms <= 2000


async def test_what_has_drained_cannot_be_given_back_as_well() -> None:
    world = in_memory()
    limits = held(_bursting(100))
    await _ask(world, "early", limits, amounts(50))
    await world.pass_time(5000)  # it has all drained
    await _ask(world, "late", limits, amounts(50))
    await world.reservations.settle(settlement("early", NOTHING))
    answer = await _ask(world, "asks", limits, amounts(51))
    assert isinstance(answer, Exceeded)


async def test_integers_stay_whole_however_large(world: World) -> None:
    limits = held(*(
        Limit(name=window, unit=Unit.COST, window=window, ceiling=2 * HUGE + 1, seconds=60)
        for window in (Window.SLIDING, Window.CALENDAR_HOUR, Window.CALENDAR_DAY, Window.CALENDAR_MONTH)
    ))  # fmt: skip
    answer = await _ask(world, "a", limits, amounts(cost=HUGE + 1))
    assert isinstance(answer, Reservation)
    assert answer.taken == (HUGE + 1,) * 4
    assert isinstance(await _ask(world, "b", limits, amounts(cost=HUGE)), Reservation)
    refused = await _ask(world, "c", limits, amounts(cost=1))
    assert isinstance(refused, Exceeded)
    assert refused.used == 2 * HUGE + 1
    await world.reservations.settle(settlement("a", amounts(cost=HUGE - 1)))
    told = await world.reservations.standings("org_a", limits)
    assert [(standing.used, standing.reserved) for standing in told] == [(2 * HUGE - 1, HUGE)] * 4
    await world.reservations.release("org_a", "b")
    assert [standing.used for standing in await world.reservations.standings("org_a", limits)] == [HUGE - 1] * 4


async def test_the_first_request_of_a_fresh_key_passes_when_the_ceiling_covers_its_input(world: World) -> None:
    limits = held(tokens_a_day(120), _bursting(100), slots(1), sliding(1))
    asked, least = amounts(100 + 4096), amounts(100)
    answer = await _ask(world, "first", limits, asked, least=least)
    assert isinstance(answer, Reservation)
    assert answer.taken == (120, 100, 1, 1)


async def test_tenants_with_days_of_their_own_share_a_counter_of_their_organization(world: World) -> None:
    shared = AppliedLimit(tokens_a_day(100), "organization:org_a", shared=True)
    for name, time_zone in (("a", "Asia/Tokyo"), ("b", "America/Los_Angeles"), ("c", "Pacific/Apia")):
        assert isinstance(await _ask(world, name, AppliedLimits((shared,), time_zone), amounts(40)), Reservation) is (
            name != "c"
        )


def _at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("window", "time_zone", "full_at", "free_at"),
    [
        (Window.CALENDAR_HOUR, "UTC", "2026-03-01T10:59:59.999", "2026-03-01T11:00:00"),
        (Window.CALENDAR_HOUR, "Asia/Kolkata", "2026-03-01T10:29:59.999", "2026-03-01T10:30:00"),
        (Window.CALENDAR_DAY, "Asia/Tokyo", "2026-03-01T14:59:59.999", "2026-03-01T15:00:00"),
        (Window.CALENDAR_DAY, "Europe/Berlin", "2026-03-29T21:59:59.999", "2026-03-29T22:00:00"),  # of 23 hours
        (Window.CALENDAR_DAY, "Europe/Berlin", "2026-10-25T22:59:59.999", "2026-10-25T23:00:00"),  # of 25
        (Window.CALENDAR_MONTH, "America/New_York", "2026-03-01T04:59:59.999", "2026-03-01T05:00:00"),
        (Window.CALENDAR_MONTH, "UTC", "2028-02-29T23:59:59.999", "2028-03-01T00:00:00"),
    ],
)
async def test_a_calendar_window_is_full_until_the_clock_of_the_tenant_says_so(
    window: Window, time_zone: str, full_at: str, free_at: str
) -> None:
    clock = Clock(_at(full_at) - 600_000)
    reservations = MemoryReservations(clock.now_ms)
    limit = Limit(name="budget", unit=Unit.TOKENS, window=window, ceiling=10)
    limits = held(limit, time_zone=time_zone)
    await reservations.reserve(claim("a", limits, amounts(10)))
    clock.ms = _at(full_at)
    answer = await reservations.reserve(claim("b", limits))
    assert isinstance(answer, Exceeded)
    assert answer.retry_after_ms == answer.standings[0].reset_ms == 1
    clock.ms = _at(free_at)
    assert isinstance(await reservations.reserve(claim("b", limits)), Reservation)
    # What settles after its period was of that period.
    assert await reservations.settle(settlement("a", amounts(99)))
    assert reservations.used(limits.limits[0], time_zone) == 1
