"""What the shipped Envoy makes of our messages: headers on the answers of admitted requests, and usage in its log."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from authz.refusal import Reason, Refusal
from demo import message as anthropic
from extproc.wire import ADMISSION_NAMESPACE
from tests.extproc.real_envoy import CORS_ORIGIN, METERING, RealEnvoy, running

CHAT, MESSAGES, INFER, EMBEDDINGS = "/v1/chat/completions", "/v1/messages", "/v1/infer", "/v1/embeddings"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "m", "messages": [{"role": "user", "content": "hello"}]},
    MESSAGES: {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 100},
    INFER: {"model": "m", "input": "hello"},
    EMBEDDINGS: {"model": "m", "input": "hello"},
}
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}
TOLD = (
    ("x-ratelimit-remaining-requests", "6"),
    ("anthropic-ratelimit-unified-status", "allowed"),
    ("ratelimit-policy", '"requests_per_minute";q=7;w=60, "a \\"b\\"";q=1;qu="concurrent-requests"'),
    ("ratelimit", '"requests_per_minute";r=6;t=60, "a \\"b\\"";r=0'),
)
# What the Router says of itself, in every family of names.
OWN = {"x-demo-own-limit": "99"}
FAMILIES = ("x-ratelimit", "anthropic-ratelimit", "ratelimit")
INLINE = {METERING: "inline"}

meterings = pytest.mark.parametrize("metering", [{}, INLINE], ids=["native", "inline"])
streams = pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])


@pytest.fixture(scope="module")
def envoy() -> Iterator[RealEnvoy]:
    with running() as envoy:
        yield envoy


@pytest.fixture(autouse=True)
def _anew(envoy: RealEnvoy) -> None:
    envoy.sidecar.told, envoy.sidecar.refusal = TOLD, None


def told(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.multi_items() if name.startswith(FAMILIES)}


@pytest.mark.parametrize("http2", [False, True], ids=["http/1.1", "http/2"])
@meterings
@streams
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_an_answer_tells_what_process_said_and_not_what_the_router_says(
    envoy: RealEnvoy, path: str, metering: dict[str, str], *, stream: bool, http2: bool
) -> None:
    async with envoy.client(http2=http2) as client:
        answer = await client.post(path, json=BODIES[path] | {"stream": stream}, headers=OWN | metering)
    assert answer.status_code == 200
    assert told(answer) == dict(TOLD)
    entry = await envoy.entry(answer)
    assert entry.record == answer.headers["x-request-id"]
    fields = entry._metadata[ADMISSION_NAMESPACE].fields
    assert fields["told"].string_value == "", "it has done its work"
    assert not fields["told"].HasField("struct_value")


@meterings
@pytest.mark.parametrize(
    ("steering", "status"), [({"x-demo-status": "503"}, 503), ({"x-demo-fault": "reset-before-headers"}, 503)]
)
async def test_a_failure_of_the_router_tells_the_same(
    envoy: RealEnvoy, metering: dict[str, str], steering: dict[str, str], status: int
) -> None:
    async with envoy.client() as client:
        answer = await client.post(CHAT, json=BODIES[CHAT], headers=OWN | metering | steering)
    assert (answer.status_code, told(answer)) == (status, dict(TOLD))
    assert (await envoy.entry(answer)).record == answer.headers["x-request-id"]


@meterings
async def test_nothing_told_is_no_header(envoy: RealEnvoy, metering: dict[str, str]) -> None:
    envoy.sidecar.told = TOLD[:1]
    async with envoy.client() as client:
        one = await client.post(CHAT, json=BODIES[CHAT], headers=OWN | metering)
        envoy.sidecar.told = ()
        none = await client.post(CHAT, json=BODIES[CHAT], headers=OWN | metering)
    assert (told(one), told(none)) == (dict(TOLD[:1]), {})


@meterings
async def test_a_refusal_tells_its_own(envoy: RealEnvoy, metering: dict[str, str]) -> None:
    envoy.sidecar.refusal = Refusal(
        reason=Reason.RATE_LIMIT_EXCEEDED,
        retry_after_ms=1500,
        headers=(("x-ratelimit-remaining-requests", "0"), ("ratelimit", '"a";r=0'), ("x-should-retry", "false")),
    )
    async with envoy.client() as client:
        answer = await client.post(MESSAGES, json=BODIES[MESSAGES], headers=metering | {"origin": CORS_ORIGIN})
    assert answer.status_code == 429
    assert told(answer) == {"x-ratelimit-remaining-requests": "0", "ratelimit": '"a";r=0'}
    assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("2", "false")
    assert set(told(answer)) <= set(answer.headers["access-control-expose-headers"].split(", "))
    assert (await envoy.entry(answer)).is_refusal


async def test_what_is_not_limited_tells_nothing(envoy: RealEnvoy) -> None:
    async with envoy.client() as client:
        answer = await client.get("/v1/models", headers=OWN)
    assert (answer.status_code, told(answer)) == (200, {})


async def usage(
    envoy: RealEnvoy, path: str, steering: dict[str, str], *, stream: bool = False
) -> tuple[int | None, int | None, int | None, int | None]:
    """Input, cached, output and reasoning tokens of an answer that claims 140 and 12, as the access log has them."""
    body = BODIES[path] | (WITH_USAGE if stream else {})
    async with envoy.client() as client:
        answer = await client.post(path, json=body, headers={"x-demo-usage": "140,12"} | steering)
    assert answer.status_code == 200
    seen = (await envoy.entry(answer)).observation()
    return seen.input_tokens, seen.cached_tokens, seen.output_tokens, seen.reasoning_tokens


CACHED = {"x-demo-cached-tokens": "100", "x-demo-reasoning-tokens": "7"}
WRITTEN = {"x-demo-cache-written-tokens": "30"}


@meterings
@streams
@pytest.mark.parametrize("path", [CHAT, INFER])
async def test_openais_cached_and_reasoning_tokens_are_parts_of_what_is_said(
    envoy: RealEnvoy, path: str, metering: dict[str, str], *, stream: bool
) -> None:
    assert await usage(envoy, path, metering | CACHED, stream=stream) == (140, 100, 12, 7)
    assert await usage(envoy, path, metering, stream=stream) == (140, None, 12, None)


@meterings
@streams
async def test_anthropics_cached_tokens_stand_beside_the_others(
    envoy: RealEnvoy, metering: dict[str, str], *, stream: bool
) -> None:
    assert await usage(envoy, MESSAGES, metering | CACHED | WRITTEN, stream=stream) == (140, 100, 12, None)
    assert await usage(envoy, MESSAGES, metering | WRITTEN, stream=stream) == (140, 0, 12, None)
    assert await usage(envoy, MESSAGES, metering, stream=stream) == (140, None, 12, None)


async def test_embeddings_say_their_input_alone(envoy: RealEnvoy) -> None:
    assert await usage(envoy, EMBEDDINGS, CACHED) == (140, None, None, None)


async def test_a_null_takes_back_nothing(envoy: RealEnvoy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anthropic's last event may say null for what its first event said."""
    nulls = {"input_tokens": None, "cache_read_input_tokens": None, "cache_creation_input_tokens": None}
    monkeypatch.setattr(anthropic, "_closing_numbers", lambda _: nulls | {"output_tokens": 12})
    assert await usage(envoy, MESSAGES, CACHED | WRITTEN, stream=True) == (140, 100, 12, None)


async def test_a_stream_broken_off_has_said_its_input(envoy: RealEnvoy) -> None:
    body = BODIES[MESSAGES] | {"stream": True}
    steering = CACHED | WRITTEN | {"x-demo-usage": "140,12", "x-demo-fault": "reset-mid-stream"}
    async with envoy.client() as client, client.stream("POST", MESSAGES, json=body, headers=steering) as answer:
        with pytest.raises(httpx.RemoteProtocolError):
            await answer.aread()
    seen = (await envoy.entry(answer)).observation()
    assert (seen.input_tokens, seen.cached_tokens, seen.output_tokens) == (140, 100, None)


@meterings
async def test_the_routers_time_to_its_first_byte(envoy: RealEnvoy, metering: dict[str, str]) -> None:
    slow = {"x-demo-delay-ms": "80"} | metering
    async with envoy.client() as client:
        answer = await client.post(CHAT, json=BODIES[CHAT], headers=slow)
        lost = await client.post(CHAT, json=BODIES[CHAT], headers={"x-demo-fault": "reset-before-headers"} | metering)
    took = (await envoy.entry(answer)).first_byte_ms
    assert took is not None
    assert 75 <= took <= answer.elapsed.total_seconds() * 1000 + 1
    assert (await envoy.entry(lost)).first_byte_ms is None
