"""Plans: what is made is found, what changes is audited, and limits that make no sense are refused."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from authz.caps import NO_CAPS, Caps
from authz.principal import Metering
from quota.limit import Limit, concurrent_requests, requests_per_minute, tokens_per_day
from store import plans, tenants
from store.database import Pool
from store.plans import Plan, PlanChanges, find_plan, list_plans
from store.tenants import NewTenant
from tests.support.identity_rows import NOON, TRAIL, audited
from tests.support.refused import refused

TAILORED = Plan(name="tailored", limits=(requests_per_minute(1), concurrent_requests(2)))


async def update(pool: Pool, **changes: Any) -> Plan:
    return await plans.update(pool, "tailored", PlanChanges(**changes), trail=TRAIL)


async def test_the_shipped_plans(pool: Pool) -> None:
    shipped = {plan.name: {limit.name: limit.ceiling for limit in plan.limits} for plan in await list_plans(pool)}
    per = ("requests_per_minute", "requests_per_hour", "concurrent_requests")
    assert {name: tuple(limits[one] for one in per) for name, limits in shipped.items()} == {
        "free": (10, 100, 2),
        "pro": (100, 1_000, 10),
        "enterprise": (1_000, 10_000, 50),
    }


async def test_every_shipped_plan_can_be_written_as_it_is(pool: Pool) -> None:
    for plan in await list_plans(pool):
        await plans.put(pool, plan, trail=TRAIL)
    assert await audited(pool) == []


async def test_one_is_created_and_found(pool: Pool) -> None:
    assert await plans.create(pool, TAILORED, trail=TRAIL) == TAILORED == await find_plan(pool, "tailored")
    await refused(plans.create(pool, TAILORED, trail=TRAIL), "plan", "already")
    await refused(find_plan(pool, "gold"), "plan", "gold", "enterprise, free, pro, tailored")
    [change] = await audited(pool)
    assert (change["action"], change["subject"]) == ("plan.create", "plan:tailored")
    assert change["after"]["limits"][0]["ceiling"] == 1


async def test_what_is_put_is_there(pool: Pool) -> None:
    await plans.put(pool, TAILORED, trail=TRAIL)
    changed = Plan(name="tailored", limits=(), metering=Metering.INLINE)
    await plans.put(pool, changed, trail=TRAIL)
    await plans.put(pool, changed, trail=TRAIL)
    assert await find_plan(pool, "tailored") == changed
    assert [change["action"] for change in await audited(pool)] == ["plan.create", "plan.update"]


async def test_what_is_changed_is_changed_and_the_rest_stays(pool: Pool) -> None:
    await plans.create(pool, TAILORED, trail=TRAIL)
    assert await update(pool, metering=Metering.INLINE) == Plan(
        name="tailored", limits=TAILORED.limits, metering=Metering.INLINE
    )
    after = await update(pool, limits=(tokens_per_day(5),))
    assert after == Plan(name="tailored", limits=(tokens_per_day(5),), metering=Metering.INLINE)
    assert after == await find_plan(pool, "tailored") == await update(pool, limits=after.limits) == await update(pool)
    assert [set(change["after"]) for change in (await audited(pool))[1:]] == [{"metering"}, {"limits"}]


async def test_changes_at_once_are_all_made(pool: Pool) -> None:
    await plans.create(pool, TAILORED, trail=TRAIL)
    await asyncio.gather(update(pool, metering=Metering.INLINE), update(pool, limits=()))
    assert await find_plan(pool, "tailored") == Plan(name="tailored", limits=(), metering=Metering.INLINE)


async def test_one_with_tenants_stays_and_names_them(pool: Pool) -> None:
    await plans.create(pool, TAILORED, trail=TRAIL)
    for n in range(7):
        new = NewTenant(name=f"t{n}", organization="acme", plan="tailored")
        await tenants.create(pool, new, trail=TRAIL)
    await refused(plans.delete(pool, "tailored", trail=TRAIL), "plan", "acme/t0, acme/t1", "and 2 more")
    assert await find_plan(pool, "tailored") == TAILORED


async def test_one_without_tenants_is_deleted(pool: Pool) -> None:
    await plans.create(pool, TAILORED, trail=TRAIL)
    assert await plans.delete(pool, "tailored", trail=TRAIL) == TAILORED
    for gone in (find_plan(pool, "tailored"), update(pool), plans.delete(pool, "tailored", trail=TRAIL)):
        await refused(gone, "plan", "tailored")
    change = (await audited(pool))[-1]
    assert (change["action"], change["before"]["metering"], change["after"]) == ("plan.delete", "native", None)


async def test_one_that_a_deleted_tenant_was_on_stays_with_it(pool: Pool) -> None:
    await plans.create(pool, TAILORED, trail=TRAIL)
    new = NewTenant(name="search", organization="acme", plan="tailored")
    await tenants.create(pool, new, trail=TRAIL)
    await tenants.delete(pool, "search", now=NOON, trail=TRAIL)
    await refused(plans.delete(pool, "tailored", trail=TRAIL), "plan", "acme/search (deleted)")


async def test_a_tenant_made_while_its_plan_is_deleted_has_a_plan(pool: Pool) -> None:
    for n in range(5):
        name = f"plan{n}"
        await plans.create(pool, Plan(name=name, limits=()), trail=TRAIL)
        outcomes = await asyncio.gather(
            tenants.create(pool, NewTenant(name=name, organization="acme", plan=name), trail=TRAIL),
            plans.delete(pool, name, trail=TRAIL),
            return_exceptions=True,
        )
        assert [isinstance(outcome, Exception) for outcome in outcomes].count(True) == 1


DOUBLED = (requests_per_minute(1), requests_per_minute(2))


@pytest.mark.parametrize("limits", [DOUBLED, (requests_per_minute(-1),)], ids=["twice", "negative"])
async def test_limits_that_make_no_sense(pool: Pool, limits: tuple[Limit, ...]) -> None:
    await refused(plans.create(pool, Plan(name="odd", limits=limits), trail=TRAIL), "limits")
    await refused(plans.put(pool, Plan(name="odd", limits=limits), trail=TRAIL), "limits")
    await plans.create(pool, TAILORED, trail=TRAIL)
    await refused(update(pool, limits=limits), "limits")
    assert await find_plan(pool, "tailored") == TAILORED


async def test_a_plan_has_a_priority(pool: Pool) -> None:
    assert {plan.name: plan.priority for plan in await list_plans(pool)} == {"free": 1, "pro": 5, "enterprise": 9}
    made = await plans.create(pool, replace(TAILORED, priority=0), trail=TRAIL)
    assert made == await find_plan(pool, "tailored") == await update(pool, priority=0)
    assert (await update(pool, priority=9)).priority == (await update(pool, limits=())).priority == 9
    assert [set(change["after"]) for change in (await audited(pool))[1:]] == [{"priority"}, {"limits"}]
    await plans.put(pool, TAILORED, trail=TRAIL)
    assert await find_plan(pool, "tailored") == TAILORED


@pytest.mark.parametrize("priority", [-1, 10])
async def test_priorities_that_are_none(pool: Pool, priority: int) -> None:
    odd = Plan(name="odd", limits=(), priority=priority)
    await refused(plans.create(pool, odd, trail=TRAIL), "priority", "0 to 9")
    await refused(plans.put(pool, odd, trail=TRAIL), "priority")
    await plans.create(pool, TAILORED, trail=TRAIL)
    await refused(update(pool, priority=priority), "priority")


CAPPED = Caps(stream_seconds=600, output_tokens=4096, response_bytes=1_000_000)


async def test_a_plan_has_caps(pool: Pool) -> None:
    assert {plan.caps for plan in await list_plans(pool)} == {NO_CAPS}
    made = await plans.create(pool, replace(TAILORED, caps=CAPPED), trail=TRAIL)
    assert made == await find_plan(pool, "tailored") == await update(pool, output_tokens=4096)
    assert (await update(pool, stream_seconds=0)).caps == Caps(output_tokens=4096, response_bytes=1_000_000)
    assert (await update(pool, metering=Metering.INLINE)).caps == Caps(output_tokens=4096, response_bytes=1_000_000)
    changes = [(change["before"], change["after"]) for change in (await audited(pool))[1:]]
    assert changes[0] == ({"max_stream_seconds": 600}, {"max_stream_seconds": 0})
    assert [set(after) for _, after in changes] == [{"max_stream_seconds"}, {"metering"}]
    await plans.put(pool, TAILORED, trail=TRAIL)
    assert await find_plan(pool, "tailored") == TAILORED


@pytest.mark.parametrize(
    ("field", "most"), [("stream_seconds", 31 * 86_400), ("output_tokens", 10**9), ("response_bytes", 10**12)]
)
async def test_caps_have_bounds_and_the_field_is_named(pool: Pool, field: str, most: int) -> None:
    await plans.create(pool, TAILORED, trail=TRAIL)
    for odd in (-1, most + 1, 2**70):
        plan = Plan(name="odd", limits=(), caps=Caps(**{field: odd}))
        await refused(plans.create(pool, plan, trail=TRAIL), f"max_{field}", str(odd))
        await refused(plans.put(pool, plan, trail=TRAIL), f"max_{field}")
        await refused(update(pool, **{field: odd}), f"max_{field}")
    assert (await update(pool, **{field: most})).caps == Caps(**{field: most})
