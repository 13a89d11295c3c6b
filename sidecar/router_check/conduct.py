"""How does a Router behave beside its answers: to headers, to a cancel, to a connection that closes?"""

from collections.abc import AsyncIterator

import httpx

from sidecar.router_check.answer import Answer, json_object
from sidecar.router_check.event_stream import read_stream
from sidecar.router_check.finding import Verdict, failed, passed, skipped
from sidecar.router_check.probe import ROUTING_POLICY, Probe, new_request_id
from sidecar.router_check.spoken import Spoken

# Long enough to be stopped before it ends.
_LONG = 400
_FIRST_SERVER_ERROR = 500


def lists_models(answer: Answer) -> Verdict:
    """OpenAI's list."""
    if not answer.is_offered:
        return skipped(f"not offered: status {answer.status}")
    listed = model_ids(answer)
    return passed(f"{len(listed)} models: {', '.join(listed[:3])}") if listed else failed(answer.described())


def model_ids(answer: Answer) -> list[str]:
    """The models of a list; empty when it is none."""
    data = (json_object(answer.body) or {}).get("data") if answer.ok else None
    found = [one.get("id") for one in data if isinstance(one, dict)] if isinstance(data, list) else []
    return [name for name in found if isinstance(name, str) and name]


async def takes_request_id(probe: Probe, spoken: Spoken, model: str) -> Verdict:
    """The gateway's id stands beside every request."""
    answer = await probe.ask(spoken.path, spoken.body(model), headers={"x-request-id": new_request_id()})
    return _taken(answer)


async def takes_policy(probe: Probe, spoken: Spoken, model: str) -> Verdict:
    """A Router that knows no policies lets the header pass."""
    return _taken(await probe.ask(spoken.path, spoken.body(model), headers=ROUTING_POLICY))


def _taken(answer: Answer) -> Verdict:
    return passed(f"status {answer.status}") if answer.ok else failed(answer.described())


async def forgives_unknown_cancel(probe: Probe) -> Verdict:
    """A request may have ended by the time that it is cancelled."""
    answer = await probe.cancel(new_request_id())
    known = answer.status and answer.status < _FIRST_SERVER_ERROR
    if answer.ok or not answer.is_offered:
        return passed(f"status {answer.status}")
    return failed(answer.described() if known else f"no answer: {answer.described()}")


async def stops(probe: Probe, spoken: Spoken, model: str) -> Verdict:
    """Whoever asks by the request's id ends the stream."""
    request_id, answer = new_request_id(), None
    rest = b""
    try:
        async with probe.opened(spoken.path, spoken.body(model, tokens=_LONG, stream=True), request_id) as pieces:
            if not await _first_of(pieces):
                return skipped("there is no stream to stop")
            answer = await probe.cancel(request_id)
            if not answer.ok:
                return _not_cancelled(answer)
            async for piece in pieces:
                rest += piece
    except (httpx.TimeoutException, TimeoutError):
        return failed("the stream did not end") if answer else skipped("there is no stream to stop")
    except httpx.HTTPError as error:
        return passed("the connection ended") if answer else skipped(f"there is no stream to stop: {error}")
    events = read_stream(rest).events
    if any(spoken.is_terminal(event) for event in events):
        return failed(f"status {answer.status}, but {len(events)} more events came, the last one among them")
    return passed(f"status {answer.status}, and the stream ended")


def _not_cancelled(answer: Answer) -> Verdict:
    if answer.is_offered:
        return failed(answer.described())
    return skipped(f"not offered: status {answer.status}; the gateway closes the connection")


async def survives_a_close(probe: Probe, spoken: Spoken, model: str) -> Verdict:
    """The connection is the only sign that a client has left."""
    try:
        async with probe.opened(spoken.path, spoken.body(model, tokens=_LONG, stream=True), new_request_id()) as pieces:
            if not await _first_of(pieces):
                return skipped("there is no stream to leave")
    except (httpx.HTTPError, TimeoutError) as error:
        return skipped(f"there is no stream to leave: {error}")
    after = await probe.ask(spoken.path, spoken.body(model))
    return passed(f"the next request: status {after.status}") if after.ok else failed(after.described())


async def _first_of(pieces: AsyncIterator[bytes]) -> bytes:
    async for piece in pieces:
        if piece:
            return piece
    return b""
