"""Does it matter to anybody that the Router compresses? Not to the client, and not to the ledger."""

import asyncio
import json
from typing import Any

import pytest

from authz.principal import Metering
from tests.support.gateway import Gateway, Tenant, until

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Explain gravity"}]}
QUICK = {"x-demo-interval-ms": "0", "x-demo-usage": "30,900", "x-demo-events": "12"}
# Of the row: what was found in the answer.
FOUND = (
    "state",
    "cause",
    "status",
    "input_tokens",
    "output_tokens",
    "usage_source",
    "events",
    "response_bytes",
)

meterings = pytest.mark.parametrize("metering", list(Metering))
codings = pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
streams = pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])


async def _asked(
    gateway: Gateway, tenant: Tenant, steering: dict[str, str], *, stream: bool
) -> tuple[str, dict[str, Any]]:
    """What the client got, but for what differs from one request to the next, and its row."""
    body = CHAT | ({"stream": True} if stream else {})
    # A client that would take it compressed gets it plain: what it wants does not reach the Router.
    headers = QUICK | steering | {"accept-encoding": "gzip, br, zstd"}
    async with gateway.client(tenant) as client:
        answer = await client.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200
    assert "content-encoding" not in answer.headers
    request_id = answer.headers["x-request-id"]

    async def row() -> dict[str, Any] | None:
        return next((row for row in await gateway.rows(tenant) if row["request_id"] == request_id), None)

    found = await until(row)
    assert found is not None
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    said = [json.loads(line)["choices"] for line in lines if line != "[DONE]"]
    return f"{said}{lines[-1] == '[DONE]'}", {name: found[name] for name in FOUND}


@meterings
@codings
@streams
async def test_a_compressed_answer_is_read_and_charged_as_the_plain_one(
    gateway: Gateway, coding: str, metering: Metering, *, stream: bool
) -> None:
    tenant = await gateway.tenant(metering=metering)
    plain, compressed = await asyncio.gather(
        _asked(gateway, tenant, {}, stream=stream), _asked(gateway, tenant, {"x-demo-encoding": coding}, stream=stream)
    )
    assert compressed == plain
    assert plain[1]["usage_source"] == "exact"


@meterings
@codings
async def test_what_a_compressed_stream_does_not_say_is_charged_by_its_events(
    gateway: Gateway, coding: str, metering: Metering
) -> None:
    tenant = await gateway.tenant(metering=metering)
    steering = {"x-demo-encoding": coding, "x-demo-usage": "none"}
    _, row = await _asked(gateway, tenant, steering, stream=True)
    assert (row["output_tokens"], row["usage_source"]) == (13, "estimated"), "twelve, and the end"


@codings
async def test_a_compressed_answer_to_a_request_with_a_key_passes(gateway: Gateway, coding: str) -> None:
    tenant = await gateway.tenant()
    steering = {"x-demo-encoding": coding, "idempotency-key": f'"{coding}"'}
    _, row = await _asked(gateway, tenant, steering, stream=False)
    assert (row["output_tokens"], row["usage_source"]) == (900, "exact")
