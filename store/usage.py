"""How much was used? The ledger's rows, summed by day, model, principal, route or tenant."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from store.database import Pool, outages_named


class GroupBy(StrEnum):
    """What usage is summed by."""

    DAY = "day"
    MODEL = "model"
    PRINCIPAL = "principal"
    ROUTE = "route"
    TENANT = "tenant"


_SUM_SECONDS = 60.0  # a year of all tenants is of many rows
# A day is one of UTC: the tenants of a sum may be in several time zones. In the words of the statistics of revision
# 0005: what Postgres does not expect to be few groups, it sorts.
_GROUPS = {
    GroupBy.DAY: "(ended_at AT TIME ZONE 'UTC')::date",
    GroupBy.MODEL: "model",
    GroupBy.PRINCIPAL: "principal_id",
    GroupBy.ROUTE: "path",
    GroupBy.TENANT: "tenant_id",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageTotal:
    """The sums of one group: a day as YYYY-MM-DD, a model, a path, or the id of a principal or tenant."""

    group: str
    requests: int
    completed: int
    input_tokens: int
    output_tokens: int
    estimated: int
    """How many of the requests were charged by estimate."""
    cached_tokens: int = 0
    """Of the input tokens, those read from a cache."""
    reasoning_tokens: int = 0
    """Of the output tokens, those never shown."""
    cost_micros: int = 0
    """Micro-dollars. What was written before there were prices is in no sum of these three."""


NUMBERS = ("requests", "completed", "estimated", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens",
           "cost_micros")  # fmt: skip
"""What a `UsageTotal` sums, in the order in which it is shown."""


async def usage(
    pool: Pool, *, tenant: str | None, since: datetime, until: datetime, group_by: GroupBy
) -> list[UsageTotal]:
    """Sum what ended from `since` up to, not including, `until`, by group; `tenant` is an id, None for all.

    Raises `DatabaseOutage`.
    """
    of_tenant, values = ("", ()) if tenant is None else ("AND tenant_id = $3", (tenant,))
    group = _GROUPS[group_by]
    shown = f"to_char({group}, 'YYYY-MM-DD')" if group_by is GroupBy.DAY else group
    query = f"""
        SELECT {shown} AS "group", count(*) AS requests,
               count(*) FILTER (WHERE state = 'completed') AS completed,
               sum(input_tokens)::bigint AS input_tokens, sum(output_tokens)::bigint AS output_tokens,
               count(*) FILTER (WHERE usage_source = 'estimated') AS estimated,
               coalesce(sum(cached_tokens), 0)::bigint AS cached_tokens,
               coalesce(sum(reasoning_tokens), 0)::bigint AS reasoning_tokens,
               coalesce(sum(cost_micros), 0)::bigint AS cost_micros
        FROM inference_requests WHERE ended_at >= $1 AND ended_at < $2 {of_tenant}
        GROUP BY {group} ORDER BY {group}"""  # noqa: S608 - made of the constants above
    with outages_named():
        rows = await pool.fetch(query, since, until, *values, timeout=_SUM_SECONDS)
    return [UsageTotal(**row) for row in rows]


def total(found: Iterable[UsageTotal]) -> UsageTotal:
    """The sum of all groups; its group is empty."""
    groups = list(found)
    return UsageTotal(group="", **{name: sum(getattr(each, name) for each in groups) for name in NUMBERS})
