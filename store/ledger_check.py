"""Is the ledger sound in itself? Requests that have two rows, rows that cannot be, and what was settled on each day."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum

from extproc.lifecycle import CAUSES
from quota.reservation import SEQUENCES_A_MILLISECOND
from store.database import Pool, outages_named

MOST_FOUND = 100
"""How many of a kind are told: one is bad enough, and all may be many."""
_SECONDS = 600.0  # all rows are read
_EPOCH = date(1970, 1, 1)
_SEQUENCES_A_DAY = 86_400_000 * SEQUENCES_A_MILLISECOND
_TWICE = f"""
SELECT request_id::text FROM inference_requests WHERE received_at >= $1
GROUP BY request_id HAVING count(*) > 1 LIMIT {MOST_FOUND}"""  # noqa: S608 - a constant
# The times are of several clocks, Envoy's and a worker's, and clocks are set.
_ODD = f"""
SELECT request_id::text, flaw FROM (
    SELECT request_id, CASE
        WHEN state || ' ' || cause <> ALL ($2::text[]) THEN 'cause'
        WHEN NOT (received_at - interval '1 s' <= admitted_at AND admitted_at - interval '1 s' <= ended_at
                  AND coalesce(dispatched_at, admitted_at) BETWEEN admitted_at - interval '1 s'
                                                              AND ended_at + interval '1 s'
                  AND coalesce(first_event_at, ended_at) BETWEEN admitted_at - interval '1 s'
                                                             AND ended_at + interval '1 s') THEN 'times'
        WHEN cached_tokens > input_tokens OR reasoning_tokens > output_tokens THEN 'tokens'
        WHEN charged_requests > 1 OR charged_requests = 0 AND charged_tokens > 0
             OR charged_tokens NOT BETWEEN charged_input_tokens::numeric + charged_output_tokens - 1
                                       AND charged_input_tokens::numeric + charged_output_tokens THEN 'charges'
    END AS flaw FROM inference_requests WHERE received_at >= $1
) AS looked_at WHERE flaw IS NOT NULL LIMIT {MOST_FOUND}"""  # noqa: S608 - a constant
_SETTLED = """
SELECT organization_id, settlement / $3 AS day, count(*) AS rows, min(settlement) AS first,
       sum(charged_requests)::text AS requests, sum(charged_tokens)::text AS tokens, sum(cost_micros)::text AS cost
FROM inference_requests WHERE settlement >= $1 AND settlement < $2 GROUP BY 1, 2"""


class Flaw(StrEnum):
    """What cannot be in a row."""

    CAUSE = "cause"  # its state does not end for this cause
    TIMES = "times"  # something ended before it began
    TOKENS = "tokens"  # a part is more than the whole
    CHARGES = "charges"  # more than one request, tokens without one, or not the sum of input and output


@dataclass(frozen=True, slots=True, kw_only=True)
class OddRow:
    """A row that cannot be; of several flaws the first."""

    request_id: str
    flaw: Flaw


@dataclass(frozen=True, slots=True, kw_only=True)
class SettledSum:
    """The rows of an organization that were settled on a day, UTC by Redis's clock; `first` is the first's sequence."""

    organization_id: str
    day: date
    rows: int
    requests: int
    tokens: int
    cost: int
    first: int


async def twice(pool: Pool, *, since: datetime) -> list[str]:
    """The ids of requests received since then that have several rows; `MOST_FOUND` of them. Raises `DatabaseOutage`."""
    with outages_named():
        return [row["request_id"] for row in await pool.fetch(_TWICE, since, timeout=_SECONDS)]


async def odd(pool: Pool, *, since: datetime) -> list[OddRow]:
    """The rows received since then that cannot be; `MOST_FOUND` of them. Raises `DatabaseOutage`."""
    pairs = [f"{state.value} {cause.value}" for state, causes in CAUSES.items() for cause in causes]
    with outages_named():
        rows = await pool.fetch(_ODD, since, pairs, timeout=_SECONDS)
    return [OddRow(request_id=row["request_id"], flaw=Flaw(row["flaw"])) for row in rows]


async def settled(pool: Pool, first: date, last: date) -> Sequence[SettledSum]:
    """What was settled from the first day to the last one, which is in it. Raises `DatabaseOutage`.

    What was written before rows said where they were settled is in no sum.
    """
    bounds = (_sequence(first), _sequence(last + timedelta(days=1)), _SEQUENCES_A_DAY)
    with outages_named():
        rows = await pool.fetch(_SETTLED, *bounds, timeout=_SECONDS)
    return [
        SettledSum(
            organization_id=row["organization_id"],
            day=_EPOCH + timedelta(days=row["day"]),
            rows=row["rows"],
            first=row["first"],
            **{name: int(row[name]) for name in ("requests", "tokens", "cost")},
        )
        for row in rows
    ]


def moment_of(sequence: int) -> datetime:
    """When the event of this sequence was settled, by Redis's clock."""
    return datetime.fromtimestamp(sequence / SEQUENCES_A_MILLISECOND / 1000, UTC)


def _sequence(day: date) -> int:
    return (day - _EPOCH).days * _SEQUENCES_A_DAY
