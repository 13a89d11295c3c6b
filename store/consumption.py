"""What has been charged in a period, and who are those whose counters it fills? The ledger, summed as limits count.

A row counts in the slice of a window that its room was taken in, by Redis' clock; one that no counter held, in that of
its admission. Rows from before there were charges count by their tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from quota.applied import Target
from quota.charges import Charges
from quota.drift import Span
from store.database import Pool, outages_named

SUM_SECONDS = 120.0
"""How long a sum may take: a month's is of many rows."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Rows are found by when they were admitted, by a worker's clock; what counts is Redis'. They never differ as much.
_CLOCKS_DIFFER_AT_MOST = timedelta(hours=1)

_OWNERS = """
SELECT t.id, t.organization_id, t.time_zone, t.deleted_at IS NULL AS live,
       ARRAY(SELECT 'key_' || k.id FROM api_keys k WHERE k.tenant_id = t.id AND k.limits <> '[]'
             UNION ALL SELECT w.id FROM workloads w WHERE w.tenant_id = t.id AND w.limits <> '[]') AS principals
FROM tenants t JOIN organizations o ON o.id = t.organization_id
WHERE o.deleted_at IS NULL AND ($1::text[] IS NULL OR t.id = ANY ($1)) ORDER BY t.organization_id, t.id"""
_USES = """
SELECT organization_id, tenant_id, principal_id, path, model, plan, (at_ms - $7) / $6 AS distance,
       sum(coalesce(charged_requests, 1))::bigint AS requests,
       sum(coalesce(charged_input_tokens, input_tokens))::bigint AS input_tokens,
       sum(coalesce(charged_output_tokens, output_tokens))::bigint AS output_tokens,
       sum(coalesce(charged_tokens, input_tokens + output_tokens))::bigint AS tokens,
       sum(coalesce(cost_micros, 0))::bigint AS cost
FROM (
    SELECT *, (extract(epoch FROM coalesce(reserved_at, admitted_at)) * 1000)::bigint AS at_ms
    FROM inference_requests
    WHERE tenant_id = ANY ($1::text[]) AND admitted_at >= $2 AND (settlement IS NULL OR settlement <= $3)
) AS settled
WHERE at_ms >= $4 AND at_ms < $5 AND (cardinality($8::uuid[]) = 0 OR request_id <> ALL ($8::uuid[]))
GROUP BY 1, 2, 3, 4, 5, 6, 7"""
_WRITTEN = """
SELECT r.request_id FROM inference_requests r
JOIN unnest($1::uuid[], $2::bigint[]) AS event (request_id, settlement)
  ON event.request_id = r.request_id AND event.settlement = r.settlement"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A tenant: it is not `live` when it was deleted. `principals` of it carry limits of their own."""

    id: str
    organization_id: str
    time_zone: str
    live: bool
    principals: tuple[str, ...] = ()

    def target(self, principal_id: str = "", *, route: str = "", model: str = "") -> Target:
        """What a request of this tenant is counted by."""
        return Target(
            organization_id=self.organization_id,
            tenant_id=self.id,
            principal_id=principal_id,
            route=route,
            model=model,
            time_zone=self.time_zone,
        )


class Use(NamedTuple):
    """What the requests of one principal for one model on one path were charged in one slice."""

    tenant_id: str
    principal_id: str
    route: str
    model: str
    slice: int
    charges: Charges
    plan: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Which rows are summed: what had been settled up to a place in the stream of events, but for `without`.

    Without a place, all.
    """

    sequence: int = 2**63 - 1
    without: Sequence[str] = ()


EVERYTHING = Settled()


async def owners(pool: Pool, tenant_ids: Sequence[str] | None = None) -> list[Owner]:
    """The tenants of these ids, or all, whose organization was not deleted. Raises `DatabaseOutage`."""
    with outages_named():
        rows = await pool.fetch(_OWNERS, tenant_ids)
    return [Owner(**{**row, "principals": tuple(row["principals"])}) for row in rows]


async def uses(pool: Pool, tenant_ids: Iterable[str], span: Span, settled: Settled = EVERYTHING) -> list[Use]:
    """What these tenants were charged in the span. Raises `DatabaseOutage`."""
    since = _EPOCH + timedelta(milliseconds=span.since_ms) - _CLOCKS_DIFFER_AT_MOST
    bounds = (span.since_ms, span.until_ms, span.slice_ms, span.base_ms)
    without = [uuid for request_id in settled.without if (uuid := _uuid(request_id))]
    with outages_named():
        rows = await pool.fetch(_USES, list(tenant_ids), since, settled.sequence, *bounds, without, timeout=SUM_SECONDS)
    return [
        Use(
            tenant_id=row["tenant_id"],
            principal_id=row["principal_id"],
            route=row["path"],
            model=row["model"],
            slice=span.first + row["distance"],
            charges=Charges(**{name: row[name] for name in Charges.__struct_fields__}),
            plan=row["plan"] or "",
        )
        for row in rows
    ]


async def written_as(pool: Pool, events: Sequence[tuple[str, int]]) -> set[str]:
    """Of these (request id, place of its event), the requests whose row was made of that event, by id.

    A request may have been settled a second time, when Redis had forgotten the first: its row says what is counted.
    """
    named = {uuid: (request_id, place) for request_id, place in events if (uuid := _uuid(request_id))}
    with outages_named():
        rows = await pool.fetch(_WRITTEN, list(named), [place for _, place in named.values()])
    return {named[row["request_id"]][0] for row in rows}


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:  # no row can have it
        return None
