"""Which requests were admitted in a period, and what did they take? Read from the ledger, in the order they came."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import asyncpg

from quota.applied import Target
from quota.charges import Charges, TokenUsage, charges, least_of
from quota.rate_card import RateCard
from quota.simulation import PastRequest
from store.database import Pool, outages_named

_BATCH = 500
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_ADMITTED = """
SELECT r.request_id::text, r.organization_id, r.tenant_id, r.principal_id, r.path, r.model, r.admitted_at, r.ended_at,
       r.input_estimate, r.output_reserved, r.input_tokens, r.output_tokens, r.cached_tokens, r.reasoning_tokens,
       r.output_named, r.charged_requests, r.charged_input_tokens, r.charged_output_tokens, r.charged_tokens,
       r.cost_micros, coalesce(t.time_zone, 'UTC') AS time_zone
FROM inference_requests r LEFT JOIN tenants t ON t.id = r.tenant_id
WHERE r.tenant_id = ANY ($1::text[]) AND r.admitted_at >= $2 AND r.admitted_at < $3
ORDER BY r.admitted_at, r.request_id"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """What the tenants of these ids were admitted from `since` up to, not including, `until`."""

    tenant_ids: Sequence[str]
    since: datetime
    until: datetime


async def past_requests(pool: Pool, period: Period, card: RateCard) -> AsyncGenerator[PastRequest, None]:
    """The requests of the period that have ended, some hundred at a time. Raises `DatabaseOutage`.

    The ledger does not say at which rates a request reserved: the card's stand for them, and for what a row from
    before there were charges counts for.
    """
    values = (list(period.tenant_ids), period.since, period.until)
    async with aclosing(_rows(pool, *values)) as rows:
        async for row in rows:
            yield _request(row, card)


async def _rows(pool: Pool, *values: object) -> AsyncGenerator[asyncpg.Record, None]:
    with outages_named():
        async with pool.acquire() as connection, connection.transaction(readonly=True):
            async for row in connection.cursor(_ADMITTED, *values, prefetch=_BATCH):
                yield row


def _request(row: asyncpg.Record, card: RateCard) -> PastRequest:
    rates = card.of(row["model"]).rates
    asked = charges(TokenUsage(input=row["input_estimate"], output=row["output_reserved"]), rates)
    return PastRequest(
        request_id=row["request_id"],
        admitted_ms=_ms(row["admitted_at"]),
        ended_ms=_ms(row["ended_at"]),
        target=Target(
            organization_id=row["organization_id"],
            tenant_id=row["tenant_id"],
            principal_id=row["principal_id"],
            route=row["path"],
            model=row["model"],
            time_zone=row["time_zone"],
        ),
        asked=asked,
        # Of what was written before it was known, the whole is taken.
        least=least_of(asked, row["input_estimate"], rates) if row["output_named"] is False else asked,
        settled=_settled(row, card),
    )


def _settled(row: asyncpg.Record, card: RateCard) -> Charges:
    if row["charged_requests"] is None:
        usage = TokenUsage(
            input=row["input_tokens"],
            output=row["output_tokens"],
            cached=row["cached_tokens"] or 0,
            reasoning=row["reasoning_tokens"] or 0,
        )
        return charges(usage, card.of(row["model"]).rates)
    return Charges(
        requests=row["charged_requests"],
        input_tokens=row["charged_input_tokens"],
        output_tokens=row["charged_output_tokens"],
        tokens=row["charged_tokens"],
        cost=row["cost_micros"],
    )


def _ms(time: datetime) -> int:
    return (time - _EPOCH) // _MILLISECOND
