"""Does a request through the public listener get the Router's answer?"""

import json

import httpx
import httpx2
import openai
import pytest

from authz.principal import Metering
from tests.support.gateway import Gateway, Tenant, streaming, until

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
COMPLETION = {"model": "m", "prompt": "hello"}
INFER = {"model": "m", "input": "hello"}
ASKED = [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION), ("/v1/infer", INFER)]
RESPONSES = ("/v1/responses", INFER)
HTTP2 = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
METERING = pytest.mark.parametrize("metering", list(Metering))


@HTTP2
@METERING
@pytest.mark.parametrize(("path", "body"), [*ASKED, RESPONSES])
async def test_json_is_answered_by_the_router(
    gateway: Gateway, path: str, body: dict[str, object], *, http2: bool, metering: Metering
) -> None:
    tenant = await gateway.tenant(metering=metering)
    async with gateway.client(tenant, http2=http2) as client:
        answer = await client.post(path, json=body)
    assert answer.status_code == 200
    assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
    seen = await gateway.seen(answer.headers["x-request-id"])
    assert seen is not None
    assert json.loads(seen["body"]) == body
    record = await gateway.row(answer.headers["x-request-id"])
    assert (record.ending.state, record.ending.usage_source) == ("completed", "exact")
    assert (record.ending.input_tokens, record.ending.output_tokens) == (seen["tokens_in"], seen["tokens_out"])


@HTTP2
@METERING
@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_a_stream_is_passed_whole(
    gateway: Gateway, path: str, body: dict[str, object], *, http2: bool, metering: Metering
) -> None:
    tenant = await gateway.tenant(metering=metering)
    headers = {"x-demo-events": "5", "x-demo-interval-ms": "1"}
    async with gateway.client(tenant, http2=http2) as client:
        answer = await client.post(path, json={**body, "stream": True}, headers=headers)
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert len(events) == 6
    assert events[-1] == "[DONE]"
    record = await gateway.row(answer.headers["x-request-id"])
    assert record.admission.stream
    assert (record.ending.state, record.ending.usage_source) == ("completed", "exact")
    assert record.ending.output_tokens == 5
    assert record.ending.first_event_ms is not None
    assert record.admission.received_ms <= record.ending.first_event_ms <= record.ending.ended_ms


@HTTP2
@METERING
async def test_events_arrive_as_the_router_writes_them(gateway: Gateway, *, http2: bool, metering: Metering) -> None:
    tenant = await gateway.tenant(metering=metering)
    async with (
        gateway.client(tenant, http2=http2) as client,
        streaming(client, {}, x_demo_events="20", x_demo_interval_ms="100") as (response, events),
    ):
        await anext(events)
        seen = await gateway.seen(response.headers["x-request-id"])
        # The first event is here while the Router is still writing.
        assert seen is not None
        assert seen["end"] == "running"
        assert seen["events_written"] < 20


def _sdk(gateway: Gateway, tenant: Tenant, *, http2: bool) -> openai.AsyncOpenAI:
    http_client = httpx2.AsyncClient(verify=gateway.tls, http1=not http2, http2=http2)
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=tenant.key, http_client=http_client, max_retries=0)


@HTTP2
async def test_the_openai_sdk_gets_an_answer_and_a_stream(gateway: Gateway, *, http2: bool) -> None:
    tenant = await gateway.tenant()
    async with _sdk(gateway, tenant, http2=http2) as sdk:
        answer = await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])
        assert answer.choices[0].message.content
        assert answer.usage is not None
        pieces = [
            chunk.choices[0].delta.content or ""
            async for chunk in await sdk.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "hello"}], stream=True
            )
        ]
    assert len(pieces) > 1


async def test_the_openai_sdk_raises_its_own_errors(gateway: Gateway) -> None:
    stranger = Tenant("", "igw_test_wrong", "", "")
    async with _sdk(gateway, stranger, http2=False) as sdk:
        with pytest.raises(openai.AuthenticationError) as caught:
            await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])
    assert caught.value.code == "invalid_api_key"


@METERING
@pytest.mark.parametrize("split", [1, 7, 100])
async def test_usage_is_read_and_removed_when_events_are_split(
    gateway: Gateway, *, split: int, metering: Metering
) -> None:
    tenant = await gateway.tenant(metering=metering)
    async with gateway.client(tenant) as client:
        answer = await client.post(
            "/v1/chat/completions",
            json={**CHAT, "stream": True},
            headers={"x-demo-events": "4", "x-demo-interval-ms": "0", "x-demo-split": str(split)},
        )
    assert '"choices":[]' not in answer.text.replace(" ", "")
    assert answer.text.count("data: ") == 5
    record = await gateway.row(answer.headers["x-request-id"])
    assert (record.ending.output_tokens, record.ending.usage_source) == (4, "exact")


@METERING
async def test_a_client_that_asks_for_usage_gets_it(gateway: Gateway, metering: Metering) -> None:
    tenant = await gateway.tenant(metering=metering)
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    async with gateway.client(tenant) as client:
        answer = await client.post("/v1/chat/completions", json=body, headers={"x-demo-usage": "3,9"})
    assert '"completion_tokens":9' in answer.text.replace(" ", "")
    record = await gateway.row(answer.headers["x-request-id"])
    assert (record.ending.input_tokens, record.ending.output_tokens) == (3, 9)


@METERING
@pytest.mark.parametrize("stream", [False, True])
async def test_a_router_that_says_zero_is_believed(gateway: Gateway, *, stream: bool, metering: Metering) -> None:
    tenant = await gateway.tenant(metering=metering)
    async with gateway.client(tenant) as client:
        answer = await client.post(
            "/v1/chat/completions", json={**CHAT, "stream": stream}, headers={"x-demo-usage": "zero"}
        )
    record = await gateway.row(answer.headers["x-request-id"])
    assert (record.ending.input_tokens, record.ending.output_tokens) == (0, 0)
    assert record.ending.usage_source == "exact"


@METERING
@pytest.mark.parametrize("stream", [False, True])
async def test_a_router_that_says_nothing_is_charged_by_estimate(
    gateway: Gateway, *, stream: bool, metering: Metering
) -> None:
    tenant = await gateway.tenant(metering=metering)
    async with gateway.client(tenant) as client:
        answer = await client.post(
            "/v1/chat/completions",
            json={**CHAT, "stream": stream},
            headers={"x-demo-usage": "none", "x-demo-events": "8", "x-demo-interval-ms": "0"},
        )
    record = await gateway.row(answer.headers["x-request-id"])
    assert record.ending.usage_source == "estimated"
    assert record.ending.output_tokens > 0
    assert record.ending.input_tokens == record.admission.input_estimate


@METERING
@pytest.mark.parametrize("size", [1_000_000, 4_000_000])
async def test_a_large_body_reaches_the_router_whole(gateway: Gateway, *, size: int, metering: Metering) -> None:
    tenant = await gateway.tenant(metering=metering)
    body = {"model": "m", "input": "x" * size, "stream": True}
    async with gateway.client(tenant, http2=True) as client:
        answer = await client.post("/v1/infer", json=body)
    assert answer.status_code == 200
    seen = await gateway.seen(answer.headers["x-request-id"])
    assert seen is not None
    assert seen["body_bytes"] > size


async def test_large_events_pass_in_both_meterings(gateway: Gateway) -> None:
    texts = []
    for metering in Metering:
        tenant = await gateway.tenant(metering=metering)
        headers = {"x-demo-padding": "200000", "x-demo-events": "3", "x-demo-interval-ms": "0"}
        async with gateway.client(tenant) as client:
            answer = await client.post("/v1/infer", json={**INFER, "stream": True}, headers=headers)
        texts.append(answer.text)
        assert len(answer.content) > 600_000
        record = await gateway.row(answer.headers["x-request-id"])
        assert record.ending.output_tokens == 3
    assert texts[0] == texts[1]


async def test_a_slow_router_before_its_headers_is_waited_for(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(tenant) as client:
        answer = await client.post("/v1/infer", json=INFER, headers={"x-demo-delay-ms": "1500"})
    assert answer.status_code == 200


async def test_every_admitted_request_has_one_row(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(tenant) as client:
        await _many(client, 40)

    async def all_there() -> bool:
        return len(await gateway.rows(tenant)) >= 40

    await until(all_there)
    rows = await gateway.rows(tenant)
    assert len(rows) == len({row["request_id"] for row in rows}) == 40


async def _many(client: httpx.AsyncClient, count: int) -> None:
    for at in range(count):
        answer = await client.post(
            "/v1/infer", json={**INFER, "stream": at % 2 == 0}, headers={"x-demo-interval-ms": "0"}
        )
        assert answer.status_code == 200
