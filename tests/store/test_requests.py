"""Requests, wherever they are known: one is never lost between Redis and the ledger, and pages never move."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc import admission as admissions
from extproc import ending as endings
from extproc.lifecycle import Cause, State
from extproc.record import UsageRecord
from quota.reservation import Known, QuotaOutage
from store import ledger, requests
from store.database import DatabaseOutage, Pool, open_pool
from store.request_cursor import Position
from store.requests import RequestFilter, RequestLife, Requests
from tests.support.records import NOON, usage_record

ALL = RequestFilter(tenant_id="ten_a")


async def nothing() -> None:
    """What happens between two looks, usually."""


@dataclass(slots=True)
class Live:
    """What Redis knows, and what happens right after it was asked."""

    known: dict[str, Known] = field(default_factory=dict)
    away: bool = False
    then: Callable[[], Awaitable[None]] = nothing

    async def find(self, _: str, request_id: str) -> Known | None:
        found = self._known().get(request_id)
        await self.then()
        return found

    async def open_of(self, _: str, tenant_id: str, *, limit: int) -> list[Known]:
        assert tenant_id == "ten_a"
        found = list(self._known().values())[:limit]
        await self.then()
        return found

    def _known(self) -> dict[str, Known]:
        if self.away:
            raise QuotaOutage("away")
        return self.known

    def run(self, record: UsageRecord, stage: State = State.STREAMING, *, stopping: str = "") -> str:
        """A request that runs; gives its id."""
        admission = record.admission
        self.known[admission.request_id] = Known(
            request_id=admission.request_id,
            admission=admissions.encode(admission),
            stage=stage,
            events=7,
            at_ms=admission.admitted_ms,
            stopping=stopping,
        )
        return admission.request_id

    def settle(self, record: UsageRecord) -> str:
        """A request that has ended, and has no row yet."""
        admission = record.admission
        self.known[admission.request_id] = Known(
            request_id=admission.request_id,
            admission=admissions.encode(admission),
            stage=record.ending.state,
            events=record.ending.events,
            at_ms=admission.admitted_ms,
            ending=endings.encode(record.ending),
        )
        return admission.request_id


def at(number: int, **changes: object) -> UsageRecord:
    """A request of the second `number`."""
    return usage_record(received_ms=NOON + 1000 * number, **changes)


def ids(lives: Iterable[RequestLife]) -> list[str]:
    return [life.admission.request_id for life in lives]


async def walk(known: Requests, limit: int, wanted: RequestFilter = ALL) -> list[str]:
    """All pages, one after the other."""
    found: list[str] = []
    after: Position | None = None
    while True:
        page = await known.page("org_a", wanted, limit=limit, after=after)
        assert len(page.lives) <= limit
        found += ids(page.lives)
        after = page.following
        if after is None:
            return found


async def test_a_request_is_found_while_it_runs_when_it_has_ended_and_in_the_ledger(pool: Pool) -> None:
    live, record = Live(), usage_record()
    known = Requests(live, pool)
    request_id = record.admission.request_id
    assert await known.find("org_a", "ten_a", request_id) is None
    live.run(record, stopping="client_cancel")
    running = await known.find("org_a", "ten_a", request_id)
    assert running == RequestLife(admission=record.admission, state=State.STREAMING, events=7, stopping="client_cancel")
    assert [event.data.state for event in running.told()] == [State.ADMITTED]
    live.settle(record)
    settled = await known.find("org_a", "ten_a", request_id)
    await ledger.write(pool, [record])
    live.known.clear()
    written = await known.find("org_a", "ten_a", request_id)
    assert settled == written == RequestLife.of_record(record)
    event = written.told()[-1]
    assert (event.subject, event.data.state, event.data.cost_micros) == (request_id, State.COMPLETED, 0)


async def test_one_that_moves_into_the_ledger_while_it_is_looked_for_is_found(pool: Pool) -> None:
    record = usage_record()
    live = Live()

    async def move() -> None:
        await ledger.write(pool, [record])
        live.known.clear()

    live.then = move
    live.settle(record)
    assert await Requests(live, pool).find("org_a", "ten_a", record.admission.request_id) is not None
    live.settle(record)
    assert ids((await Requests(live, pool).page("org_a", ALL, limit=5, after=None)).lives) == [
        record.admission.request_id
    ]


@pytest.mark.parametrize("where", ["live", "ended"])
async def test_of_another_tenant_nothing_is_known(pool: Pool, where: str) -> None:
    live, record = Live(), usage_record(tenant_id="ten_b")
    live.run(record) if where == "live" else await ledger.write(pool, [record])
    known = Requests(live, pool)
    assert await known.find("org_a", "ten_a", record.admission.request_id) is None
    assert await known.find("org_a", "ten_b", record.admission.request_id) is not None


@pytest.mark.parametrize(
    "request_id",
    ["", "x", "\0", "3f0d8a52", "{3f0d8a52-6a0c-4e57-9d2c-8a4f1f1f0a11}", "3f0d8a526a0c4e579d2c8a4f1f1f0a11", "é" * 36],
)
async def test_what_is_no_id_is_not_looked_up(pool: Pool, request_id: str) -> None:
    assert await Requests(Live(away=True), pool).find("org_a", "ten_a", request_id) is None


async def test_an_id_may_be_written_in_capitals(pool: Pool) -> None:
    live = Live()
    request_id = live.run(usage_record())
    assert await Requests(live, pool).find("org_a", "ten_a", request_id.upper()) is not None


async def test_without_redis_what_has_ended_is_found_and_the_rest_is_not_denied(pool: Pool) -> None:
    record = usage_record()
    await ledger.write(pool, [record])
    known = Requests(Live(away=True), pool)
    assert await known.find("org_a", "ten_a", record.admission.request_id) == RequestLife.of_record(record)
    with pytest.raises(QuotaOutage):
        await known.find("org_a", "ten_a", usage_record().admission.request_id)
    page = await known.page("org_a", ALL, limit=5, after=None)
    assert (len(page.lives), page.complete) == (1, False)
    with pytest.raises(QuotaOutage):
        await known.page(
            "org_a", RequestFilter(tenant_id="ten_a", states=frozenset({State.ADMITTED})), limit=5, after=None
        )


async def test_without_postgres_what_runs_is_found_and_the_rest_is_not_denied() -> None:
    pool = await open_pool("postgresql://postgres@/gateway?host=/nowhere")
    live = Live()
    request_id = live.run(usage_record())
    known = Requests(live, pool)
    assert await known.find("org_a", "ten_a", request_id) is not None
    with pytest.raises(DatabaseOutage):
        await known.find("org_a", "ten_a", usage_record().admission.request_id)
    with pytest.raises(DatabaseOutage):
        await known.page("org_a", ALL, limit=5, after=None)
    running = RequestFilter(tenant_id="ten_a", states=frozenset({State.STREAMING}))
    assert ids((await known.page("org_a", running, limit=5, after=None)).lives) == [request_id]
    await pool.close()


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_pages_are_newest_first_with_every_request_once(pool: Pool, limit: int) -> None:
    live = Live()
    records = [at(number // 2) for number in range(9)]  # two of each time, but one
    await ledger.write(pool, records[:7])
    for record in records[5:]:
        live.run(record)
    live.settle(records[6])
    by_time = sorted(records, key=lambda one: (one.admission.received_ms, one.admission.request_id), reverse=True)
    assert await walk(Requests(live, pool), limit) == [one.admission.request_id for one in by_time]


async def test_of_one_in_both_places_the_ledger_is_believed(pool: Pool) -> None:
    live, record = Live(), usage_record()
    live.run(record)
    await ledger.write(pool, [record])
    [life] = (await Requests(live, pool).page("org_a", ALL, limit=5, after=None)).lives
    assert life.state is State.COMPLETED


async def test_a_page_does_not_move_when_others_come_and_end(pool: Pool) -> None:
    live = Live()
    records = [at(number) for number in range(6)]
    await ledger.write(pool, records[:3])
    for record in records[3:]:
        live.run(record)
    known = Requests(live, pool)
    first = await known.page("org_a", ALL, limit=3, after=None)
    await ledger.write(pool, [*records[3:], at(7)])
    live.known.clear()
    live.run(at(8))
    second = await known.page("org_a", ALL, limit=3, after=first.following)
    assert ids([*first.lives, *second.lives]) == [one.admission.request_id for one in reversed(records)]
    assert second.following is None


@pytest.mark.parametrize("where", ["live", "ended"])
@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, {"a", "b", "c"}),
        ({"model": "large"}, {"b"}),
        ({"principal_id": "wl_w"}, {"c"}),
        ({"since": timedelta(seconds=1)}, {"b", "c"}),
        ({"until": timedelta(seconds=1)}, {"a"}),
        ({"since": timedelta(seconds=1), "until": timedelta(seconds=2)}, {"b"}),
        ({"states": {State.COMPLETED}}, {"a"}),
        ({"states": {State.CANCELLED, State.COMPLETED}}, {"a", "b"}),
        ({"states": {State.TIMED_OUT, State.ADMITTED}}, set()),
        ({"model": "'; --"}, set()),
    ],
)
async def test_a_filter_means_the_same_in_both_places(
    pool: Pool, where: str, wanted: dict[str, object], expected: set[str]
) -> None:
    live = Live()
    records = {
        "a": at(0),
        "b": at(1, model="large", state=State.CANCELLED, cause=Cause.CLIENT_CANCEL),
        "c": at(2, principal_id="wl_w", state=State.FAILED, cause=Cause.UPSTREAM_ERROR),
    }
    if where == "live":
        for record in records.values():
            live.settle(record)
    else:
        await ledger.write(pool, [*records.values(), at(0, tenant_id="ten_b")])
    noon = datetime.fromtimestamp(NOON / 1000, UTC)
    values = {name: noon + value if isinstance(value, timedelta) else value for name, value in wanted.items()}
    if "states" in values:
        values["states"] = frozenset(wanted["states"])  # type: ignore[call-overload]
    page = await Requests(live, pool).page("org_a", RequestFilter(tenant_id="ten_a", **values), limit=9, after=None)  # type: ignore[arg-type]
    names = {record.admission.request_id: name for name, record in records.items()}
    assert {names[request_id] for request_id in ids(page.lives)} == expected


async def test_states_of_a_running_request_are_told_apart(pool: Pool) -> None:
    live = Live()
    by_state = {state: live.run(at(0), state) for state in (State.ADMITTED, State.DISPATCHED, State.STREAMING)}
    for state, request_id in by_state.items():
        wanted = RequestFilter(tenant_id="ten_a", states=frozenset({state}))
        assert ids((await Requests(live, pool).page("org_a", wanted, limit=9, after=None)).lives) == [request_id]


async def test_an_export_is_all_that_has_ended_oldest_first_in_batches(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_BATCH", 4)
    records = [at(number // 3) for number in range(9)]
    await ledger.write(pool, [*records, at(1, tenant_id="ten_b"), at(2, model="large")])
    batches = [batch async for batch in requests.oldest_first(pool, RequestFilter(tenant_id="ten_a", model="demo"))]
    assert [len(batch) for batch in batches] == [4, 4, 1]
    in_order = sorted(records, key=lambda one: (one.admission.received_ms, one.admission.request_id))
    assert ids(life for batch in batches for life in batch) == [one.admission.request_id for one in in_order]


async def test_a_snapshot_is_the_same_of_all_tenants(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_BATCH", 2)
    records = [at(0), at(1, tenant_id="ten_b"), at(2), at(3, model="large"), at(4)]
    await ledger.write(pool, records)
    batches = [batch async for batch in requests.snapshot(pool, RequestFilter(model="demo"))]
    assert [len(batch) for batch in batches] == [2, 2]
    expected = [record.admission.request_id for record in records if record.admission.model == "demo"]
    assert ids(life for batch in batches for life in batch) == expected


async def test_who_takes_an_export_slowly_holds_no_connection(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_BATCH", 1)
    await ledger.write(pool, [at(0), at(1)])
    slow = [requests.oldest_first(pool, ALL) for _ in range(pool.get_max_size() + 2)]
    for each in slow:
        await anext(each)
    async with asyncio.timeout(10):
        assert await pool.fetchval("SELECT 1") == 1
    for each in slow:
        await each.aclose()


async def test_a_list_is_read_along_its_index(pool: Pool) -> None:
    query, values = requests._Statement(ALL).after(Position(NOON, str(UUID(int=1))), "<").text("DESC", 5)
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
        plan = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {query}", *values))
    assert "received_at" in plan.partition("Index Cond")[2]
    assert "Sort  (" not in plan


@given(st.integers(0, 99_999_999_999_999), st.uuids())
def test_a_cursor_is_read_as_it_was_written(received_ms: int, request_id: UUID) -> None:
    position = Position(received_ms, str(request_id))
    assert Position.of(position.cursor()) == position


@given(st.one_of(st.text(max_size=80), st.binary(max_size=60).map(lambda raw: raw.decode("latin-1"))))
def test_what_is_no_cursor_is_none_or_some_place(text: str) -> None:
    found = Position.of(text)
    assert found is None or Position.of(found.cursor()) == found


@pytest.mark.parametrize("text", ["", "a", "=", "MTIz", "é", "MQ.x", "99999999999999999999"])
def test_what_is_no_cursor_is_refused(text: str) -> None:
    assert Position.of(text) is None
