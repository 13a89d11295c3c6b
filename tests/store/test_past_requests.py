"""What a period of the ledger held: in the order of admission, with what each took and what it counted for."""

from datetime import UTC, datetime
from typing import Any

import pytest

from quota.charges import Charges, Rates
from quota.rate_card import ModelRates, RateCard
from quota.simulation import PastRequest
from store import ledger
from store.database import DatabaseOutage, Pool, opened
from store.past_requests import Period, past_requests
from tests.control.conftest import NOWHERE
from tests.support.identity_rows import add_tenant
from tests.support.records import DAY, NOON, usage_record

CARD = RateCard([ModelRates(pattern="dear-*", rates=Rates(input_weight=2000, output_weight=3000))])


async def _found(
    pool: Pool, *tenant_ids: str, since_ms: int = NOON - DAY, until_ms: int = NOON + DAY
) -> list[PastRequest]:
    period = Period(tenant_ids=tenant_ids, since=_time(since_ms), until=_time(until_ms))
    return [request async for request in past_requests(pool, period, CARD)]


def _time(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


async def _write(pool: Pool, **changes: Any) -> str:
    record = usage_record(**changes)
    await ledger.write(pool, [record])
    return record.admission.request_id


async def test_they_come_in_the_order_of_their_admission(pool: Pool) -> None:
    offsets = (30, 10, 20)
    ids = {offset: await _write(pool, admitted_ms=NOON + offset) for offset in offsets}
    assert [request.request_id for request in await _found(pool, "ten_a")] == [ids[each] for each in sorted(offsets)]


async def test_only_those_of_the_tenants_and_the_period(pool: Pool) -> None:
    first = await _write(pool, admitted_ms=NOON)
    await _write(pool, admitted_ms=NOON - 1)
    await _write(pool, admitted_ms=NOON + 1000)
    other = await _write(pool, admitted_ms=NOON + 5, tenant_id="ten_b")
    await _write(pool, admitted_ms=NOON + 6, tenant_id="ten_c")
    found = await _found(pool, "ten_a", "ten_b", since_ms=NOON, until_ms=NOON + 1000)
    assert [request.request_id for request in found] == [first, other]


async def test_each_says_whose_it_was_what_it_took_and_when_it_ran(pool: Pool) -> None:
    await add_tenant(pool)
    await pool.execute("UPDATE tenants SET time_zone = 'Asia/Tokyo'")
    counted = Charges(requests=1, input_tokens=11, output_tokens=31, tokens=42, cost=7)
    await _write(pool, charges=counted, model="dear-1", input_estimate=20, output_reserved=100)
    [found] = await _found(pool, "ten_a")
    assert (found.admitted_ms, found.ended_ms) == (NOON + 2, NOON + 1000)
    assert (found.asked.input_tokens, found.asked.output_tokens, found.asked.tokens) == (40, 300, 340)
    assert found.settled == counted
    target = found.target
    assert (target.organization_id, target.tenant_id, target.principal_id) == ("org_a", "ten_a", "key:k")
    assert (target.route, target.model, target.time_zone) == ("/v1/chat/completions", "dear-1", "Asia/Tokyo")


async def test_a_row_from_before_charges_counts_for_its_tokens(pool: Pool) -> None:
    await _write(pool, model="dear-1", input_tokens=10, output_tokens=30)
    await pool.execute("ALTER TABLE inference_requests DISABLE TRIGGER inference_requests_append_only")
    charged = ("requests", "input_tokens", "output_tokens", "tokens")
    columns = ", ".join(f"charged_{each} = NULL" for each in charged)
    await pool.execute(f"UPDATE inference_requests SET {columns}, cost_micros = NULL")  # noqa: S608
    [found] = await _found(pool, "ten_a")
    assert (found.settled.requests, found.settled.tokens) == (1, 110)
    assert found.target.time_zone == "UTC", "of a tenant that is not known any more"


async def test_an_outage_is_said_so() -> None:
    async with opened(NOWHERE) as pool:
        with pytest.raises(DatabaseOutage):
            await _found(pool, "ten_a")
