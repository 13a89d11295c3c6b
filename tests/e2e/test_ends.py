"""Has every request exactly one end, the one that the client and the Router saw, whatever became of it, and one bill?

Ends that need a process to be killed are in test_survival.py, test_outages.py and test_storm.py, those that the gateway
makes itself in test_cancel.py, test_caps.py and test_revoked_midstream.py.
"""

import asyncio
import contextlib
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import h2.exceptions
import httpx
import pytest

from authz.principal import Metering
from store import plans
from store.database import opened
from store.plans import PlanChanges
from tests.support.gateway import TRAIL, Gateway, Tenant
from tests.support.h2_client import http2_post

METERING = pytest.mark.parametrize("metering", list(Metering))
HTTP2 = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
INFER = {"model": "m", "input": "hello"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}
EVENTS = 10


@dataclass(frozen=True, slots=True)
class End:
    """What the Router is made to do, and what the ledger must say of it."""

    name: str
    steering: dict[str, str]
    state: str
    cause: str
    stream: bool = True
    status: int = 200
    charged: bool = True
    """Whether the request counts under its tenant's limits."""


ENDS = (
    End("an answer", {}, "completed", "finished", stream=False),
    End("a stream", {"x-demo-events": "10"}, "completed", "finished"),
    End("a stream without usage", {"x-demo-events": "10", "x-demo-usage": "none"}, "completed", "finished"),
    End("an empty stream", {"x-demo-events": "0"}, "completed", "finished"),
    End("an error of the Router", {"x-demo-status": "500"}, "failed", "upstream_error", status=500, charged=False),
    End("the Router says no", {"x-demo-status": "404"}, "failed", "upstream_error", status=404),
    End(
        "reset before headers",
        {"x-demo-fault": "reset-before-headers"},
        "failed",
        "upstream_reset",
        status=503,
        charged=False,
    ),
    End(
        "closed before headers",
        {"x-demo-fault": "close-before-headers"},
        "failed",
        "upstream_reset",
        status=503,
        charged=False,
    ),
    End("reset in mid-stream", {"x-demo-fault": "reset-mid-stream"}, "failed", "upstream_reset"),
    End("closed in mid-stream", {"x-demo-fault": "close-mid-stream"}, "failed", "upstream_reset"),
)
LATE = (
    End("silent before headers", {"x-demo-fault": "hang"}, "timed_out", "deadline", status=504, charged=False),
    End("silent in mid-stream", {"x-demo-fault": "stall-mid-stream"}, "timed_out", "deadline"),
    End("never ends", {"x-demo-fault": "endless", "x-demo-interval-ms": "20"}, "timed_out", "deadline"),
)


async def _one_end(gateway: Gateway, tenant: Tenant, request_id: str, end: End) -> dict[str, Any]:
    """The request's one row, which says what was expected; nothing is held for it any more."""
    await gateway.row(request_id)
    [row] = [row for row in await gateway.rows(tenant) if row["request_id"] == request_id]
    assert (row["state"], row["cause"], row["status"]) == (end.state, end.cause, end.status), end.name
    assert bool(row["charged_requests"]) is end.charged, end.name
    assert await gateway.slots_held(tenant) == 0
    return row


async def _ask(client: httpx.AsyncClient, end: End) -> httpx.Headers:
    """Ask, and read as much of the answer as there is."""
    body = CHAT if end.stream else {**CHAT, "stream": False}
    async with client.stream("POST", "/v1/chat/completions", json=body, headers=end.steering) as response:
        assert response.status_code == end.status, (end.name, await response.aread())
        try:
            await response.aread()
            assert end.state == "completed" or end.status != httpx.codes.OK, end.name
        except httpx.HTTPError:
            assert end.state != "completed", end.name
    return response.headers


@METERING
@HTTP2
async def test_every_way_in_which_a_router_ends_is_told_apart(
    gateway: Gateway, metering: Metering, *, http2: bool
) -> None:
    tenant = await gateway.tenant(metering=metering)
    async with gateway.client(tenant, http2=http2) as client:
        asked = [(end, await _ask(client, end)) for end in ENDS]
    for end, headers in asked:
        row = await _one_end(gateway, tenant, headers["x-request-id"], end)
        if end.state == "completed" and "x-demo-usage" not in end.steering:
            assert row["usage_source"] == "exact", end.name
    assert len(await gateway.rows(tenant)) == len(ENDS)


@METERING
@HTTP2
async def test_what_takes_too_long_is_ended_by_our_deadline(
    gateway: Gateway, metering: Metering, *, http2: bool
) -> None:
    tenant = await gateway.tenant(metering=metering)
    async with opened(gateway.dsn) as pool:
        await plans.update(pool, tenant.plan, PlanChanges(stream_seconds=1), trail=TRAIL)
    async with gateway.client(tenant, http2=http2) as client:
        headers = await asyncio.gather(*(_ask(client, end) for end in LATE))
    for end, answered in zip(LATE, headers, strict=True):
        await _one_end(gateway, tenant, answered["x-request-id"], end)


@METERING
@HTTP2
async def test_a_client_may_leave_at_every_event(gateway: Gateway, metering: Metering, *, http2: bool) -> None:
    tenant = await gateway.tenant(metering=metering)
    steering = {"x_demo_events": str(EVENTS), "x_demo_interval_ms": "40"}
    leave = _leave_http2 if http2 else _leave_http1
    # The last two are the stream's own end: after them nobody has left.
    left = await asyncio.gather(*(leave(gateway, tenant, after, steering) for after in range(EVENTS + 2)))
    for after, request_id in enumerate(left):
        record = await gateway.row(request_id)
        seen = await gateway.seen(request_id)
        assert seen is not None
        ended = record.ending
        if after <= EVENTS - 2:
            assert (ended.state, ended.cause) == ("cancelled", "client_disconnect"), after
            assert seen["end"] == "client_closed", after
            assert after <= ended.output_tokens <= seen["events_written"], after
        elif after > EVENTS:
            assert (ended.state, ended.cause, ended.output_tokens) == ("completed", "finished", EVENTS), after
        else:  # the Router may have written its end before it knew
            assert (ended.state, ended.cause) in {("cancelled", "client_disconnect"), ("completed", "finished")}, after
    assert Counter(row["request_id"] for row in await gateway.rows(tenant)) == Counter(left)
    assert await gateway.slots_held(tenant) == 0


async def _leave_http1(gateway: Gateway, tenant: Tenant, after: int, steering: dict[str, str]) -> str:
    headers = {name.replace("_", "-"): value for name, value in steering.items()}
    async with (
        gateway.client(tenant) as client,
        client.stream("POST", "/v1/chat/completions", json=CHAT, headers=headers) as response,
    ):
        lines = response.aiter_lines()
        passed = 0
        while passed < after:
            passed += (await anext(lines)).startswith("data: ")
    return str(response.headers["x-request-id"])


async def _leave_http2(gateway: Gateway, tenant: Tenant, after: int, steering: dict[str, str]) -> str:
    async with http2_post(gateway, tenant, "/v1/chat/completions", CHAT, **steering) as stream:
        await stream.read_headers()
        await stream.read_events(after)
        with contextlib.suppress(h2.exceptions.StreamClosedError):  # it has ended
            await stream.reset()
    return stream.headers["x-request-id"]


@HTTP2
async def test_who_leaves_while_uploading_was_never_a_request(gateway: Gateway, *, http2: bool) -> None:
    tenant = await gateway.tenant()
    body = json.dumps({**INFER, "input": "x" * 500_000}).encode()
    leaving = asyncio.Event()

    async def half() -> Any:
        yield body[: len(body) // 2]
        leaving.set()
        await asyncio.Event().wait()

    client = gateway.client(tenant, http2=http2)
    headers = {"content-type": "application/json"}
    uploading = asyncio.create_task(client.post("/v1/infer", content=half(), headers=headers))
    await leaving.wait()
    uploading.cancel()
    await asyncio.wait([uploading])
    await client.aclose()
    async with gateway.client(tenant) as other:
        answer = await other.post("/v1/infer", json=INFER)
    await gateway.row(answer.headers["x-request-id"])
    rows = await gateway.rows(tenant)
    assert [row["request_id"] for row in rows] == [answer.headers["x-request-id"]]
    assert await gateway.slots_held(tenant) == 0


async def test_who_is_refused_has_no_row_and_holds_nothing(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(tenant) as client:
        wrongs: list[Any] = [{"model": "m"}, {**INFER, "max_tokens": -1}, [], {**INFER, "stream": "yes"}]
        for wrong in wrongs:
            assert (await client.post("/v1/infer", json=wrong)).status_code == httpx.codes.BAD_REQUEST
        answer = await client.post("/v1/infer", json=INFER)
    await gateway.row(answer.headers["x-request-id"])
    assert len(await gateway.rows(tenant)) == 1
    assert await gateway.slots_held(tenant) == 0
