"""How is an answer brought to the wire? As the script says: paced, split, batched, or broken on purpose."""

import asyncio
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from secrets import token_hex

from aiohttp import web

from demo.ask import Ask, Dialect
from demo.dialect import closing_events, delta_events, ping, whole_answer
from demo.encoding import Compressor, asked_encoding, compressor, encoding_header
from demo.metronome import Metronome
from demo.own_limits import own_limits
from demo.prose import endless_pieces, pieces
from demo.reply import Reply, Usage
from demo.script import CLOSES, MID_STREAM, RESETS, Fault, Script
from demo.witness import End, Sighting, Witness
from demo.words import word_comments, word_headers

DEFAULT_EVENTS = 12
ENDLESS_SECONDS = 600.0

_SSE = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
_JSON = {"Content-Type": "application/json"}
# By the request's id, so that a client of the Responses API can cancel by what it knows.
_PREFIXES = {
    Dialect.CHAT: "chatcmpl-",
    Dialect.COMPLETIONS: "cmpl-",
    Dialect.RESPONSES: "resp_",
    Dialect.INFER: "inf-",
    Dialect.MESSAGES: "msg_",
    Dialect.EMBEDDINGS: "emb-",
}
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One answer about to be played: to whom, what, how, and who watches."""

    request: web.BaseRequest
    witness: Witness
    sighting: Sighting
    script: Script
    ask: Ask
    metronome: Metronome
    pause: float


@dataclass(frozen=True, slots=True)
class _Part:
    """The stretch of a stream that will be written; `events` is None when it has no end."""

    events: int | None
    frames: Iterator[bytes]


def planned_words(script: Script, ask: Ask) -> tuple[int, str]:
    """How many words each choice has, and why it ends there: the body's limit binds the script."""
    if ask.inputs:
        return 0, "stop"
    words = DEFAULT_EVENTS if script.events is None else script.events
    if ask.max_tokens is not None and ask.max_tokens < words:
        return ask.max_tokens, "length"
    return words, "stop"


async def say(
    request: web.BaseRequest, status: int, body: bytes, headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    """Write one complete JSON answer, compressed when the request asks for that."""
    squeezed, extra = _compressed(request, body)
    response = web.Response(status=status, body=squeezed, headers=_JSON | extra | dict(headers or {}))
    await response.prepare(request)
    await response.write_eof()
    return response


def _compressed(request: web.BaseRequest, body: bytes) -> tuple[bytes, dict[str, str]]:
    encoding = asked_encoding(request.headers)
    by = compressor(encoding)
    return by.take(body) + by.finish(), encoding_header(encoding) | own_limits(request.headers)


async def perform(scene: Scene) -> web.StreamResponse:
    """Play the answer to its end, or to the point where the script breaks it."""
    words, finish = planned_words(scene.script, scene.ask)
    script, rule = scene.script, scene.script.usage
    prompt, completion = rule.numbers or (scene.ask.prompt_tokens, words * scene.ask.choices)
    claimed = Usage(prompt, completion, script.cached, script.cache_written, script.reasoning)
    told = rule.reported and (scene.ask.include_usage or not scene.ask.stream)
    reply = _reply(scene, finish, claimed if told else None)
    if scene.ask.stream:
        return await _stream(scene, reply, words)
    return await _whole(scene, reply, words)


def _reply(scene: Scene, finish: str, usage: Usage | None) -> Reply:
    sighting, ask = scene.sighting, scene.ask
    request_id = scene.request.headers.get("x-request-id") or token_hex(8)
    return Reply(
        dialect=ask.dialect,
        ident=_PREFIXES[ask.dialect] + request_id,
        created=int(sighting.received_at),
        model=ask.model,
        finish=finish,
        padding=scene.script.padding,
        usage=usage,
        choices=ask.choices,
        terminal=scene.script.terminal,
        words=word_comments(scene.script),
    )


async def _whole(scene: Scene, reply: Reply, words: int) -> web.StreamResponse:
    sighting, fault = scene.sighting, scene.script.fault
    body = whole_answer(reply, scene.ask.inputs or pieces(scene.ask.prompt, words))
    sighting.first_event_at = scene.witness.now()
    told = word_headers(scene.script, stream=False)
    if fault in MID_STREAM:
        body, extra = _compressed(scene.request, body)
        response = web.StreamResponse(headers=_JSON | extra | told | {"Content-Length": str(len(body))})
        await response.prepare(scene.request)
        await response.write(body[: len(body) // 2])
        return await break_off(scene.request, scene.witness, sighting, fault)
    sighting.tokens_out = _tokens_out(scene, words * scene.ask.choices)
    answer = await say(scene.request, 200, body, told)
    scene.witness.ended(sighting, End.COMPLETED)
    return answer


async def _stream(scene: Scene, reply: Reply, words: int) -> web.StreamResponse:
    fault = scene.script.fault
    by = compressor(scene.script.encoding)
    extra = encoding_header(scene.script.encoding) | own_limits(scene.request.headers)
    response = web.StreamResponse(headers=_SSE | extra | word_headers(scene.script, stream=True))
    await response.prepare(scene.request)
    # An empty write sends the headers: a stream that stalls before its first event has them too.
    await response.write(b"")
    try:
        await _write_part(scene, response, by, _part(scene, reply, words))
        if fault in MID_STREAM:
            return await break_off(scene.request, scene.witness, scene.sighting, fault)
    except asyncio.CancelledError:
        if not forgiven(scene.sighting):
            raise
        # Its connection ends with it.
        response.force_close()
    else:
        scene.sighting.tokens_out = _tokens_out(scene, scene.sighting.events_written)
    # No step of the loop lies between the last event and this: who has read the end finds it recorded.
    await response.write_eof(by.finish())
    scene.witness.ended(scene.sighting, End.COMPLETED)
    return response


def _part(scene: Scene, reply: Reply, words: int) -> _Part:
    fault = scene.script.fault
    if fault is Fault.ENDLESS:
        return _Part(None, _pinged(scene, delta_events(reply, endless_pieces(scene.ask.prompt), None)))
    said, events = pieces(scene.ask.prompt, words), words * reply.choices
    deltas = delta_events(reply, said, words)
    if fault in MID_STREAM:
        return _Part(events // 2, _pinged(scene, islice(deltas, events // 2)))
    return _Part(events, _pinged(scene, chain(deltas, closing_events(reply, said))))


def _pinged(scene: Scene, frames: Iterator[bytes]) -> Iterator[bytes]:
    silence = ping(scene.ask.dialect)
    for number, frame in enumerate(frames):
        yield silence + frame if 0 < number <= scene.script.pings else frame


async def _write_part(scene: Scene, response: web.StreamResponse, by: Compressor, part: _Part) -> None:
    sighting, batch, split = scene.sighting, scene.script.batch, scene.script.split
    curtain = asyncio.get_running_loop().time() + ENDLESS_SECONDS
    while group := list(islice(part.frames, batch)):
        behind = part.events is not None and sighting.events_written == part.events
        if sighting.first_event_at is None:
            sighting.first_event_at = scene.witness.now()
        else:
            # Even a pause of zero lets the loop flush, or uvloop would send two events in one packet.
            await scene.metronome.rest(0 if behind else scene.pause)
        await _write(response, by.take(b"".join(group)), split)
        written = sighting.events_written + len(group)
        sighting.events_written = written if part.events is None else min(written, part.events)
        sighting.tokens_out = sighting.events_written
        if part.events is None and asyncio.get_running_loop().time() > curtain:
            return


async def _write(response: web.StreamResponse, data: bytes, split: int | None) -> None:
    if split is None:
        await response.write(data)
        return
    for start in range(0, len(data), split):
        if start:
            await asyncio.sleep(0)
        await response.write(data[start : start + split])


def _tokens_out(scene: Scene, words: int) -> int:
    """Claimed numbers are what a caller can be charged for; zero claims nothing, so the words count."""
    numbers = scene.script.usage.numbers
    # Embeddings have no output, and no word for it in their usage.
    return numbers[1] if numbers and any(numbers) and not scene.ask.inputs else words


async def break_off(
    request: web.BaseRequest, witness: Witness, sighting: Sighting, fault: Fault | None
) -> web.StreamResponse:
    """Break the connection as the fault says, or fall silent until the peer leaves."""
    if fault not in RESETS | CLOSES:
        await asyncio.get_running_loop().create_future()
    transport = request.transport
    if transport is None:
        raise ConnectionResetError
    if fault in RESETS:
        # A reset throws away what is still in our buffers, and the peer must see its half of the events.
        while transport.get_write_buffer_size():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()
    else:
        transport.close()
    witness.ended(sighting, End.FAULT)
    return nothing()


def nothing() -> web.StreamResponse:
    """Satisfy aiohttp, which wants a response from every handler: this one finds its connection closed."""
    return web.Response()


def forgiven(sighting: Sighting) -> bool:
    """Take back a cancellation that came from `DELETE`; any other means that the peer has left."""
    task = asyncio.current_task()
    if sighting.end is not End.CANCELLED or task is None:
        return False
    task.uncancel()
    return True
