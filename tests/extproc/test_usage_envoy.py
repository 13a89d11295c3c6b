"""What the shipped Envoy reads of a JSON answer's usage, wherever it stands and however the answer is cut."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.extproc.raw_router import ANSWER, RawAnswer, RawRouter
from tests.extproc.real_envoy import METERING, RealEnvoy, running

CHAT = "/v1/chat/completions"
ROUTER = RawRouter()
JSON = (("content-type", b"application/json; charset=utf-8"),)
NOTHING = (None, None, None, None)
meterings = pytest.mark.parametrize("metering", [{}, {METERING: "inline"}], ids=["native", "inline"])

CHAT_USAGE = {
    "prompt_tokens": 19,
    "completion_tokens": 10,
    "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 3, "rejected_prediction_tokens": 0},
}
RESPONSES_USAGE = {
    "input_tokens": 36,
    "input_tokens_details": {"cached_tokens": 6},
    "output_tokens": 87,
    "output_tokens_details": {"reasoning_tokens": 7},
    "total_tokens": 123,
}
MESSAGES_USAGE = {
    "cache_creation": {"ephemeral_5m_input_tokens": 7, "input_tokens": 99},
    "cache_creation_input_tokens": 7,
    "cache_read_input_tokens": 5,
    "input_tokens": 8,
    "iterations": [{"input_tokens": 1, "output_tokens": 1}],
    "output_tokens": 6,
    "service_tier": "standard",
}
# What a model says may look like usage: in a text it is escaped, in the input of a tool it is not.
_FALSE = {"usage": {"prompt_tokens": 1, "completion_tokens": 1, "output_tokens": 1}}
_SAID = {"text": json.dumps(_FALSE) + '\\" {[ "usage": {', "tool": _FALSE, "list": [_FALSE, [], {}]}


def _dumped(value: object, **options: Any) -> bytes:
    return json.dumps(value, **options).encode()


KNOWN: dict[str, tuple[bytes, tuple[int | None, ...]]] = {
    "chat": (_dumped({"choices": [_SAID], "usage": CHAT_USAGE}), (19, 4, 10, 3)),
    "chat, usage first": (_dumped({"usage": CHAT_USAGE, "choices": [_SAID]}), (19, 4, 10, 3)),
    "chat, written wide": (_dumped({"choices": [_SAID], "usage": CHAT_USAGE}, indent=3), (19, 4, 10, 3)),
    "responses": (_dumped({"output": [_SAID], "usage": RESPONSES_USAGE, "error": None}), (36, 6, 87, 7)),
    "messages": (_dumped({"content": [_SAID], "usage": MESSAGES_USAGE}), (20, 5, 6, None)),
    "embeddings": (_dumped({"data": [[0.1, -2e-5]], "usage": {"prompt_tokens": 8}}), (8, None, None, None)),
    "zeros": (_dumped({"usage": {"prompt_tokens": 0, "completion_tokens": 0}}), (0, None, 0, None)),
    "nulls": (_dumped({"usage": {"prompt_tokens": None, "completion_tokens": 5}}), (None, None, 5, None)),
    "wrong": (_dumped({"usage": {"prompt_tokens": "7", "completion_tokens": -5}}), NOTHING),
    "null": (_dumped({"usage": None, "choices": [_SAID]}), NOTHING),
    "deeper": (_dumped({"choices": [_SAID], "result": _FALSE}), NOTHING),
    "a list": (_dumped([_SAID, _FALSE]), NOTHING),
    "no json": (b'}}}"usage": {"prompt_tokens": 1}', NOTHING),
    "cut short": (b'{"usage": {"prompt_tokens": 1', NOTHING),
    "a key like it": (b'{"my\\"usage": {"prompt_tokens": 1}}', NOTHING),
}


@pytest.fixture(scope="module")
def envoy() -> Iterator[RealEnvoy]:
    with running(ROUTER.running) as envoy:
        yield envoy


async def usage(envoy: RealEnvoy, headers: dict[str, str], *pieces: bytes, name: str) -> tuple[int | None, ...]:
    """Input, cached, output and reasoning tokens of an answer that comes in these pieces."""
    ROUTER.answers[name] = RawAnswer(pieces, headers=JSON)
    async with envoy.client() as client:
        answer = await client.post(CHAT, json={"model": "m"}, headers={ANSWER: name} | headers)
    assert answer.content == b"".join(pieces)
    seen = (await envoy.entry(answer)).observation()
    return seen.input_tokens, seen.cached_tokens, seen.output_tokens, seen.reasoning_tokens


@meterings
@pytest.mark.parametrize("name", KNOWN)
async def test_usage_is_that_of_the_outermost_object(envoy: RealEnvoy, name: str, metering: dict[str, str]) -> None:
    whole, expected = KNOWN[name]
    assert await usage(envoy, metering, whole, name=name) == expected


@pytest.mark.parametrize("name", KNOWN)
async def test_usage_is_read_however_the_answer_is_cut(envoy: RealEnvoy, name: str) -> None:
    whole, expected = KNOWN[name]
    step = max(1, len(whole) // 40)
    at_once = asyncio.Semaphore(16)

    async def at(cut: int) -> None:
        async with at_once:
            assert await usage(envoy, {}, whole[:cut], whole[cut:], name=f"{name} {cut}") == expected, cut

    await asyncio.gather(*(at(cut) for cut in range(1, len(whole), step)))
    crumbs = (whole[at : at + 5] for at in range(0, len(whole), 5))
    assert await usage(envoy, {}, *crumbs, name=f"{name} in crumbs") == expected


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
async def test_an_answer_longer_than_any_buffer_passes_and_is_read(envoy: RealEnvoy, *, first: bool) -> None:
    # A thousand embeddings are that long.
    numbers, used = {"data": [0.123456789] * 300_000}, {"usage": {"prompt_tokens": 8}}
    whole = _dumped(used | numbers if first else numbers | used)
    assert len(whole) > 3_000_000
    pieces = (whole[at : at + 60_000] for at in range(0, len(whole), 60_000))
    assert await usage(envoy, {}, *pieces, name="long") == (8, None, None, None)


async def test_a_usage_that_has_no_end_is_none(envoy: RealEnvoy) -> None:
    whole = b'{"usage": {"x": "%b", "prompt_tokens": 8}}' % (b"y" * 9000)
    pieces = (whole[at : at + 1000] for at in range(0, len(whole), 1000))
    assert await usage(envoy, {}, *pieces, name="endless") == NOTHING
