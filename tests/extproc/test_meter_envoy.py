"""What the shipped Envoy meters of a stream, cut wherever: the same as in line, and the same bytes for the client."""

import asyncio
import gzip
import random
from collections.abc import Iterator
from typing import Any

import brotli
import httpx
import pytest
import zstandard

from extproc.ending import read
from extproc.lifecycle import Cause, State
from tests.extproc.raw_router import ANSWER, RawAnswer, RawRouter
from tests.extproc.real_envoy import DEADLINE, METERING, RealEnvoy, running
from tests.extproc.streams import KNOWN, Known, in_crlf
from tests.support.values import admission

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}
ROUTER = RawRouter()
# A cut at every byte is tried in process (test_sse.py); here at some, a prime number apart.
_STEP = 23
_AT_ONCE = 16
METERINGS: dict[str, dict[str, str]] = {"native": {}, "inline": {METERING: "inline"}}
meterings = pytest.mark.parametrize("metering", list(METERINGS))
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.fixture(scope="module")
def envoy() -> Iterator[RealEnvoy]:
    with running(ROUTER.running) as envoy:
        yield envoy


@pytest.fixture(autouse=True)
def _anew(envoy: RealEnvoy) -> None:
    envoy.sidecar.strip_usage = True


def answer_with(name: str, *pieces: bytes, **changes: Any) -> dict[str, str]:
    """The header that asks for these pieces."""
    ROUTER.answers[name] = RawAnswer(pieces, **changes)
    return {ANSWER: name}


async def found(envoy: RealEnvoy, client: httpx.AsyncClient, headers: dict[str, str]) -> tuple[Any, ...]:
    """What the client got and what the access log says, in the order of `known`."""
    answer = await client.post(CHAT, json=BODY, headers=headers)
    seen = (await envoy.entry(answer)).observation()
    tokens = (seen.input_tokens, seen.cached_tokens, seen.output_tokens, seen.reasoning_tokens)
    return (answer.content, seen.events, seen.done, seen.failed, seen.decision, seen.cost, tokens)


def known(stream: Known, *, strips: bool) -> tuple[Any, ...]:
    client, events = stream.client(strips=strips), stream.events(strips=strips)
    return (client, events, stream.done, stream.failed, stream.decision, stream.cost, stream.tokens)


@meterings
@pytest.mark.parametrize("strips", [True, False], ids=["strips", "keeps"])
@pytest.mark.parametrize("stream", [*KNOWN, in_crlf(KNOWN[0]), in_crlf(KNOWN[6])], ids=lambda stream: stream.name)
async def test_every_dialect_is_metered_alike_however_it_is_cut(
    envoy: RealEnvoy, stream: Known, metering: str, *, strips: bool
) -> None:
    envoy.sidecar.strip_usage = strips
    whole, expected = stream.whole, known(stream, strips=strips)
    # In line the bytes are read by what test_sse.py tries at every byte.
    cuts = range(1, len(whole), _STEP if metering == "native" else 20 * _STEP)
    async with envoy.client() as client:
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def at(cut: int) -> None:
            headers = answer_with(f"{stream.name} {cut}", whole[:cut], whole[cut:]) | METERINGS[metering]
            async with at_once:
                assert await found(envoy, client, headers) == expected, cut

        await asyncio.gather(*(at(cut) for cut in cuts))


@pytest.mark.parametrize("strips", [True, False], ids=["strips", "keeps"])
async def test_envoy_meters_a_stream_that_comes_in_crumbs(envoy: RealEnvoy, *, strips: bool) -> None:
    envoy.sidecar.strip_usage = strips
    stream = next(one for one in KNOWN if one.name == "chat with words in events")
    crumbs = (stream.whole[at : at + 3] for at in range(0, len(stream.whole), 3))
    async with envoy.client() as client:
        assert await found(envoy, client, answer_with("crumbs", *crumbs)) == known(stream, strips=strips)


@meterings
@pytest.mark.parametrize(
    ("word", "kept"),
    [
        (b'{"total_usd": 1}', '{"total_usd": 1}'),
        (b'{"a": "\xff\xc3"}', ""),
        (b'{"a": "' + b"x" * 9000 + b'"}', ""),
        (b"", ""),
    ],
    ids=["json", "no utf-8", "too long", "empty"],
)
@pytest.mark.parametrize("place", ["header", "comment"])
async def test_the_routers_words_never_reach_the_client_and_never_spoil_the_log(
    envoy: RealEnvoy, word: bytes, kept: str, place: str, metering: str
) -> None:
    in_header: dict[str, Any] = {"headers": (("content-type", b"text/event-stream"), ("x-router-cost", word))}
    comment = b": x-router-cost %b\n\n" % word if place == "comment" else b""
    asked = answer_with("word", EVENT, comment, DONE, **(in_header if place == "header" else {}))
    async with envoy.client() as client:
        answer = await client.post(CHAT, json=BODY, headers=asked | METERINGS[metering])
    assert answer.content == EVENT + DONE
    assert "x-router-cost" not in answer.headers
    seen = (await envoy.entry(answer)).observation()
    ending = read(seen, admission())
    assert (seen.events, ending.actual_cost) == (2, kept.replace(" ", ""))


@meterings
@pytest.mark.parametrize("path", [CHAT, "/v1/models"])
async def test_a_json_answers_words_are_taken_from_its_headers(envoy: RealEnvoy, path: str, metering: str) -> None:
    headers = (("content-type", b"application/json"), ("x-router-decision", b'{"m": 1}'), ("x-router-cost", b"{}"))
    asked = answer_with("json", b"{}", headers=headers) | METERINGS[metering]
    async with envoy.client() as client:
        method = "POST" if path == CHAT else "GET"
        answer = await client.request(method, path, json=BODY if path == CHAT else None, headers=asked)
    assert (answer.content, [name for name in answer.headers if name.startswith("x-router")]) == (b"{}", [])
    if path == CHAT:
        seen = (await envoy.entry(answer)).observation()
        assert (seen.decision, seen.cost) == ('{"m": 1}', "{}")


@meterings
async def test_a_client_that_leaves_with_the_whole_stream_has_finished(envoy: RealEnvoy, metering: str) -> None:
    # The Router never ends its answer: whoever has the stream's own end does not wait for that.
    asked = answer_with("hangs", EVENT, EVENT, DONE, hangs=True) | METERINGS[metering]
    async with envoy.client() as client, client.stream("POST", CHAT, json=BODY, headers=asked) as answer:
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                break
    seen = (await envoy.entry(answer)).observation()
    assert (seen.client_gone, seen.done, seen.events) == (True, True, 3)
    ending = read(seen, admission())
    assert (ending.state, ending.cause) == (State.COMPLETED, Cause.FINISHED)


@meterings
async def test_a_client_that_leaves_before_the_end_has_not(envoy: RealEnvoy, metering: str) -> None:
    asked = answer_with("hangs", EVENT, EVENT, hangs=True) | METERINGS[metering]
    async with envoy.client() as client, client.stream("POST", CHAT, json=BODY, headers=asked) as answer:
        async for line in answer.aiter_lines():
            if line:
                break
    ending = read((await envoy.entry(answer)).observation(), admission())
    assert (ending.state, ending.cause) == (State.CANCELLED, Cause.CLIENT_DISCONNECT)


@meterings
@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
@pytest.mark.parametrize("strips", [True, False], ids=["strips", "keeps"])
async def test_a_stream_that_says_how_long_it_is_comes_to_its_end(
    envoy: RealEnvoy, metering: str, *, strips: bool, http2: bool
) -> None:
    # What is taken out of it would be missing at its end, and waited for.
    envoy.sidecar.strip_usage = strips
    stream = next(one for one in KNOWN if one.name == "chat with words in events")
    length = (("content-type", b"text/event-stream"), ("content-length", b"%d" % len(stream.whole)))
    asked = answer_with("long", stream.whole, headers=length) | METERINGS[metering]
    async with envoy.client(http2=http2) as client:
        assert await found(envoy, client, asked) == known(stream, strips=strips)


@meterings
async def test_when_the_router_got_a_request_is_known(envoy: RealEnvoy, metering: str) -> None:
    async with envoy.client() as client:
        answer = await client.post(CHAT, json=BODY, headers=answer_with("one", EVENT, DONE) | METERINGS[metering])
    seen = (await envoy.entry(answer)).observation()
    assert seen.dispatched_ms is not None
    assert seen.ended_ms - 30_000 < seen.dispatched_ms <= seen.ended_ms


@meterings
async def test_the_deadline_ends_a_stream_in_its_midst(envoy: RealEnvoy, metering: str) -> None:
    asked = answer_with("hangs", EVENT, hangs=True) | METERINGS[metering] | {DEADLINE: "300"}
    async with envoy.client() as client, client.stream("POST", CHAT, json=BODY, headers=asked) as answer:
        with pytest.raises(httpx.RemoteProtocolError):
            await answer.aread()
    seen = (await envoy.entry(answer)).observation()
    assert (seen.status, seen.details, seen.events) == (200, "response_timeout", 1)
    ending = read(seen, admission())
    assert (ending.state, ending.cause) == (State.TIMED_OUT, Cause.DEADLINE)
    assert b"timeout-ms" not in ROUTER.heads["hangs"]


@meterings
@pytest.mark.parametrize(("path", "kind"), [(CHAT, "server_error"), ("/v1/messages", "timeout_error")])
async def test_the_deadline_ends_a_request_before_its_answer(
    envoy: RealEnvoy, path: str, kind: str, metering: str
) -> None:
    asked = answer_with("silent", silent=True) | METERINGS[metering] | {DEADLINE: "200"}
    async with envoy.client() as client:
        answer = await client.post(path, json=BODY | {"max_tokens": 1}, headers=asked)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (504, "deadline_exceeded", kind)
    ending = read((await envoy.entry(answer)).observation(), admission())
    assert (ending.state, ending.cause, ending.charges.requests) == (State.TIMED_OUT, Cause.DEADLINE, 0)


@pytest.mark.parametrize("name", ["x-envoy-upstream-rq-timeout-ms", "x-envoy-upstream-rq-per-try-timeout-ms"])
async def test_no_client_has_a_deadline_of_its_own(envoy: RealEnvoy, name: str) -> None:
    asked = answer_with("slow", EVENT, *[EVENT] * 30, DONE)
    async with envoy.client() as client:
        answer = await client.post(CHAT, json=BODY, headers=asked | {name: "1"})
    assert answer.content.endswith(DONE)
    assert b"timeout-ms" not in ROUTER.heads["slow"]


def _zipped(coding: str, pieces: list[bytes]) -> list[bytes]:
    """Each piece compressed and flushed, as a server does that streams."""
    if coding == "br":
        squeezer: Any = brotli.Compressor(quality=4)
        return [*(squeezer.process(piece) + squeezer.flush() for piece in pieces), squeezer.finish()]
    if coding == "zstd":
        squeezer = zstandard.ZstdCompressor().compressobj()
        block = zstandard.COMPRESSOBJ_FLUSH_BLOCK
        return [*(squeezer.compress(piece) + squeezer.flush(block) for piece in pieces), squeezer.flush()]
    return [gzip.compress(b"".join(pieces))]


@meterings
@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
async def test_a_compressed_stream_is_metered_and_comes_out_plain(envoy: RealEnvoy, coding: str, metering: str) -> None:
    stream = next(one for one in KNOWN if one.name == "chat")
    # Proxies on the way may be asked to change nothing: that is said to caches, and to us.
    headers = (
        ("content-type", b"text/event-stream"),
        ("content-encoding", coding.encode()),
        ("cache-control", b"no-cache, no-transform"),
    )
    asked = answer_with(coding, *_zipped(coding, [part.text for part in stream.parts]), headers=headers)
    async with envoy.client() as client:
        assert await found(envoy, client, asked | METERINGS[metering]) == known(stream, strips=True)
        answer = await client.post(CHAT, json=BODY, headers=asked | METERINGS[metering])
    assert "content-encoding" not in answer.headers
    assert b"accept-encoding" not in ROUTER.heads[coding]


@meterings
@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
async def test_a_compressed_answer_may_be_longer_than_any_buffer(envoy: RealEnvoy, coding: str, metering: str) -> None:
    order = random.Random(1)  # noqa: S311 - no secret
    said = " ".join(order.choice(["gravity", "is", "a", "force", "of", "nature"]) for _ in range(250_000))
    body = b'{"usage": {"prompt_tokens": 5, "completion_tokens": 6}, "text": "%b"}' % said.encode()
    headers = (("content-type", b"application/json"), ("content-encoding", coding.encode()))
    whole = b"".join(_zipped(coding, [body]))
    asked = answer_with("long", *(whole[at : at + 30_000] for at in range(0, len(whole), 30_000)), headers=headers)
    async with envoy.client() as client:
        answer = await client.post(CHAT, json=BODY, headers=asked | METERINGS[metering])
    assert len(body) > 1_048_576, "what Envoy holds of a connection"
    assert answer.content == body
    seen = (await envoy.entry(answer)).observation()
    assert (seen.input_tokens, seen.output_tokens, seen.response_bytes) == (5, 6, len(body))


@meterings
async def test_a_model_that_repeats_itself_is_not_taken_for_a_bomb(envoy: RealEnvoy, metering: str) -> None:
    body = b'{"text": "%b"}' % (b"y" * 3_000_000)
    headers = (("content-type", b"application/json"), ("content-encoding", b"gzip"))
    async with envoy.client() as client:
        asked = answer_with("bomb", gzip.compress(body), headers=headers)
        answer = await client.post(CHAT, json=BODY, headers=asked | METERINGS[metering])
    assert answer.content == body


@meterings
async def test_of_a_bomb_no_more_is_unpacked_than_the_client_takes(envoy: RealEnvoy, metering: str) -> None:
    headers = (("content-type", b"application/json"), ("content-encoding", b"gzip"))
    asked = answer_with("bomb", gzip.compress(bytes(128_000_000)), headers=headers) | METERINGS[metering]
    async with envoy.client() as client, client.stream("POST", CHAT, json=BODY, headers=asked) as answer:
        async for _ in answer.aiter_raw():
            break  # and then it is slow
        assert await envoy.allocated() < 64_000_000


@meterings
async def test_what_is_not_what_it_says_ends_all_the_same(envoy: RealEnvoy, metering: str) -> None:
    headers = (("content-type", b"application/json"), ("content-encoding", b"gzip"))
    async with envoy.client() as client:
        asked = answer_with("lie", b'{"usage": {"prompt_tokens": 1}}', headers=headers)
        answer = await client.post(CHAT, json=BODY, headers=asked | METERINGS[metering])
    seen = (await envoy.entry(answer)).observation()
    assert (answer.status_code, answer.content, seen.input_tokens) == (200, b"", None)
