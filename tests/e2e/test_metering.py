"""Do both ways of metering find the same? Every case is asked in both, and its rows are compared."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from authz.principal import Metering
from tests.support.gateway import Gateway, until

MESSAGES = [{"role": "user", "content": "Explain gravity"}]
ASKS: dict[str, dict[str, Any]] = {
    "/v1/infer": {"input": "Explain gravity"},
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "Explain gravity"},
    "/v1/responses": {"input": "Explain gravity"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 100},
    "/v1/embeddings": {"input": "Explain gravity"},
}
TALKING = tuple(path for path in ASKS if path != "/v1/embeddings")
CHAT, RESPONSES, CLAUDE = "/v1/chat/completions", "/v1/responses", "/v1/messages"
QUICK = {"x-demo-interval-ms": "0", "x-demo-events": "5"}
PARTS = {"x-demo-usage": "100,50", "x-demo-cached-tokens": "60", "x-demo-reasoning-tokens": "20"}
WORDS = {"x-demo-decision": '{"model": "small"}', "x-demo-cost": '{"total_usd": "0.0000011"}'}
EXACT = ("completed", "finished", "exact")
ESTIMATED = ("completed", "finished", "estimated")
# What differs from one request to the next, or by how it was metered.
OF_ITS_OWN = frozenset(
    {*("request_id", "tenant_id", "organization_id", "principal_id", "key_id", "plan", "metering"), "settlement"}
)


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked, and state, cause and source of usage in the row; `tokens` are in and out, where they are known."""

    name: str
    path: str
    outcome: tuple[str, str, str]
    tokens: tuple[int, int] | None = None
    steering: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)


def _cases() -> list[Case]:
    stream = {"stream": True}
    cases = [Case(f"{path}, JSON", path, EXACT, (100, 50), PARTS) for path in TALKING]
    cases += [Case(f"{path}, stream", path, EXACT, (100, 50), PARTS, stream) for path in TALKING]
    cases += [
        Case(f"{path}, stream that does not say", path, ESTIMATED, None, {"x-demo-usage": "none"}, stream)
        for path in TALKING
    ]
    said = {"x-demo-usage": "30,900"}
    # At a pace: while Envoy waits for what Process says of the headers, an answer that breaks off has not begun.
    cut = {"x-demo-events": "10", "x-demo-fault": "close-mid-stream", "x-demo-interval-ms": "20"}
    return [
        *cases,
        Case("embeddings", "/v1/embeddings", EXACT, (100, 0), PARTS),
        Case("JSON that does not say", CHAT, ESTIMATED, None, {"x-demo-usage": "none"}),
        Case("zeros", CHAT, EXACT, (0, 0), {"x-demo-usage": "zero"}, stream),
        Case(
            "a client that asks for usage",
            CHAT,
            EXACT,
            (30, 900),
            said,
            stream | {"stream_options": {"include_usage": True}},
        ),
        Case("events in crumbs", CHAT, EXACT, (30, 900), said | {"x-demo-split": "7"}, stream),
        Case("events in heaps", CHAT, EXACT, (30, 900), said | {"x-demo-batch": "4"}, stream),
        Case("pings", CLAUDE, ESTIMATED, None, {"x-demo-usage": "none", "x-demo-pings": "9"}, stream),
        Case("incomplete response", RESPONSES, EXACT, (30, 900), said | {"x-demo-terminal": "incomplete"}, stream),
        Case(
            "failed response",
            *(RESPONSES, ("failed", "upstream_error", "exact"), (30, 900)),
            *(said | {"x-demo-terminal": "failed"}, stream),
        ),
        Case("words in headers", CHAT, EXACT, (30, 900), said | WORDS, stream),
        Case("words in comments", CHAT, EXACT, (30, 900), said | WORDS | {"x-demo-words": "comment"}, stream),
        Case("words of JSON", CHAT, EXACT, (30, 900), said | WORDS),
        Case("cut in the midst", CHAT, ("failed", "upstream_reset", "estimated"), None, cut, stream),
        Case("Anthropic's, cut in the midst", CLAUDE, ("failed", "upstream_reset", "estimated"), None, cut, stream),
        Case("an error", CHAT, ("failed", "upstream_error", "exact"), (0, 0), {"x-demo-status": "500"}),
        Case("the caller's mistake", CHAT, ("failed", "upstream_error", "exact"), (0, 0), {"x-demo-status": "404"}),
        Case(
            "gone before its headers",
            *(CHAT, ("failed", "upstream_reset", "estimated"), (0, 0)),
            *({"x-demo-fault": "close-before-headers"}, stream),
        ),
    ]


CASES = _cases()


async def _found(gateway: Gateway, case: Case, metering: Metering) -> tuple[bytes, dict[str, Any]]:
    """What the client got, and its row."""
    tenant = await gateway.tenant(metering=metering)
    # A model of its own: what is learned of others does not change the estimate.
    body, got = {"model": f"m-{case.name}", **ASKS[case.path], **case.body}, bytearray()
    async with (
        gateway.client(tenant) as client,
        client.stream("POST", case.path, json=body, headers=QUICK | case.steering) as answer,
    ):
        try:
            async for piece in answer.aiter_bytes():
                got += piece
        except httpx.RemoteProtocolError:
            assert "mid-stream" in case.steering["x-demo-fault"]

    async def row() -> dict[str, Any] | None:
        return next(iter(await gateway.rows(tenant)), None)

    found = await until(row)
    assert found is not None
    assert found["metering"] == metering
    # What is in an answer of the request's own id, and its time, is of one length.
    return bytes(got), found


def _compared(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in row.items()
        if name not in OF_ITS_OWN and not name.endswith("_at") and not name.endswith("_ms")
    }


def _events(body: bytes) -> int:
    """The events of a stream that are no pings."""
    return sum(event.strip() != b"" and b"event: ping" not in event for event in body.split(b"\n\n")[:-1])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_both_find_the_same(gateway: Gateway, case: Case) -> None:
    (of_native, native), (of_inline, inline) = await asyncio.gather(
        *(_found(gateway, case, metering) for metering in (Metering.NATIVE, Metering.INLINE))
    )
    if "mid-stream" in case.steering.get("x-demo-fault", ""):
        # What is on its way through the sidecar when the connection breaks reaches no client, and is not charged.
        assert 0 <= native["output_tokens"] - inline["output_tokens"] <= 1
    else:
        assert _compared(native) == _compared(inline)
        assert len(of_native) == len(of_inline)
    assert [row["events"] for row in (native, inline)] == [_events(got) for got in (of_native, of_inline)]
    for row in (native, inline):
        assert (row["state"], row["cause"], row["usage_source"]) == case.outcome
    if case.tokens is not None:
        assert (native["input_tokens"], native["output_tokens"]) == case.tokens
    for row in (native, inline):
        assert (row["first_event_at"] is None) is (not case.body.get("stream") or row["status"] != 200)
    if "x-demo-cost" in case.steering:
        assert (native["cost_micros"], json.loads(native["actual_cost"])) == (2, json.loads(WORDS["x-demo-cost"]))
        assert json.loads(native["routing_snapshot"]) == {"model": "small"}


def test_every_dialect_has_its_cases() -> None:
    assert {case.path for case in CASES} == set(ASKS)
