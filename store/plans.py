"""Which plans are there, and what limits does each put on its tenants?"""

from dataclasses import dataclass
from functools import lru_cache

import asyncpg
import msgspec

from authz.grant import Metering
from quota.limit import Limit, Window
from store.database import Pool, outages_named
from store.field_error import FieldError
from store.name import checked

_LIMITS = msgspec.json.Decoder(tuple[Limit, ...])
_SELECT = "SELECT name, limits, metering FROM plans"
_PUT = """
INSERT INTO plans (name, limits, metering) VALUES ($1, $2::jsonb, $3)
ON CONFLICT (name) DO UPDATE SET limits = excluded.limits, metering = excluded.metering"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a tenant may use, and how its streams are metered."""

    name: str
    limits: tuple[Limit, ...]
    metering: Metering = Metering.NATIVE


@lru_cache(maxsize=1000)
def decode_limits(text: str) -> tuple[Limit, ...]:
    """Read `plans.limits`; `msgspec.MsgspecError` when it is not a list of limits."""
    return _LIMITS.decode(text)


async def list_plans(pool: Pool) -> list[Plan]:
    """Return every plan, by name."""
    with outages_named():
        return [_plan(row) for row in await pool.fetch(f"{_SELECT} ORDER BY name")]


async def get(pool: Pool, name: str) -> Plan:
    """Return the plan; raises `FieldError` when there is none of this name."""
    with outages_named():
        row = await pool.fetchrow(f"{_SELECT} WHERE name = $1", name)
    if row is None:
        raise await unknown_plan(pool, name)
    return _plan(row)


async def put(pool: Pool, plan: Plan) -> None:
    """Create the plan, or change it for all its tenants; raises `FieldError` when it makes no sense."""
    checked("plan", plan.name)
    for limit in plan.limits:
        _check(limit)
    if len({limit.name for limit in plan.limits}) != len(plan.limits):
        raise FieldError("limits", "two limits have the same name")
    with outages_named():
        await pool.execute(_PUT, plan.name, msgspec.json.encode(plan.limits).decode(), plan.metering)


async def unknown_plan(pool: Pool, name: str) -> FieldError:
    """Make the error for a plan that does not exist; it names those that do."""
    known = ", ".join(plan.name for plan in await list_plans(pool))
    return FieldError("plan", f"there is no plan {name!r}; there are: {known}")


def _check(limit: Limit) -> None:
    if limit.ceiling < 0:
        raise FieldError("limits", f"the ceiling of {limit.name} is below zero")
    if limit.window is Window.SLIDING and limit.seconds < 1:
        raise FieldError("limits", f"{limit.name} has a sliding window and needs its length in seconds")


def _plan(row: asyncpg.Record) -> Plan:
    return Plan(name=row["name"], limits=decode_limits(row["limits"]), metering=Metering(row["metering"]))
