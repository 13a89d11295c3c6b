"""What callers are told of their requests: one, pages of them, and all of them in every format."""

import asyncio
import csv
import io
import json
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Message

from authz.grant import Grant
from control.application import application
from control.request_body import COLUMNS, dollars
from control.requests import MOST_OF_A_TENANT
from extproc import admission as admissions
from extproc import ending as endings
from extproc import lifecycle_events
from extproc.lifecycle import Cause, State
from extproc.record import Degraded, UsageRecord, UsageSource
from quota.charges import Charges
from quota.pipe import RedisPipe
from quota.redis import RedisReservations, key_of, shard_of
from quota.reservation import Progress
from store import ledger
from tests.control.conftest import Api, pipe_to
from tests.quota.own_redis import running
from tests.support.records import NOON, usage_record
from tests.support.values import claim, grant, held, settlement

PATH = "/v1/requests"
DEAR = usage_record(
    cached_tokens=4,
    reasoning_tokens=5,
    charges=Charges(requests=1, input_tokens=10, output_tokens=30, tokens=40, cost=1_250_003),
    dispatched_ms=NOON + 5,
    routing_snapshot='{"provider": "a"}',
    actual_cost='{"total_usd": "1.250003"}',
    plan="pro",
)
THEIRS = grant(tenant_id="ten_b")


def at(number: int, **changes: Any) -> UsageRecord:
    """A request of the second `number`."""
    return usage_record(received_ms=NOON + 1000 * number, **changes)


async def run(pipe: RedisPipe, record: UsageRecord) -> str:
    """Have a request run in Redis."""
    admission = record.admission
    await pipe.call("SET", key_of(shard_of(admission.organization_id), "epoch"), 1)  # its counters are whole
    asked = claim(
        admission.request_id,
        held(),
        tenant_id=admission.tenant_id,
        admission=admissions.encode(admission),
        stage=State.ADMITTED,
    )
    await RedisReservations(pipe).reserve(asked)
    return admission.request_id


async def settle(pipe: RedisPipe, record: UsageRecord) -> None:
    request_id = record.admission.request_id
    progress = Progress(stage=record.ending.state, after=(State.ADMITTED, State.DISPATCHED, State.STREAMING))
    fact = settlement(
        request_id, tenant_id=record.admission.tenant_id, ending=endings.encode(record.ending), progress=progress
    )
    assert await RedisReservations(pipe).settle(fact)


async def shown(api: Api, path: str, **request: Any) -> Any:
    answer = await api.call("GET", path, **request)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return answer.json()


async def ids(api: Api, query: str = "") -> list[str]:
    return [one["id"] for one in (await shown(api, f"{PATH}{query}"))["data"]]


def refused(answer: httpx.Response, status: int, code: str, param: str | None = None) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)


async def test_a_request_is_shown_with_all_that_is_known_of_it(api: Api) -> None:
    await ledger.write(api.pool, [DEAR])
    request_id = DEAR.admission.request_id
    assert await shown(api, f"{PATH}/{request_id}") == {
        "object": "request",
        "id": request_id,
        "state": "completed",
        "cause": "finished",
        "stopping": None,
        "model": "demo",
        "path": "/v1/chat/completions",
        "stream": True,
        "metering": "native",
        "plan": "pro",
        "tenant_id": "ten_a",
        "principal_id": "key:k",
        "key_id": "k",
        "received_at": "2026-01-01T12:00:00.123000Z",
        "admitted_at": "2026-01-01T12:00:00.125000Z",
        "dispatched_at": "2026-01-01T12:00:00.128000Z",
        "first_event_at": "2026-01-01T12:00:00.200000Z",
        "ended_at": "2026-01-01T12:00:01.123000Z",
        "tokens": {"input": 10, "cached": 4, "output": 30, "reasoning": 5, "source": "exact"},
        "cost_micros": 1_250_003,
        "cost_dollars": "1.250003",
        "routing_snapshot": {"provider": "a"},
        "actual_cost": {"total_usd": "1.250003"},
        "status": 200,
        "events": 32,
        "response_bytes": 4096,
        "degraded": None,
    }


async def test_a_running_request_is_shown_and_then_its_end_without_a_gap(api: Api, pipe: RedisPipe) -> None:
    request_id = await run(pipe, DEAR)
    path = f"{PATH}/{request_id}"
    running_now = await shown(api, path)
    assert running_now["state"] == "admitted"
    for name in ("cause", "ended_at", "tokens", "cost_micros", "cost_dollars", "status", "response_bytes"):
        assert running_now[name] is None
    step = Progress(stage=State.STREAMING, after=(State.ADMITTED, State.DISPATCHED), events=3)
    assert await RedisReservations(pipe).renew("org_a", request_id, lease_ms=60_000, progress=step) == ""
    assert await RedisReservations(pipe).stop("org_a", request_id, why=Cause.CLIENT_CANCEL)
    streaming = await shown(api, path)
    assert (streaming["state"], streaming["events"], streaming["stopping"]) == ("streaming", 3, "client_cancel")
    await settle(pipe, DEAR)
    settled = await shown(api, path)
    assert (settled["state"], settled["cost_micros"]) == ("completed", 1_250_003)
    await ledger.write(api.pool, [DEAR])
    await pipe.call("FLUSHDB")
    assert await shown(api, path) == settled


@pytest.mark.parametrize("where", ["live", "ended"])
async def test_a_foreign_request_is_unknown(api: Api, pipe: RedisPipe, where: str) -> None:
    await run(pipe, DEAR) if where == "live" else await ledger.write(api.pool, [DEAR])
    path = f"{PATH}/{DEAR.admission.request_id}"
    refused(await api.call("GET", path, headers=api.as_(THEIRS)), 404, "unknown_request")
    assert (await api.call("GET", path)).status_code == 200
    listed = await shown(api, PATH, headers=api.as_(THEIRS))
    assert (listed["data"], listed["next_cursor"]) == ([], None)


@pytest.mark.parametrize("request_id", ["x", "3f0d8a52-6a0c-4e57-9d2c-8a4f1f1f0a11", "%00", "..%2F..", "a" * 500])
async def test_an_id_that_is_none_is_unknown(api: Api, request_id: str) -> None:
    answer = await api.call("GET", f"{PATH}/{request_id}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] in {"unknown_request", "unknown_path"}


async def test_what_the_model_service_said_is_shown_even_when_it_is_no_json(api: Api, pipe: RedisPipe) -> None:
    deep = "[" * 500 + "]" * 500
    record = usage_record(routing_snapshot="{", actual_cost=deep)
    await run(pipe, record)
    await settle(pipe, record)
    found = await shown(api, f"{PATH}/{record.admission.request_id}")
    assert (found["routing_snapshot"], found["actual_cost"]) == ("{", deep)


async def test_a_list_has_running_and_ended_requests_newest_first_page_by_page(api: Api, pipe: RedisPipe) -> None:
    records = [at(number) for number in range(5)]
    await ledger.write(api.pool, records[:3])
    for record in records[3:]:
        await run(pipe, record)
    expected = [record.admission.request_id for record in reversed(records)]
    whole = await shown(api, PATH)
    assert (whole["object"], whole["next_cursor"], whole["complete"]) == ("list", None, True)
    assert [one["id"] for one in whole["data"]] == expected
    assert [one["state"] for one in whole["data"]] == ["admitted"] * 2 + ["completed"] * 3
    found, cursor = [], ""
    while cursor is not None:
        page = await shown(api, f"{PATH}?limit=2{cursor and f'&cursor={cursor}'}")
        found += [one["id"] for one in page["data"]]
        await ledger.write(api.pool, [at(9)])  # newer ones come in
        cursor = page["next_cursor"]
    assert found == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("?state=admitted", "d"),
        ("?state=failed,admitted", "cd"),
        ("?state=dispatched,streaming,completed,failed,cancelled,timed_out", "abc"),
        ("?model=large", "b"),
        ("?principal=wl_w", "c"),
        ("?since=2026-01-01T12:00:01.123Z", "bcd"),
        ("?until=2026-01-01T13:00:01.123%2B01:00", "a"),
        ("?since=2026-01-01&until=2026-01-02&limit=100&state=completed", "ab"),
        ("?since=2026-01-02", ""),
    ],
)
async def test_a_list_is_filtered(api: Api, pipe: RedisPipe, query: str, expected: str) -> None:
    ended = [
        at(0),
        at(1, model="large"),
        at(2, principal_id="wl_w", state=State.FAILED, cause=Cause.UPSTREAM_RESET),
    ]
    await ledger.write(api.pool, ended)
    live = at(3)
    await run(pipe, live)
    names = {one.admission.request_id: name for one, name in zip([*ended, live], "abcd", strict=True)}
    assert "".join(sorted(names[request_id] for request_id in await ids(api, query))) == expected


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("?state=received", "state"),
        ("?state=rejected", "state"),
        ("?state=", "state"),
        ("?state=completed,", "state"),
        ("?limit=0", "limit"),
        ("?limit=101", "limit"),
        ("?limit=many", "limit"),
        ("?cursor=x", "cursor"),
        ("?cursor=", "cursor"),
        ("?since=yesterday", "since"),
        ("?since=0001-01-01", "since"),
        ("?until=9999-12-31T23:59:59-23:59", "until"),
        ("?model=a%00b", "model"),
        (f"?principal={'a' * 257}", "principal"),
        ("?format=xml", "format"),
        ("?sort=model", "sort"),
        ("?limit=1&limit=2", "limit"),
        ("?format=csv&limit=5", "limit"),
        ("?format=jsonl&cursor=MTc2NzI2ODgwMDEyMy4zZjBkOGE1Mi02YTBjLTRlNTctOWQyYy04YTRmMWYxZjBhMTE", "cursor"),
    ],
)
async def test_a_wrong_parameter_is_named(offline: Api, query: str, param: str) -> None:
    answer = await offline.call("GET", f"{PATH}{query}")
    refused(answer, 400, "invalid_parameter", param)
    assert answer.json()["error"]["message"].startswith(f"'{param}': ")


@pytest.mark.parametrize("path", [PATH, f"{PATH}/{DEAR.admission.request_id}"], ids=["list", "one"])
async def test_nobody_sees_requests_without_a_credential(offline: Api, path: str) -> None:
    refused(await offline.call("GET", path, headers={}), 401, "missing_credentials")


async def test_without_redis_what_has_ended_is_shown(api: Api) -> None:
    await ledger.write(api.pool, [DEAR])
    with running() as server:
        async with pipe_to(server, deadline=0.2) as pipe:
            api.live = RedisReservations(pipe)
            server.stop()
            found = await shown(api, f"{PATH}/{DEAR.admission.request_id}")
            listed = await shown(api, PATH)
            unknown = await api.call("GET", f"{PATH}/{at(1).admission.request_id}")
            running_ones = await api.call("GET", f"{PATH}?state=streaming")
    assert (found["state"], listed["complete"], len(listed["data"])) == ("completed", False, 1)
    for answer in (unknown, running_ones):
        refused(answer, 503, "identity_unavailable")
        assert answer.headers["retry-after"] == "1"


async def test_without_postgres_what_runs_is_shown(offline: Api, pipe: RedisPipe) -> None:
    offline.live = RedisReservations(pipe)
    request_id = await run(pipe, DEAR)
    assert (await shown(offline, f"{PATH}/{request_id}"))["state"] == "admitted"
    assert await ids(offline, "?state=admitted,streaming") == [request_id]
    for path in (f"{PATH}/{at(1).admission.request_id}", PATH, f"{PATH}?format=csv"):
        refused(await offline.call("GET", path), 503, "identity_unavailable")


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"]


async def test_an_export_as_csv_is_a_table_of_all_that_has_ended(api: Api, pipe: RedisPipe) -> None:
    odd = at(1, model='a "quoted", model\nof two lines', stream=False, degraded=Degraded.OPEN)
    await ledger.write(api.pool, [DEAR, odd, usage_record(tenant_id="ten_b")])
    await run(pipe, at(2))
    answer = await api.call("GET", f"{PATH}?format=csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="requests.csv"'
    names, *rows = csv.reader(io.StringIO(answer.text))
    assert tuple(names) == COLUMNS
    first, second = (dict(zip(names, row, strict=True)) for row in rows)
    assert first["id"] == DEAR.admission.request_id
    said = {name: first[name] for name in ("stream", "cached_tokens", "tokens_source", "cost_dollars", "ended_at")}
    assert said == {
        "stream": "true",
        "cached_tokens": "4",
        "tokens_source": "exact",
        "cost_dollars": "1.250003",
        "ended_at": "2026-01-01T12:00:01.123000Z",
    }
    assert json.loads(first["routing_snapshot"]) == {"provider": "a"}
    assert (second["model"], second["stream"], second["degraded"]) == (odd.admission.model, "false", "open")
    assert (second["dispatched_at"], second["actual_cost"]) == ("", "")


@pytest.mark.parametrize("model", FORMULAS)
async def test_a_cell_is_never_a_formula(api: Api, model: str) -> None:
    await ledger.write(api.pool, [usage_record(model=model)])
    answer = await api.call("GET", f"{PATH}?format=csv")
    [names, row] = csv.reader(io.StringIO(answer.text, newline=""))
    assert dict(zip(names, row, strict=True))["model"] == f"'{model}"


async def test_json_lines_are_what_a_page_shows(api: Api) -> None:
    await ledger.write(api.pool, [at(number) for number in range(3)])
    answer = await api.call("GET", f"{PATH}?format=jsonl")
    assert answer.headers["content-type"] == "application/jsonl"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert lines == (await shown(api, PATH))["data"][::-1]


async def test_cloudevents_are_the_events_of_the_ends(api: Api) -> None:
    records = [at(0), at(1, usage_source=UsageSource.ESTIMATED)]
    await ledger.write(api.pool, records)
    answer = await api.call("GET", f"{PATH}?format=cloudevents")
    assert answer.headers["content-type"] == "application/cloudevents-batch+json"
    assert answer.headers["content-disposition"] == 'attachment; filename="requests.json"'
    events = [lifecycle_events.ended(record.admission, record.ending) for record in records]
    assert answer.json() == [json.loads(lifecycle_events.encode(event)) for event in events]


@pytest.mark.parametrize(
    ("format_", "text"), [("csv", ",".join(COLUMNS) + "\r\n"), ("jsonl", ""), ("cloudevents", "[]\n")]
)
async def test_an_export_of_nothing(api: Api, format_: str, text: str) -> None:
    assert (await api.call("GET", f"{PATH}?format={format_}")).text == text


@pytest.mark.parametrize("format_", ["csv", "jsonl", "cloudevents"])
async def test_an_export_of_many_batches_has_each_once(api: Api, monkeypatch: pytest.MonkeyPatch, format_: str) -> None:
    monkeypatch.setattr("store.requests._BATCH", 3)
    records = [at(number) for number in range(7)]
    await ledger.write(api.pool, records)
    text = (await api.call("GET", f"{PATH}?format={format_}&state=completed")).text
    places = [text.index(record.admission.request_id) for record in records]
    assert places == sorted(places)
    match format_:
        case "csv":
            assert len(list(csv.reader(io.StringIO(text)))) == 8
        case "jsonl":
            assert len([json.loads(line) for line in text.splitlines()]) == 7
        case _:
            assert len(json.loads(text)) == 7


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "application/json"),
        ("text/csv", "text/csv; charset=utf-8"),
        ("application/jsonl", "application/jsonl"),
        ("application/x-ndjson", "application/jsonl"),
        ("application/cloudevents-batch+json", "application/cloudevents-batch+json"),
        ("text/html, application/json;q=0.9, text/csv;q=0.5", "application/json"),
        ("application/json;q=0.1, TEXT/CSV; q=0.5", "text/csv; charset=utf-8"),
        ("text/csv;q=0, image/png", "application/json"),
        ("text/csv;q=x", "application/json"),
    ],
)
async def test_the_format_is_what_the_caller_accepts(api: Api, accept: str, media_type: str) -> None:
    headers = {**api.as_(), "accept": accept}
    assert (await api.call("GET", PATH, headers=headers)).headers["content-type"] == media_type
    named = await api.call("GET", f"{PATH}?format=json", headers=headers)
    assert named.headers["content-type"] == "application/json"


@pytest.mark.parametrize(("micros", "text"), [(0, "0.000000"), (1, "0.000001"), (12_345_678, "12.345678")])
def test_dollars_are_exact(micros: int, text: str) -> None:
    assert dollars(micros) == text


async def reads_nothing(app: ASGIApp, headers: dict[str, str], *, status: asyncio.Future[int]) -> None:
    """A client that asks for a file, and takes the head of the answer alone."""
    forever = asyncio.Event()

    async def receive() -> Message:
        await forever.wait()
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] != "http.response.start":
            await forever.wait()
        status.set_result(message["status"])

    asked = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": PATH,
        "query_string": b"format=csv",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    await app(asked, receive, send)


async def test_files_that_are_read_slowly_leave_room_for_other_tenants(api: Api) -> None:
    app = application(api.resources())
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:

        async def asked(caller: Grant | None = None) -> httpx.Response:
            return await client.get(f"{PATH}?format=csv", headers=api.as_(caller))

        begun = [asyncio.get_running_loop().create_future() for _ in range(MOST_OF_A_TENANT)]
        slow = [asyncio.create_task(reads_nothing(app, api.as_(), status=status)) for status in begun]
        assert await asyncio.gather(*begun) == [200] * MOST_OF_A_TENANT
        refused(await asked(), 429, "too_many_exports")
        assert (await client.get(PATH, headers=api.as_())).status_code == 200
        assert (await asked(THEIRS)).status_code == 200
        for task in slow:
            task.cancel()
        await asyncio.wait(slow)
        assert [(await asked()).status_code for _ in range(2 * MOST_OF_A_TENANT)] == [200] * 2 * MOST_OF_A_TENANT
