"""Does a stream look, pace and end as it must, and does it say its usage where it is looked for?"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from sidecar.router_check.answer import Answer, inner
from sidecar.router_check.event_stream import Event, EventStream, read_stream
from sidecar.router_check.evidence import Evidence
from sidecar.router_check.finding import Verdict, failed, passed, skipped
from sidecar.router_check.spoken import Spoken, Telling
from sidecar.router_check.usage_numbers import Tokens, read_usage

# A stream that breaks off is charged by its events: models that guess ahead write a few tokens at once, no more.
_TOKENS_PER_EVENT = 8
_SHORTEST = 3


def is_event_stream(stream: Answer, _: EventStream, __: Spoken) -> Verdict:
    """The content type by which the gateway knows a stream."""
    content_type = stream.headers.get("content-type", "none")
    if stream.ok and content_type.lower().startswith("text/event-stream"):
        return passed(f"status {stream.status}, {content_type}")
    return failed(stream.described())


def is_well_formed(_: Answer, found: EventStream, __: Spoken) -> Verdict:
    """Every event ends with a blank line and holds JSON, the last one of some dialects aside."""
    if found.rest.strip():
        return failed(f"no blank line behind {found.rest[-60:]!r}")
    wrong = next((event.data for event in found.events if event.fields is None and event.data != "[DONE]"), None)
    if wrong is not None:
        return failed(f"data that is no JSON object: {wrong[:60]}")
    return passed(f"{len(found.events)} events") if found.events else failed("no events")


def ends(stream: Answer, found: EventStream, spoken: Spoken) -> Verdict:
    """The last event is the dialect's own end, once, and the connection ends well."""
    if stream.failure:
        return failed(stream.failure)
    ends_at = [at for at, event in enumerate(found.events) if spoken.is_terminal(event)]
    last = found.events[-1] if found.events else Event("")
    if ends_at == [len(found.events) - 1]:
        return passed(f"the last event is {last.name or last.data}")
    return failed(f"{len(ends_at)} events that end it; the last one is {(last.name or last.data)[:60] or 'none'}")


def paces(stream: Answer, found: EventStream, spoken: Spoken) -> Verdict:
    """The first event comes before the last one: nothing on the way holds the stream back."""
    if len([event for event in found.events if spoken.is_content(event)]) < _SHORTEST:
        return skipped("too few events to tell")
    first = next((piece for piece in stream.pieces if piece.strip()), b"")
    if any(spoken.is_terminal(event) for event in read_stream(first).events):
        return failed("all events came at once")
    return passed(f"{len(found.events)} events in {len(stream.pieces)} pieces")


def writes_an_event_per_token(_: Answer, found: EventStream, spoken: Spoken) -> Verdict:
    """As many events as pieces of text, for one that breaks off is charged by them."""
    tokens = _said(found, spoken)
    if isinstance(tokens, str) or tokens.output is None:
        return skipped("the stream says no tokens to compare with")
    shown, events = tokens.output - tokens.reasoning, sum(spoken.is_content(event) for event in found.events)
    seen = f"{events} events for {shown} tokens"
    return passed(seen) if shown <= events * _TOKENS_PER_EVENT else failed(seen)


def says_usage(_: Answer, found: EventStream, spoken: Spoken) -> Verdict:
    """Both numbers, in the place of the dialect, and never less than before."""
    tokens = _said(found, spoken)
    if isinstance(tokens, str):
        return failed(tokens)
    if tokens.input is None or tokens.output is None:
        return failed(f"only one of two numbers is said: {tokens or 'none'}")
    outputs = [number for number in map(_output, _usages(found)) if number is not None]
    if any(later < before for before, later in pairwise(outputs)):
        return failed(f"the output sinks: {outputs}; it is cumulative, and the last number counts")
    return passed(str(tokens))


def _said(found: EventStream, spoken: Spoken) -> Tokens | str:
    """The last numbers of a stream, or why they are not where they must be."""
    usages = _usages(found)
    if not usages:
        return f"the stream says no usage; it belongs {spoken.telling.value}"
    if spoken.telling is Telling.WHEN_ASKED:
        last = next((event for event in reversed(found.events) if not spoken.is_terminal(event)), Event(""))
        if inner(last.fields, "choices") != [] or not isinstance(inner(last.fields, "usage"), dict):
            return f"the last event before [DONE] must have an empty choices and the usage: {last.data[:60]}"
    if spoken.telling is Telling.AT_THE_END and not isinstance(_usage_of(found.events[-1]), dict):
        return f"the last event has no response.usage: {found.events[-1].type}"
    # What an event does not repeat still stands.
    whole: dict[str, Any] = {}
    for usage in usages:
        whole |= {name: value for name, value in usage.items() if value is not None}
    return read_usage(whole)


def _usages(found: EventStream) -> list[dict[str, Any]]:
    said = [_usage_of(event) for event in found.events]
    return [usage for usage in said if isinstance(usage, dict)]


def _usage_of(event: Event) -> Any:
    places = (("usage",), ("message", "usage"), ("response", "usage"))
    return next((found for place in places if (found := inner(event.fields, *place)) is not None), None)


def _output(usage: dict[str, Any]) -> int | None:
    tokens = read_usage(
        {name: value for name, value in usage.items() if name in {"completion_tokens", "output_tokens"}}
    )
    return None if isinstance(tokens, str) else tokens.output


Judge = Callable[[Answer, EventStream, Spoken], Verdict]


def of_stream(judge: Judge) -> Callable[[Evidence], Verdict]:
    """The judge of a stream as one of the evidence: there may be no stream."""

    def judged(evidence: Evidence) -> Verdict:
        stream = evidence.stream
        if stream is None:
            return skipped("no stream was asked for")
        if judge is not is_event_stream and not stream.ok and not stream.pieces:
            return skipped("there is no stream")
        return judge(stream, read_stream(stream.body), evidence.spoken)

    return judged
