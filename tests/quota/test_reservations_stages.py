"""The steps of a request's life, in memory and over a real Redis: each is possible or changes nothing, and is told."""

import asyncio
from typing import Any

import pytest

from extproc.lifecycle import FINAL, LIVE, State, predecessors
from quota.reservation import Known, Progress
from tests.quota.worlds import World, all_events, refused, reserved, uses
from tests.support.values import amounts, claim, held, settlement, sliding, slots, tokens_a_day

TOKENS, SLOTS = tokens_a_day(1000), slots(2)
BOTH = held(TOKENS, SLOTS)
LEASE_MS = 60_000


def step(state: State, *, events: int = 0) -> Progress:
    """A step as the gateway takes it; its event is the name of the state."""
    return Progress(stage=state, after=predecessors(state), events=events, event=state.encode())


async def admitted(world: World, name: str = "a", **changes: Any) -> None:
    await reserved(world, name, BOTH, amounts(100), stage=State.ADMITTED, event=b"admitted", **changes)


async def move(world: World, state: State, name: str = "a", *, events: int = 0) -> str | None:
    return await world.reservations.renew("org_a", name, lease_ms=LEASE_MS, progress=step(state, events=events))


async def end(world: World, state: State = State.COMPLETED, name: str = "a", **changes: Any) -> bool:
    return await world.reservations.settle(settlement(name, amounts(7), progress=step(state), **changes))


async def known(world: World, name: str = "a") -> Known:
    found = await world.reservations.find("org_a", name)
    assert found is not None
    return found


async def test_every_step_is_told_in_its_order(world: World) -> None:
    await admitted(world)
    for state in (State.DISPATCHED, State.STREAMING):
        assert await move(world, state) == ""
        found = await known(world)
        assert (found.stage, found.step) == (state, state.encode())
    assert await end(world)
    assert (await known(world)).step == b""
    assert await world.log() == [b"admitted", b"dispatched", b"streaming", b"completed"]


async def test_a_step_taken_again_is_told_once(world: World) -> None:
    await admitted(world)
    await admitted(world)
    for _ in range(3):
        await move(world, State.STREAMING)
    for _ in range(3):
        await end(world)
    assert await world.log() == [b"admitted", b"streaming", b"completed"]


async def test_a_request_that_finds_no_room_is_not_admitted(world: World) -> None:
    full = held(tokens_a_day(0))
    await refused(world, "a", full, stage=State.ADMITTED, event=b"admitted")
    assert await world.log() == []
    assert await world.reservations.find("org_a", "a") is None
    assert await world.reservations.open_of("org_a", "ten_a", limit=10) == []


async def test_what_has_no_event_is_not_told(world: World) -> None:
    await reserved(world, "a", BOTH)
    await world.reservations.settle(settlement("a"))
    assert await world.log() == []


@pytest.mark.parametrize("stage", sorted(LIVE))
@pytest.mark.parametrize("following", sorted(set(State)))
async def test_an_impossible_step_changes_nothing_but_the_lease(world: World, stage: State, following: State) -> None:
    possible = stage in predecessors(following)
    await reserved(world, "a", BOTH, amounts(100), stage=stage, lease_ms=30)
    assert await move(world, following, events=4) == ""
    found = await known(world)
    assert found.stage == (following if possible else stage)
    assert found.events == 4, "it is alive, whatever it says"
    assert await world.log() == ([following.encode()] if possible else [])
    await world.pass_time(31)
    assert await world.reservations.overdue(limit=10) == []


@pytest.mark.parametrize("stage", sorted(set(State) - LIVE))
@pytest.mark.parametrize("final", sorted(FINAL))
@pytest.mark.parametrize("copy", [None, b"copy"])
async def test_an_impossible_end_changes_nothing(world: World, stage: State, final: State, copy: bytes | None) -> None:
    possible = stage in predecessors(final)
    await reserved(world, "a", BOTH, amounts(100), stage=stage)
    before = await known(world)
    assert await end(world, final, admission=copy) is possible
    if not possible:
        assert await known(world) == before
        assert await uses(world, TOKENS, SLOTS) == [100, 1]
        assert (await world.log(), await all_events(world.events)) == ([], [])


async def test_a_request_without_a_stage_takes_any_step(world: World) -> None:
    # The version before wrote none.
    await reserved(world, "a", BOTH)
    assert await move(world, State.STREAMING) == ""
    assert (await known(world)).stage == State.STREAMING
    await reserved(world, "b", BOTH)
    assert await end(world, State.FAILED, "b")


async def test_a_request_that_was_released_has_left_no_trace_but_what_was_told(world: World) -> None:
    await admitted(world)
    assert await world.reservations.release("org_a", "a")
    assert await world.reservations.find("org_a", "a") is None
    assert await world.reservations.open_of("org_a", "ten_a", limit=10) == []
    assert await move(world, State.DISPATCHED) is None
    assert await world.log() == [b"admitted"]


async def test_an_open_request_is_found_as_it_stands(world: World) -> None:
    before = await world.now_ms()
    await admitted(world)
    await move(world, State.STREAMING, events=9)
    await move(world, State.STREAMING, events=5)
    found = await known(world)
    assert found.at_ms is not None
    assert before <= found.at_ms <= await world.now_ms()
    assert found == Known(
        request_id="a",
        admission=b"admission of a",
        stage=State.STREAMING,
        events=9,
        at_ms=found.at_ms,
        step=b"streaming",
    )


async def test_a_settled_request_is_found_until_the_ledger_has_it(world: World) -> None:
    admission = b'{"request_id":"a","tenant_id":"ten_a"}'
    await admitted(world, admission=admission)
    await move(world, State.STREAMING, events=9)
    await world.reservations.stop("org_a", "a", why="client_cancel")
    at_ms = (await known(world)).at_ms
    assert await end(world, State.CANCELLED, admission=admission)
    settled = Known(
        request_id="a",
        admission=admission,
        stage=State.CANCELLED,
        events=9,
        at_ms=at_ms,
        ending=b"ending of a",
    )
    assert await known(world) == settled
    assert await world.reservations.open_of("org_a", "ten_a", limit=10) == [settled]
    await all_events(world.events)
    assert await world.reservations.find("org_a", "a") is None
    assert await world.reservations.open_of("org_a", "ten_a", limit=10) == []
    assert not await end(world, State.CANCELLED, admission=admission), "it is still known to have ended"


async def test_a_request_the_store_has_lost_is_found_when_it_is_settled(world: World) -> None:
    assert await end(world, admission=b"the copy")
    found = await known(world)
    assert (found.admission, found.at_ms, found.stage) == (b"the copy", None, State.COMPLETED)
    assert [each.request_id for each in await world.reservations.open_of("org_a", "ten_a", limit=10)] == ["a"]
    assert await world.log() == [b"completed"]


async def test_nothing_is_found_of_a_request_that_nobody_knows(world: World) -> None:
    assert await world.reservations.find("org_a", "a") is None
    assert await world.reservations.open_of("org_a", "ten_a", limit=10) == []


async def test_a_tenants_requests_are_listed_the_latest_first(world: World) -> None:
    for number in range(5):
        await reserved(world, f"r{number}", held())
        await world.pass_time(2)
    await reserved(world, "other", held(), tenant_id="ten_b")
    await world.reservations.settle(settlement("r3"))
    ids = [each.request_id for each in await world.reservations.open_of("org_a", "ten_a", limit=4)]
    assert ids == ["r4", "r3", "r2", "r1"]
    assert [each.request_id for each in await world.reservations.open_of("org_a", "ten_b", limit=4)] == ["other"]
    assert await world.reservations.open_of("org_a", "ten_a", limit=0) == []


async def test_a_stop_is_told_to_whoever_renews_and_the_first_reason_stays(world: World) -> None:
    await admitted(world, lease_ms=0)
    for why in ("admin_cancel", "client_cancel"):
        assert await world.reservations.stop("org_a", "a", why=why)
    assert (await known(world)).stopping == "admin_cancel"
    assert [late.stopping for late in await world.reservations.overdue(limit=10)] == ["admin_cancel"]
    assert await move(world, State.STREAMING) == "admin_cancel"
    assert (await known(world)).stage == State.STREAMING, "it runs until it is stopped"


async def test_only_a_request_that_runs_can_be_stopped(world: World) -> None:
    assert not await world.reservations.stop("org_a", "a", why="revoked")
    await admitted(world)
    await end(world)
    assert not await world.reservations.stop("org_a", "a", why="revoked")
    assert not await world.reservations.release("org_a", "b")
    assert not await world.reservations.stop("org_a", "b", why="revoked")
    assert (await known(world)).stopping == ""


async def test_of_an_end_and_a_stop_at_once_each_sees_the_other_or_comes_first(world: World) -> None:
    for number in range(10):
        await admitted(world, f"r{number}")
        stopped, ended = await asyncio.gather(
            world.reservations.stop("org_a", f"r{number}", why="revoked"), end(world, name=f"r{number}")
        )
        assert ended
        assert not await world.reservations.stop("org_a", f"r{number}", why="revoked"), stopped


async def test_a_claim_for_an_ended_request_tells_nothing(world: World) -> None:
    await end(world, admission=b"copy")
    await world.reservations.reserve(claim("a", held(sliding(1)), stage=State.ADMITTED, event=b"admitted"))
    assert await world.log() == [b"completed"]
    assert (await known(world)).stage == State.COMPLETED
