"""Do Anthropic's messages and the dialects of OpenAI beside chat work with their own SDKs, and is each charged?"""

import json
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest

from authz.principal import Metering
from quota.limit import Limit, requests_per_minute, tokens_per_day
from tests.support.gateway import MAX_BODY_BYTES, Gateway, Tenant

MESSAGES: list[anthropic.types.MessageParam] = [{"role": "user", "content": "Explain gravity"}]
MESSAGE = {"model": "m", "messages": MESSAGES, "max_tokens": 100}
QUICK = {"x-demo-interval-ms": "0"}
STRANGER = Tenant("", "igw_test_wrong", "", "")
METERING = pytest.mark.parametrize("metering", list(Metering))
HTTP2 = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])


def _claude(gateway: Gateway, tenant: Tenant, *, http2: bool = False) -> anthropic.AsyncAnthropic:
    http_client = httpx2.AsyncClient(verify=gateway.tls, http1=not http2, http2=http2)
    return anthropic.AsyncAnthropic(
        base_url=gateway.url, api_key=tenant.key, http_client=http_client, max_retries=0, timeout=60.0
    )


def _openai(gateway: Gateway, tenant: Tenant, *, http2: bool = False) -> openai.AsyncOpenAI:
    http_client = httpx2.AsyncClient(verify=gateway.tls, http1=not http2, http2=http2)
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=tenant.key, http_client=http_client, max_retries=0)


async def _charged(gateway: Gateway, request_id: str) -> tuple[int, int, str]:
    ending = (await gateway.row(request_id)).ending
    return ending.input_tokens, ending.output_tokens, ending.usage_source


@HTTP2
@METERING
async def test_a_message_is_answered_and_charged(gateway: Gateway, *, http2: bool, metering: Metering) -> None:
    tenant = await gateway.tenant(metering=metering)
    async with _claude(gateway, tenant, http2=http2) as sdk:
        raw = await sdk.messages.with_raw_response.create(model="m", messages=MESSAGES, max_tokens=100)
        answer = await raw.parse()
    assert answer.content[0].type == "text"
    assert answer.content[0].text.startswith("You asked: Explain gravity")
    record = await gateway.row(raw.headers["x-request-id"])
    assert (record.admission.path, record.admission.stream) == ("/v1/messages", False)
    assert (record.admission.model, record.admission.output_reserved) == ("m", 100)
    assert (record.ending.state, record.ending.usage_source) == ("completed", "exact")
    assert (record.ending.input_tokens, record.ending.output_tokens) == (
        answer.usage.input_tokens,
        answer.usage.output_tokens,
    )


@HTTP2
@METERING
async def test_a_streamed_message_is_followed_and_charged(gateway: Gateway, *, http2: bool, metering: Metering) -> None:
    tenant = await gateway.tenant(metering=metering)
    async with (
        _claude(gateway, tenant, http2=http2) as sdk,
        sdk.messages.stream(model="m", messages=MESSAGES, max_tokens=100, extra_headers=QUICK) as stream,
    ):
        pieces = [piece async for piece in stream.text_stream]
        whole = await stream.get_final_message()
    assert len(pieces) == 12
    assert whole.stop_reason == "end_turn"
    record = await gateway.row(stream.response.headers["x-request-id"])
    assert record.admission.stream
    assert (record.ending.state, record.ending.usage_source) == ("completed", "exact")
    assert (record.ending.input_tokens, record.ending.output_tokens) == (whole.usage.input_tokens, 12)
    assert record.ending.first_event_ms is not None


@METERING
@pytest.mark.parametrize("split", [1, 7, 100_000])
async def test_the_usage_of_a_stream_is_its_last_not_a_sum(gateway: Gateway, *, split: int, metering: Metering) -> None:
    """Its first event says the input and one token of output, its last but one the output of all."""
    tenant = await gateway.tenant(metering=metering)
    headers = {**QUICK, "x-demo-usage": "30,900", "x-demo-events": "4", "x-demo-split": str(split)}
    async with gateway.client(tenant) as client:
        answer = await client.post("/v1/messages", json={**MESSAGE, "stream": True}, headers=headers)
    assert await _charged(gateway, answer.headers["x-request-id"]) == (30, 900, "exact")


@METERING
async def test_nothing_of_an_anthropic_stream_is_changed(gateway: Gateway, metering: Metering) -> None:
    tenant = await gateway.tenant(metering=metering)
    body = json.dumps({**MESSAGE, "stream": True, "stream_options": None}, indent=3)
    headers = {**QUICK, "content-type": "application/json", "x-demo-events": "2"}
    async with gateway.client(tenant) as client:
        answer = await client.post("/v1/messages", content=body, headers=headers)
    seen = await gateway.seen(answer.headers["x-request-id"])
    assert seen is not None
    assert seen["body"] == body
    assert [line.removeprefix("event: ") for line in answer.text.splitlines() if line.startswith("event: ")] == [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert answer.text.count('"usage"') == 2


async def test_a_broken_stream_is_charged_for_its_input_and_what_passed(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    headers = {**QUICK, "x-demo-usage": "30,900", "x-demo-events": "20", "x-demo-fault": "close-mid-stream"}
    async with (
        gateway.client(tenant) as client,
        client.stream("POST", "/v1/messages", headers=headers, json={**MESSAGE, "stream": True}) as answer,
    ):
        with pytest.raises(httpx.RemoteProtocolError):
            await answer.aread()
    record = await gateway.row(answer.headers["x-request-id"])
    assert (record.ending.state, record.ending.input_tokens) == ("failed", 30)
    # Ten pieces, and the three events that open a stream.
    assert 10 <= record.ending.output_tokens <= 13
    assert record.ending.usage_source == "estimated"


def _checked(error: anthropic.APIStatusError, kind: str, code: str) -> dict[str, Any]:
    body = error.body
    assert isinstance(body, dict)
    assert set(body) == {"type", "error", "request_id"}
    assert (body["type"], body["error"]["type"], body["error"]["code"]) == ("error", kind, code)
    assert body["error"]["message"]
    assert body["request_id"] == error.response.headers["x-request-id"]
    return dict(body["error"])


async def test_a_wrong_key_is_anthropics_authentication_error(gateway: Gateway) -> None:
    async with _claude(gateway, STRANGER) as sdk:
        with pytest.raises(anthropic.AuthenticationError) as caught:
            await sdk.messages.create(model="m", messages=MESSAGES, max_tokens=5)
    _checked(caught.value, "authentication_error", "invalid_api_key")
    assert caught.value.request_id == caught.value.response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("limit", "code"),
    [(requests_per_minute(1), "rate_limit_exceeded"), (tokens_per_day(130), "insufficient_quota")],
    ids=["rate", "budget"],
)
async def test_a_full_limit_is_anthropics_rate_limit_error(gateway: Gateway, limit: Limit, code: str) -> None:
    tenant = await gateway.tenant(limit)
    async with _claude(gateway, tenant) as sdk:
        await sdk.messages.create(model="m", messages=MESSAGES, max_tokens=90, extra_headers={"x-demo-usage": "30,90"})
        with pytest.raises(anthropic.RateLimitError) as caught:
            await sdk.messages.create(model="m", messages=MESSAGES, max_tokens=90)
    assert _checked(caught.value, "rate_limit_error", code)["details"]["limit"] == limit.name
    assert int(caught.value.response.headers["retry-after"]) >= 1


async def test_a_wrong_field_is_anthropics_invalid_request(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with _claude(gateway, tenant) as sdk:
        with pytest.raises(anthropic.BadRequestError) as caught:
            await sdk.messages.create(model="m", messages=MESSAGES, max_tokens=0)
    assert _checked(caught.value, "invalid_request_error", "invalid_body")["param"] == "max_tokens"


async def test_a_large_body_is_anthropics_request_too_large(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with _claude(gateway, tenant, http2=True) as sdk:
        with pytest.raises(anthropic.RequestTooLargeError) as caught:
            await sdk.messages.create(
                model="m", messages=[{"role": "user", "content": "x" * MAX_BODY_BYTES}], max_tokens=5
            )
    _checked(caught.value, "request_too_large", "payload_too_large")


async def test_what_the_gateway_does_not_serve_is_anthropics_not_found(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with _claude(gateway, tenant) as sdk:
        with pytest.raises(anthropic.NotFoundError) as caught:
            await sdk.messages.count_tokens(model="m", messages=MESSAGES)
    _checked(caught.value, "not_found_error", "unknown_path")


async def test_a_router_that_is_away_is_anthropics_api_error(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with _claude(gateway, tenant) as sdk:
        with pytest.raises(anthropic.InternalServerError) as caught:
            await sdk.messages.create(
                model="m", messages=MESSAGES, max_tokens=5, extra_headers={"x-demo-fault": "reset-before-headers"}
            )
    _checked(caught.value, "api_error", "upstream_unavailable")


async def test_the_routers_own_anthropic_error_passes_unchanged(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with _claude(gateway, tenant) as sdk:
        with pytest.raises(anthropic.OverloadedError) as caught:
            await sdk.messages.create(
                model="m", messages=MESSAGES, max_tokens=5, extra_headers={"x-demo-status": "529"}
            )
    request_id = caught.value.response.headers["x-request-id"]
    error = {"type": "overloaded_error", "message": "the request asked for status 529"}
    assert caught.value.body == {"type": "error", "error": error, "request_id": request_id}
    record = await gateway.row(request_id)
    assert (record.ending.state, record.ending.cause) == ("failed", "upstream_error")
    assert (record.ending.input_tokens, record.ending.output_tokens) == (0, 0)


@METERING
async def test_completions_are_answered_and_charged_with_all_their_choices(
    gateway: Gateway, metering: Metering
) -> None:
    tenant = await gateway.tenant(metering=metering)
    async with _openai(gateway, tenant) as sdk:
        raw = await sdk.completions.with_raw_response.create(
            model="m", prompt="Explain gravity", n=2, best_of=3, max_tokens=4
        )
    answer = raw.parse()
    assert [choice.text for choice in answer.choices] == ["You asked: Explain gravity"] * 2
    assert answer.usage is not None
    record = await gateway.row(raw.headers["x-request-id"])
    assert (record.admission.path, record.admission.stream) == ("/v1/completions", False)
    assert record.admission.output_reserved == 12, "every candidate is written"
    assert (record.ending.state, record.ending.usage_source) == ("completed", "exact")
    assert (record.ending.input_tokens, record.ending.output_tokens) == (answer.usage.prompt_tokens, 8)


@METERING
@pytest.mark.parametrize("asks", [False, True])
async def test_a_stream_of_completions_says_its_usage_to_who_asks(
    gateway: Gateway, *, asks: bool, metering: Metering
) -> None:
    tenant = await gateway.tenant(metering=metering)
    options: Any = {"stream_options": {"include_usage": True}} if asks else {}
    async with _openai(gateway, tenant) as sdk:
        stream = await sdk.completions.create(
            model="m", prompt="Explain gravity", n=2, max_tokens=4, stream=True, extra_headers=QUICK, **options
        )
        chunks = [chunk async for chunk in stream]
    assert [chunk.choices[0].index for chunk in chunks if chunk.choices] == [0, 1] * 4
    assert [chunk.usage is not None for chunk in chunks if not chunk.choices] == [True] * asks
    record = await gateway.row(stream.response.headers["x-request-id"])
    assert (record.admission.stream, record.ending.state) == (True, "completed")
    assert (record.ending.output_tokens, record.ending.usage_source) == (8, "exact")


@HTTP2
@METERING
async def test_a_response_is_answered_and_charged(gateway: Gateway, *, http2: bool, metering: Metering) -> None:
    tenant = await gateway.tenant(metering=metering)
    headers = {"x-demo-cached-tokens": "1", "x-demo-reasoning-tokens": "2"}
    async with _openai(gateway, tenant, http2=http2) as sdk:
        raw = await sdk.responses.with_raw_response.create(
            model="m", input="Explain gravity", max_output_tokens=100, extra_headers=headers
        )
    answer = raw.parse()
    request_id = raw.headers["x-request-id"]
    assert answer.id == f"resp_{request_id}", "by which it can be cancelled"
    assert answer.output_text.startswith("You asked: Explain gravity")
    assert answer.usage is not None
    record = await gateway.row(request_id)
    assert (record.admission.path, record.admission.output_reserved) == ("/v1/responses", 100)
    assert (record.ending.state, record.ending.usage_source) == ("completed", "exact")
    assert (record.ending.input_tokens, record.ending.output_tokens) == (answer.usage.input_tokens, 12)
    assert (record.ending.cached_tokens, record.ending.reasoning_tokens) == (1, 2)


@HTTP2
@METERING
async def test_a_streamed_response_is_followed_and_charged(
    gateway: Gateway, *, http2: bool, metering: Metering
) -> None:
    tenant = await gateway.tenant(metering=metering)
    headers = {**QUICK, "x-demo-cached-tokens": "1", "x-demo-reasoning-tokens": "2"}
    async with _openai(gateway, tenant, http2=http2) as sdk:
        stream = await sdk.responses.create(model="m", input="Explain gravity", stream=True, extra_headers=headers)
        events = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(20)), "nothing is removed"
    assert events[-1].type == "response.completed"
    usage = events[-1].response.usage
    assert usage is not None
    record = await gateway.row(stream.response.headers["x-request-id"])
    assert record.admission.stream
    assert (record.ending.state, record.ending.usage_source) == ("completed", "exact")
    assert (record.ending.input_tokens, record.ending.output_tokens) == (usage.input_tokens, 12)
    assert (record.ending.cached_tokens, record.ending.reasoning_tokens) == (1, 2)
    assert record.ending.first_event_ms is not None


@METERING
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("terminal", ["incomplete", "failed"])
async def test_a_response_that_does_not_end_well_is_charged_what_it_says(
    gateway: Gateway, *, stream: bool, terminal: str, metering: Metering
) -> None:
    tenant = await gateway.tenant(metering=metering)
    headers = {**QUICK, "x-demo-usage": "30,900", "x-demo-events": "4", "x-demo-terminal": terminal}
    async with gateway.client(tenant) as client:
        body = {"model": "m", "input": "Explain gravity", "stream": stream}
        answer = await client.post("/v1/responses", json=body, headers=headers)
    assert f'"status":"{terminal}"' in answer.text
    assert await _charged(gateway, answer.headers["x-request-id"]) == (30, 900, "exact")


async def test_a_response_in_the_background_is_refused(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with _openai(gateway, tenant) as sdk:
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.responses.create(model="m", input="Explain gravity", background=True)
    assert (caught.value.code, caught.value.param) == ("invalid_body", "background")


@METERING
async def test_embeddings_are_charged_for_their_input_alone(gateway: Gateway, metering: Metering) -> None:
    tenant = await gateway.tenant(metering=metering)
    async with _openai(gateway, tenant) as sdk:
        raw = await sdk.embeddings.with_raw_response.create(model="m", input=["Explain gravity", "and light"])
    answer = raw.parse()
    assert [len(one.embedding) for one in answer.data] == [8, 8]
    record = await gateway.row(raw.headers["x-request-id"])
    assert (record.admission.path, record.admission.output_reserved) == ("/v1/embeddings", 0)
    assert (record.ending.state, record.ending.usage_source) == ("completed", "exact")
    assert (record.ending.input_tokens, record.ending.output_tokens) == (answer.usage.prompt_tokens, 0)


async def test_embeddings_without_usage_are_charged_by_estimate(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(tenant) as client:
        answer = await client.post(
            "/v1/embeddings", json={"model": "m", "input": "Explain gravity"}, headers={"x-demo-usage": "none"}
        )
    record = await gateway.row(answer.headers["x-request-id"])
    assert record.ending.usage_source == "estimated"
    assert (record.ending.input_tokens, record.ending.output_tokens) == (record.admission.input_estimate, 0)


async def test_models_are_listed_and_cost_nothing(gateway: Gateway) -> None:
    tenant = await gateway.tenant(requests_per_minute(1))
    async with _openai(gateway, tenant) as sdk:
        for _ in range(3):
            raw = await sdk.models.with_raw_response.list()
            assert {model.id for model in raw.parse().data} == {"demo-small", "demo-large"}
    seen = await gateway.seen(raw.headers["x-request-id"])
    assert seen is not None
    assert ["x-tenant-id", tenant.id] in seen["headers"]
    assert "authorization" not in dict(seen["headers"])
    assert await gateway.rows(tenant) == []


async def test_models_need_a_credential(gateway: Gateway) -> None:
    async with _openai(gateway, STRANGER) as sdk:
        with pytest.raises(openai.AuthenticationError):
            await sdk.models.list()
