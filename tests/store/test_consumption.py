"""The ledger summed as limits count: by slice, up to a place in the stream, for the counters of now."""

import pytest

from extproc.record import Admission, UsageRecord
from quota.charges import Charges
from quota.drift import Period, slice_at, span_at
from quota.limit import Dimension, Limit, Unit, Window
from store import consumption, counters, ledger
from store.consumption import Settled, Use
from store.database import DatabaseOutage, Pool, opened
from store.limits import encode_limits
from tests.support.identity_rows import add_tenant
from tests.support.records import NOON, usage_record

MINUTE = Period(Window.SLIDING, 60, "")
DAY = Period(Window.CALENDAR_DAY, 0, "America/New_York")
ONE = Charges(requests=1, input_tokens=3, output_tokens=4, tokens=7, cost=50)


def settled(**changes: object) -> UsageRecord:
    return usage_record(**{"charges": ONE, "settlement": 1, "reserved_ms": NOON, **changes})


async def found(pool: Pool, period: Period, which: Settled = consumption.EVERYTHING) -> dict[int, Charges]:
    rows = await consumption.uses(pool, ["ten_a"], span_at(period, NOON), which)
    return {use.slice: use.charges for use in rows}


async def test_a_row_counts_in_the_slice_its_room_was_taken_in(pool: Pool) -> None:
    await ledger.write(pool, [settled(), settled(reserved_ms=NOON - 2000, admitted_ms=NOON), settled()])
    now = slice_at(MINUTE, NOON).number
    twice = Charges(requests=2, input_tokens=6, output_tokens=8, tokens=14, cost=100)
    assert await found(pool, MINUTE) == {now: twice, now - 2: ONE}


async def test_a_row_that_no_counter_held_counts_in_the_slice_of_its_admission(pool: Pool) -> None:
    await ledger.write(pool, [settled(reserved_ms=None, admitted_ms=NOON - 3000)])
    assert await found(pool, MINUTE) == {slice_at(MINUTE, NOON - 3000).number: ONE}


async def test_what_has_left_the_window_is_not_summed(pool: Pool) -> None:
    edge = span_at(MINUTE, NOON)
    times = (edge.since_ms - 1, edge.since_ms, edge.until_ms - 1, edge.until_ms)
    await ledger.write(pool, [settled(reserved_ms=ms) for ms in times])
    assert sorted(await found(pool, MINUTE)) == [edge.since_ms // 1000, (edge.until_ms - 1) // 1000]


async def test_a_calendar_period_is_one_slice_in_its_time_zone(pool: Pool) -> None:
    day = slice_at(DAY, NOON)
    await ledger.write(pool, [settled(reserved_ms=ms) for ms in (day.starts_ms - 1, day.starts_ms, day.ends_ms - 1)])
    assert await found(pool, DAY) == {
        day.number: Charges(requests=2, input_tokens=6, output_tokens=8, tokens=14, cost=100)
    }


async def test_only_what_was_settled_up_to_a_place_is_summed(pool: Pool) -> None:
    rows = [settled(settlement=10), settled(settlement=11), settled(settlement=None)]
    await ledger.write(pool, rows)
    [counted] = (await found(pool, DAY, Settled(sequence=10))).values()
    assert counted.requests == 2
    without = Settled(sequence=11, without=(rows[0].admission.request_id, "no id"))
    [counted] = (await found(pool, DAY, without)).values()
    assert counted.requests == 2


async def test_rows_of_other_tenants_are_not_summed_and_each_use_stands_apart(pool: Pool) -> None:
    rows = [settled(), settled(model="gpt-5"), settled(principal_id="jwt_j"), settled(tenant_id="ten_b")]
    await ledger.write(pool, rows)
    uses = await consumption.uses(pool, ["ten_a"], span_at(DAY, NOON))
    day = slice_at(DAY, NOON).number
    path = "/v1/chat/completions"
    assert sorted(uses) == [
        Use("ten_a", "jwt_j", path, "demo", day, ONE),
        Use("ten_a", "key:k", path, "demo", day, ONE),
        Use("ten_a", "key:k", path, "gpt-5", day, ONE),
    ]


async def test_a_row_was_made_of_the_event_whose_place_it_names(pool: Pool) -> None:
    one, other = settled(settlement=5), settled(settlement=6)
    await ledger.write(pool, [one, other])
    ids = [each.admission.request_id for each in (one, other)]
    events = [(ids[0].upper(), 5), (ids[1], 7), ("no id", 5)]
    assert await consumption.written_as(pool, events) == {ids[0].upper()}


async def test_tenants_and_their_principals_with_limits_are_known(pool: Pool) -> None:
    await add_tenant(pool)
    await add_tenant(pool, "ten_gone", name="gone", deleted=True)
    limits = encode_limits([_limit("requests_per_day", Window.CALENDAR_DAY)])
    for key, own in (("k", limits), ("l", "[]")):
        await pool.execute(
            "INSERT INTO api_keys (id, tenant_id, name, tag, hash, limits) VALUES ($1, 'ten_a', $1, $1, $2, $3::jsonb)",
            *(key, key.encode() * 32, own),
        )
    first, second = await consumption.owners(pool)
    assert (first.id, first.live, first.principals, first.time_zone) == ("ten_a", True, ("key_k",), "UTC")
    assert (second.id, second.live, second.principals) == ("ten_gone", False, ())
    assert [owner.id for owner in await consumption.owners(pool, ["ten_gone", "ten_x"])] == ["ten_gone"]


def _embedding(tenant_id: str) -> Admission:
    return usage_record(tenant_id=tenant_id, principal_id="key_k", path="/v1/embeddings", model="m").admission


async def test_the_counters_of_a_use_are_those_of_the_limits_of_now(pool: Pool) -> None:
    await add_tenant(pool)
    per_model = _limit("requests_per_day", Window.CALENDAR_DAY, per=(Dimension.TENANT, Dimension.MODEL))
    slots = Limit(name="s", unit=Unit.CONCURRENT_REQUESTS, window=Window.LEASE, ceiling=3)
    hourly = _limit("requests_per_hour", Window.SLIDING, seconds=3600)
    await pool.execute("UPDATE plans SET limits = '[]'")
    await pool.execute("UPDATE organizations SET limits = $1::jsonb", encode_limits([per_model]))
    await pool.execute(
        "UPDATE tenants SET time_zone = 'Asia/Tokyo', limits = $1::jsonb", encode_limits([slots, hourly, per_model])
    )
    known = await counters.load(pool)
    used = {each.name: each.period for each in known.of_request(_embedding("ten_a"))}
    assert used == {
        "tenant:ten_a,model:m/requests_per_day": Period(Window.CALENDAR_DAY, 0, "Asia/Tokyo"),
        "tenant:ten_a/requests_per_hour": Period(Window.SLIDING, 3600, ""),
    }
    assert known.of_request(_embedding("ten_x")) == ()
    tenant = known.tenants["ten_a"]
    assert {each.name for each in known.unused(tenant)} == {"tenant:ten_a/requests_per_hour"}
    assert set(used.values()) <= known.periods(tenant)


async def test_an_outage_is_told() -> None:
    async with opened("postgresql://postgres@/gateway?host=/nowhere") as nowhere:
        with pytest.raises(DatabaseOutage):
            await consumption.owners(nowhere)
        with pytest.raises(DatabaseOutage):
            await consumption.uses(nowhere, ["ten_a"], span_at(DAY, NOON))
        with pytest.raises(DatabaseOutage):
            await consumption.written_as(nowhere, [])


def _limit(name: str, window: Window, **changes: object) -> Limit:
    whole = {"name": name, "unit": Unit.REQUESTS, "window": window, "ceiling": 5, **changes}
    return Limit(**whole)  # type: ignore[arg-type]
