"""Is a client told how its limits stand, on every answer, and are cached and reasoning tokens on record?"""

import re
from typing import Any

import httpx
import pytest

from authz.principal import Metering
from quota.limit import concurrent_requests, requests_per_minute, tokens_per_day
from tests.support.gateway import CORS_ORIGINS, ROOMY, Gateway

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 100}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/messages": CHAT,
    "/v1/infer": {"model": "m", "input": "hello", "max_tokens": 100},
    "/v1/embeddings": {"model": "m", "input": "hello"},
}
LIMITS = (requests_per_minute(3), tokens_per_day(10_000), concurrent_requests(5))
FAMILIES = ("x-ratelimit", "anthropic-ratelimit", "ratelimit")
OWN = {"x-demo-own-limit": "99999"}

meterings = pytest.mark.parametrize("metering", list(Metering))
streams = pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])


def told(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.multi_items() if name.startswith(FAMILIES)}


def left(answer: httpx.Response) -> dict[str, int]:
    """What remains by the RateLimit field."""
    found = re.findall(r'"([^"]+)";r=(\d+)', answer.headers["ratelimit"])
    return {name: int(remaining) for name, remaining in found}


@pytest.mark.parametrize("http2", [False, True], ids=["http/1.1", "http/2"])
@meterings
@streams
async def test_what_is_left_falls_with_each_answer_until_the_refusal(
    gateway: Gateway, metering: Metering, *, stream: bool, http2: bool
) -> None:
    tenant = await gateway.tenant(*LIMITS, metering=metering)
    path = "/v1/chat/completions"
    async with gateway.client(tenant, http2=http2) as client:
        answers = [await client.post(path, json=CHAT | {"stream": stream}, headers=OWN) for _ in range(3)]
        refused = await client.post(path, json=CHAT | {"stream": stream}, headers=OWN)
    assert [answer.status_code for answer in (*answers, refused)] == [200, 200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0"]
    assert [left(answer)["requests_per_minute"] for answer in answers] == [2, 1, 0]
    for answer in (*answers, refused):
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
        assert answer.headers["x-ratelimit-limit-tokens"] == "10000"
        assert 0 < int(answer.headers["x-ratelimit-remaining-tokens"]) < 10_000
        assert re.fullmatch(r"\d+ms|(\d+h)?(\d+m)?\d+s", answer.headers["x-ratelimit-reset-requests"])
        assert answer.headers["ratelimit-policy"] == (
            '"requests_per_minute";q=3;w=60, "tokens_per_day";q=10000;igw-unit="tokens";w=86400, '
            '"concurrent_requests";q=5;qu="concurrent-requests"'
        )
        assert "99999" not in str(told(answer)), "the Router's own limits are not the client's"
    assert left(refused)["requests_per_minute"] == 0
    assert ";t=" not in refused.headers["ratelimit"], "retry-after says it"
    assert int(refused.headers["retry-after"]) >= 1


@meterings
@pytest.mark.parametrize("path", list(BODIES))
async def test_each_dialect_has_its_headers(gateway: Gateway, metering: Metering, path: str) -> None:
    tenant = await gateway.tenant(*LIMITS, metering=metering)
    async with gateway.client(tenant) as client:
        answer = await client.post(path, json=BODIES[path], headers=OWN)
    assert answer.status_code == 200
    prefix, other = ("anthropic-ratelimit-", "x-ratelimit-")[:: 1 if path == "/v1/messages" else -1]
    names = set(told(answer))
    assert {"ratelimit", "ratelimit-policy"} < names
    assert any(name.startswith(prefix) for name in names)
    assert not any(name.startswith(other) for name in names)


async def test_anthropics_client_learns_that_it_is_a_limit_and_no_overload(gateway: Gateway) -> None:
    tenant = await gateway.tenant(*LIMITS)
    async with gateway.client(tenant, headers={"origin": CORS_ORIGINS[0]}) as client:
        answers = [await client.post("/v1/messages", json=CHAT) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    statuses = [answer.headers["anthropic-ratelimit-unified-status"] for answer in answers]
    assert statuses == ["allowed", "allowed", "allowed", "rejected"]
    for answer in answers:
        assert answer.headers["anthropic-ratelimit-unified-reset"].isdecimal()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", answer.headers["anthropic-ratelimit-requests-reset"])
        assert set(told(answer)) <= set(answer.headers["access-control-expose-headers"].split(", "))


@pytest.mark.parametrize(
    "steering", [{"x-demo-status": "503"}, {"x-demo-status": "400"}, {"x-demo-fault": "reset-before-headers"}]
)
@meterings
async def test_a_failure_of_the_router_tells_them_too(
    gateway: Gateway, metering: Metering, steering: dict[str, str]
) -> None:
    tenant = await gateway.tenant(*LIMITS, metering=metering)
    async with gateway.client(tenant) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT, headers=OWN | steering)
    assert answer.status_code in {400, 503}
    assert answer.headers["x-ratelimit-remaining-requests"] == "2"


async def test_models_and_strangers_are_told_nothing(gateway: Gateway) -> None:
    tenant = await gateway.tenant(*LIMITS)
    async with gateway.client(tenant) as client:
        models = await client.get("/v1/models", headers=OWN)
        stranger = await client.post("/v1/infer", json=BODIES["/v1/infer"], headers={"authorization": "Bearer wrong"})
    assert (models.status_code, told(models)) == (200, {})
    assert (stranger.status_code, told(stranger)) == (401, {})


@meterings
@streams
@pytest.mark.parametrize(
    ("path", "reasoning"), [("/v1/chat/completions", 7), ("/v1/infer", 7), ("/v1/messages", 0)], ids=str
)
async def test_cached_and_reasoning_tokens_are_on_record(
    gateway: Gateway, metering: Metering, path: str, reasoning: int, *, stream: bool
) -> None:
    tenant = await gateway.tenant(*ROOMY, metering=metering)
    steering = {"x-demo-usage": "140,12", "x-demo-cached-tokens": "100", "x-demo-reasoning-tokens": "7"}
    async with gateway.client(tenant) as client:
        answer = await client.post(path, json=BODIES[path] | {"stream": stream}, headers=steering)
    ending = (await gateway.row(answer.headers["x-request-id"])).ending
    assert (ending.input_tokens, ending.cached_tokens) == (140, 100)
    assert (ending.output_tokens, ending.reasoning_tokens) == (12, reasoning)
