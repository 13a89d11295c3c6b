"""Leases, in memory and over a real Redis: how long a slot is held, and who is not reported any more."""

from tests.quota.worlds import World, all_events, refused, reserved, used, uses
from tests.support.values import amounts, held, progress, settlement, slots, tokens_a_day

TOKENS = tokens_a_day(1000)
SLOTS = slots(2)
NONE = held()


async def test_a_slot_is_worth_asking_for_again_soon(world: World) -> None:
    limit = slots(1)
    await reserved(world, "a", held(limit))
    assert (await refused(world, "b", held(limit))).retry_after_ms == 1000


async def test_a_slot_ends_with_its_lease_and_the_request_stays_open(world: World) -> None:
    limit = slots(1)
    await reserved(world, "a", held(limit), lease_ms=30)
    await world.pass_time(31)
    await reserved(world, "b", held(limit))
    assert await world.reservations.progress([("org_a", "a"), ("org_a", "b")]) == [0, 0]


async def test_only_if_overdue_leaves_a_running_lease_alone(world: World) -> None:
    await reserved(world, "a", held(SLOTS, TOKENS), amounts(400), lease_ms=300)
    sweep = settlement("a", amounts(1), only_if_overdue=True)
    assert not await world.reservations.settle(sweep)
    assert await uses(world, SLOTS, TOKENS) == [1, 400]
    await world.pass_time(301)
    assert await world.reservations.settle(sweep)
    assert not await world.reservations.settle(sweep)
    assert await uses(world, SLOTS, TOKENS) == [0, 1]
    assert len(await all_events(world.events)) == 1


async def test_renewing_keeps_the_slot_and_the_lease(world: World) -> None:
    limit = slots(1)
    await reserved(world, "a", held(limit), lease_ms=200)
    assert await world.reservations.renew("org_a", "a", lease_ms=60_000, progress=progress(3)) == ""
    await world.pass_time(250)
    assert (await refused(world, "b", held(limit))).used == 1
    assert await world.reservations.overdue(limit=10) == []
    assert not await world.reservations.settle(settlement("a", only_if_overdue=True))


async def test_a_settled_request_cannot_be_renewed(world: World) -> None:
    await reserved(world, "a", held(SLOTS))
    await world.reservations.settle(settlement("a"))
    assert await world.reservations.renew("org_a", "a", lease_ms=60_000, progress=progress(3)) is None
    assert await used(world.reservations, SLOTS) == 0
    assert await world.reservations.overdue(limit=10) == []


async def test_overdue_names_who_is_not_reported_any_more_with_the_furthest_progress(world: World) -> None:
    await reserved(world, "fresh", NONE)
    await reserved(world, "silent", NONE, lease_ms=20)
    await reserved(world, "stopped", NONE, lease_ms=20)
    for events in (4, 9, 6):  # entries of the access log may overtake each other
        assert await world.reservations.renew("org_a", "stopped", lease_ms=20, progress=progress(events)) == ""
    await reserved(world, "ended", NONE, lease_ms=20)
    await world.reservations.settle(settlement("ended"))
    await world.pass_time(21)
    found = {late.request_id: (late.admission, late.events) for late in await world.reservations.overdue(limit=10)}
    assert found == {"silent": (b"admission of silent", 0), "stopped": (b"admission of stopped", 9)}
    assert len(await world.reservations.overdue(limit=1)) == 1
    assert len(await world.reservations.overdue(limit=10)) == 2, "asking changes nothing"


async def test_progress_answers_in_the_order_of_the_question(world: World) -> None:
    await reserved(world, "a", NONE)
    await reserved(world, "b", NONE)
    await world.reservations.settle(settlement("b"))
    asked = [("org_a", request_id) for request_id in ("b", "a", "unknown", "a")]
    assert await world.reservations.progress(asked) == [None, 0, None, 0]
    assert await world.reservations.progress([]) == []


async def test_who_is_reported_again_after_its_lease_holds_its_slot_again_even_above_the_ceiling(world: World) -> None:
    limit = slots(1)
    await reserved(world, "silent", held(limit), lease_ms=0)
    await reserved(world, "next", held(limit))
    assert await world.reservations.renew("org_a", "silent", lease_ms=60_000, progress=progress(1)) == ""
    assert (await refused(world, "third", held(limit))).used == 2
    await world.reservations.settle(settlement("next"))
    assert (await refused(world, "third", held(limit))).used == 1, "as long as it runs"
