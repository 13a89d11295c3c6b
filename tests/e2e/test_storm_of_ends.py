"""Does every request of a storm end as its client and the Router saw it, once, and is it billed once?

Requests of all dialects and of every end, at random, over HTTP/1.1 and HTTP/2. Each client notes what it saw and did,
the Router what came to it; then each row of the ledger is held against the two.
"""

import asyncio
import contextlib
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

import aiohttp
import httpx
import pytest

from authz.caps import NO_CAPS, Caps
from authz.principal import Metering
from quota.limit import Limit, Unit, Window, concurrent_requests, limit_name, tokens_per_day
from store import plans
from store.database import opened
from store.plans import PlanChanges
from tests.e2e.noted import session
from tests.e2e.storm_clients import Party, StormClient
from tests.e2e.witnessed import DEADLINE, FINISHED, OUTPUT_LIMIT, End, Note, Wish, expected
from tests.support.gateway import PEPPER, TRAIL, Gateway, Tenant, running, until

CLIENTS, ROUNDS, SEED = 120, 16, 5
PLENTY = 1_000_000_000
COUNTED = {"requests_per_hour": "charged_requests", "tokens_per_day": "charged_tokens", "cost_per_month": "cost_micros"}
ALL_BUT_BOUNDS = {
    Wish.DONE: 5,
    Wish.LEFT: 5,
    Wish.CANCELLED: 4,
    Wish.SAID_NO: 2,
    Wish.BROKEN_BEFORE: 2,
    Wish.BROKEN_IN_MIDST: 3,
    Wish.RETRIED: 1,
    Wish.REFUSED: 1,
}


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with running(workers=2) as gateway:
        yield gateway


async def _tenant(gateway: Gateway, metering: Metering, caps: Caps = NO_CAPS) -> Tenant:
    """A tenant whose limits hold everything, over windows that no storm outlives."""
    hourly = Limit(name="requests_per_hour", unit=Unit.REQUESTS, window=Window.SLIDING, ceiling=PLENTY, seconds=3600)
    month = Window.CALENDAR_MONTH
    monthly = Limit(name=limit_name(Unit.COST, month), unit=Unit.COST, window=month, ceiling=1_000_000 * PLENTY)
    tenant = await gateway.tenant(
        hourly, tokens_per_day(PLENTY), monthly, concurrent_requests(10_000), metering=metering
    )
    changes = PlanChanges(stream_seconds=caps.stream_seconds, output_tokens=caps.output_tokens)
    async with opened(gateway.dsn) as pool:
        await plans.update(pool, tenant.plan, changes, trail=TRAIL)
    return tenant


async def _parties(gateway: Gateway) -> dict[str, tuple[Party, int]]:
    """Who takes part, and the share of the clients that each has."""
    late = {Wish.LATE: 5, Wish.DONE: 2, Wish.BROKEN_IN_MIDST: 1}
    parties = {}
    for metering in Metering:
        # A native stream that writes too much is ended after up to five seconds: it is seldom asked for one.
        much = {Wish.TOO_MUCH: 10 if metering is Metering.INLINE else 1, Wish.DONE: 5, Wish.REFUSED: 1}
        free = Party(tenant=await _tenant(gateway, metering), wishes=ALL_BUT_BOUNDS)
        timed = await _tenant(gateway, metering, Caps(stream_seconds=1))
        capped = await _tenant(gateway, metering, Caps(output_tokens=20))
        parties[f"{metering}"] = free, 8
        parties[f"{metering}-timed"] = Party(tenant=timed, wishes=late, bound=DEADLINE), 1
        parties[f"{metering}-capped"] = Party(tenant=capped, wishes=much, bound=OUTPUT_LIMIT, most=20), 1
    return parties


async def _rage(gateway: Gateway, parties: dict[str, tuple[Party, int]]) -> dict[str, list[Note]]:
    """The storm, to its end: what the clients of each party noted."""
    shares = [name for name, (_, share) in parties.items() for _ in range(share)]
    notes: dict[str, list[Note]] = {name: [] for name in parties}
    async with contextlib.AsyncExitStack() as stack:
        operators = {
            name: await stack.enter_async_context(session(gateway, party.tenant))
            for name, (party, _) in parties.items()
        }
        raging = []
        for number, name in enumerate(islice(cycle(shares), CLIENTS)):
            dice = random.Random(SEED + number)  # noqa: S311
            client = StormClient(gateway, parties[name][0], operators[name], notes[name], dice)
            raging.append(client.rage(f"{name}-{number}", ROUNDS))
        await asyncio.gather(*raging)
    return notes


@pytest.mark.timeout(300)
async def test_every_end_of_a_storm_is_what_both_witnesses_saw(gateway: Gateway) -> None:
    parties = await _parties(gateway)
    notes = await _rage(gateway, parties)
    await until(lambda: _is_over(gateway), seconds=120)

    rows = {name: await gateway.rows(party.tenant) for name, (party, _) in parties.items()}
    all_rows = [row for of in rows.values() for row in of]
    all_notes = [note for of in notes.values() for note in of]
    assert len(all_notes) >= 2000
    ids = {row["request_id"] for row in all_rows}
    assert len(ids) == len(all_rows)
    seen = await _sightings(gateway, ids | {note.request_id for note in all_notes if note.request_id})
    _told_apart(all_notes, {row["request_id"]: row for row in all_rows}, seen)
    # Nobody came to the Router who has no row.
    assert (await _totals(gateway))["requests"] == len(seen)
    assert set(seen) <= ids
    assert "gateway_lost" not in {row["cause"] for row in all_rows}
    for row in all_rows:
        if (row["state"], row["cause"]) == FINISHED:
            _assert_billed(row, seen[row["request_id"]])
    for name, (party, _) in parties.items():
        assert await gateway.slots_held(party.tenant) == 0
        for limit, column in COUNTED.items():
            assert await gateway.counted(party.tenant, limit) == sum(row[column] for row in rows[name]), (name, limit)
    code, said = await _verified(gateway)
    assert (code, said.startswith("Nothing is wrong")) == (0, True), said


def _told_apart(notes: list[Note], rows: dict[str, dict[str, Any]], seen: dict[str, dict[str, Any]]) -> None:
    """Each row is one request's, and says what its witnesses allow."""
    of_model = {row["model"]: request_id for request_id, row in rows.items()}
    unclaimed, wrong = set(rows), []
    ends: Counter[tuple[Wish, End]] = Counter()
    for note in notes:
        request_id = note.request_id or of_model.get(note.model, "")
        row, sighting = rows.get(request_id), seen.get(request_id)
        end = None if row is None else (row["state"], row["cause"])
        ends[note.wish, end] += 1
        allowed = expected(note, sighting)
        if end not in allowed:
            wrong.append((note, sighting and sighting["end"], end, allowed))
        unclaimed.discard(request_id)
    _print_table(ends)
    assert not wrong, "\n".join(map(str, [len(wrong), *wrong[:20]]))
    assert not unclaimed


def _assert_billed(row: dict[str, Any], sighting: dict[str, Any]) -> None:
    """What the Router counted is what the tenant is charged."""
    assert row["usage_source"] == "exact", row
    assert (row["input_tokens"], row["output_tokens"]) == (sighting["tokens_in"], sighting["tokens_out"]), row
    assert (row["charged_requests"], row["degraded"]) == (1, ""), row


async def _is_over(gateway: Gateway) -> bool:
    return (await _totals(gateway))["live"] == 0 and await gateway.is_quiet()


async def _totals(gateway: Gateway) -> Any:
    async with httpx.AsyncClient(base_url=gateway.router_url) as client:
        return (await client.get("/demo/totals")).json()


async def _sightings(gateway: Gateway, ids: set[str]) -> dict[str, dict[str, Any]]:
    """What the Router saw, of those that came to it."""
    found = {}
    # Some thousand questions: httpx takes three times as long.
    async with aiohttp.ClientSession(gateway.router_url) as client:
        for request_id in ids:
            async with client.get(f"/demo/seen/{request_id}") as answer:
                if answer.ok:
                    found[request_id] = await answer.json()
    return found


async def _verified(gateway: Gateway) -> tuple[int | None, str]:
    """What the gateway's own check of its ledger says."""
    env = {**os.environ, "DATABASE_URL": gateway.dsn, "REDIS_URL": gateway.redis.url, "GATEWAY_KEY_PEPPER": PEPPER}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", "ledger", "verify"),
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    text, _ = await process.communicate()
    return process.returncode, text.decode()


def _print_table(ends: Counter[tuple[Wish, End]]) -> None:
    print(f"{'asked for':34}{'came of it':34}{'count':>6}")  # noqa: T201
    for (wish, end), count in sorted(ends.items(), key=lambda item: (item[0][0], -item[1])):
        print(f"{wish:34}{'no row' if end is None else ' '.join(end):34}{count:>6}")  # noqa: T201
