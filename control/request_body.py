"""What does a request look like in `/v1/requests`? The shapes that are written, exported and documented."""

from collections.abc import AsyncIterable
from datetime import datetime
from typing import Any, Literal, Self

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from control.export import Format, array_pieces, csv_pieces, line_pieces
from control.session_body import moment
from extproc import lifecycle_events
from extproc.lifecycle import Cause, State
from extproc.record import Ending, UsageSource
from store.requests import RequestLife

_MICROS_PER_DOLLAR = 1_000_000
_DEEPEST = 64
EXAMPLE: dict[str, Any] = {
    "object": "request",
    "id": "3f0d8a52-6a0c-4e57-9d2c-8a4f1f1f0a11",
    "state": "completed",
    "cause": "finished",
    "stopping": None,
    "model": "gpt-5",
    "path": "/v1/chat/completions",
    "stream": True,
    "metering": "native",
    "plan": "pro",
    "tenant_id": "ten_5Jx0",
    "principal_id": "key_7Kq2mWZp4TsB",
    "key_id": "7Kq2mWZp4TsB",
    "received_at": "2026-01-01T12:00:00.123Z",
    "admitted_at": "2026-01-01T12:00:00.125Z",
    "dispatched_at": "2026-01-01T12:00:00.127Z",
    "first_event_at": "2026-01-01T12:00:00.410Z",
    "ended_at": "2026-01-01T12:00:03.020Z",
    "tokens": {"input": 812, "cached": 512, "output": 240, "reasoning": 0, "source": "exact"},
    "cost_micros": 3415,
    "cost_dollars": "0.003415",
    "routing_snapshot": {"provider": "a", "strategy": "cheapest"},
    "actual_cost": {"total_usd": "0.003415"},
    "status": 200,
    "events": 242,
    "response_bytes": 51200,
    "degraded": None,
}


class RequestTokens(BaseModel):
    """What a request used."""

    input: int
    cached: int = Field(description="Of the input, read from a cache.")
    output: int
    reasoning: int = Field(description="Of the output, never shown.")
    source: UsageSource = Field(description="`exact`: said by the model service. `estimated`: by the gateway.")


class RequestStatus(BaseModel):
    """What became of a request. What is not known before the end is null while it runs."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    object: Literal["request"] = "request"
    id: str = Field(description="The `x-request-id` of its answer.")
    state: State
    cause: Cause | None = Field(default=None, description="Why it ended as it did.")
    stopping: str | None = Field(description="Why a running request is about to be stopped; null when it is not.")
    model: str
    path: str
    stream: bool
    metering: str
    plan: str
    tenant_id: str
    principal_id: str
    key_id: str
    received_at: datetime
    admitted_at: datetime
    dispatched_at: datetime | None = Field(default=None, description="When the model service got it.")
    first_event_at: datetime | None = Field(default=None, description="When the first piece of the answer passed.")
    ended_at: datetime | None = None
    tokens: RequestTokens | None = None
    cost_micros: int | None = Field(default=None, description="Micro-dollars that it was charged.")
    cost_dollars: str | None = Field(default=None, description="The same in dollars, exact.")
    routing_snapshot: Any = Field(default=None, description="How the model service routed it, in its own words.")
    actual_cost: Any = Field(default=None, description="What the model service says it cost.")
    status: int | None = Field(default=None, description="The HTTP status of the answer; 0 when none was sent.")
    events: int = Field(description="Events of the answer that have passed; of a running request, as last reported.")
    response_bytes: int | None = None
    degraded: str | None = Field(
        description="How it was admitted while the limits could not be asked: `open` without them, `local` under a "
        "share of them; null when they could be."
    )

    @classmethod
    def of(cls, life: RequestLife) -> Self:
        """Show a request."""
        admission = life.admission
        return cls(
            id=admission.request_id,
            state=life.state,
            stopping=life.stopping or None,
            model=admission.model,
            path=admission.path,
            stream=admission.stream,
            metering=admission.metering,
            plan=admission.plan,
            tenant_id=admission.tenant_id,
            principal_id=admission.principal_id,
            key_id=admission.key_id,
            received_at=moment(admission.received_ms),
            admitted_at=moment(admission.admitted_ms),
            events=life.events,
            degraded=admission.degraded.value or None,
            **(_running(life) if life.ending is None else _ended(life.ending)),
        )


class RequestList(BaseModel):
    """Requests, newest first."""

    object: Literal["list"] = "list"
    data: list[RequestStatus]
    next_cursor: str | None = Field(description="The `cursor` of the next page; null on the last.")
    complete: bool = Field(
        description="False while running requests cannot be looked up: only those that have ended are listed then."
    )


COLUMNS = ("id", "state", "cause", "model", "path", "stream", "metering", "plan", "tenant_id", "principal_id", "key_id",
           "received_at", "admitted_at", "dispatched_at", "first_event_at", "ended_at", "input_tokens", "cached_tokens",
           "output_tokens", "reasoning_tokens", "tokens_source", "cost_micros", "cost_dollars", "routing_snapshot",
           "actual_cost", "status", "events", "response_bytes", "degraded")  # fmt: skip
"""Of a table of requests that have ended."""


def row(life: RequestLife) -> list[object]:
    """The values of a request under `COLUMNS`; JSON is written as text."""
    shown = RequestStatus.of(life).model_dump(mode="json")
    tokens = shown["tokens"] or {}
    values = shown | {f"{name}_tokens": tokens.get(name) for name in ("input", "cached", "output", "reasoning")}
    values["tokens_source"] = tokens.get("source")
    for name in ("routing_snapshot", "actual_cost"):
        values[name] = None if shown[name] is None else msgspec.json.encode(shown[name]).decode()
    return [values[name] for name in COLUMNS]


def pieces(batches: AsyncIterable[list[RequestLife]], format_: Format) -> AsyncIterable[str]:
    """Requests that have ended, written in a format other than a page."""
    match format_:
        case Format.CSV:
            return csv_pieces(COLUMNS, batches, row)
        case Format.CLOUDEVENTS:
            return array_pieces(batches, _event)
        case _:
            return line_pieces(batches, lambda life: RequestStatus.of(life).model_dump_json())


def dollars(micros: int) -> str:
    """Micro-dollars in dollars, to the last of them: `0.003415`."""
    whole, rest = divmod(micros, _MICROS_PER_DOLLAR)
    return f"{whole}.{rest:06}"


def _running(life: RequestLife) -> dict[str, Any]:
    """What was last told of it."""
    data = life.told()[-1].data
    return {"dispatched_at": _moment(data.dispatched_ms), "first_event_at": _moment(data.first_event_ms)}


def _moment(ms: int | None) -> datetime | None:
    return None if ms is None else moment(ms)


def _ended(ending: Ending) -> dict[str, Any]:
    """What is known only since it has ended."""
    return {
        "cause": ending.cause,
        "dispatched_at": _moment(ending.dispatched_ms),
        "first_event_at": _moment(ending.first_event_ms),
        "ended_at": moment(ending.ended_ms),
        "tokens": RequestTokens(
            input=ending.input_tokens,
            cached=ending.cached_tokens,
            output=ending.output_tokens,
            reasoning=ending.reasoning_tokens,
            source=ending.usage_source,
        ),
        "cost_micros": ending.charges.cost,
        "cost_dollars": dollars(ending.charges.cost),
        "routing_snapshot": _json(ending.routing_snapshot),
        "actual_cost": _json(ending.actual_cost),
        "status": ending.status,
        "response_bytes": ending.response_bytes,
    }


def _json(text: str) -> Any:
    """What the model service said; what is no JSON, or nested too deep to be written again, as the text that it is."""
    if not text:
        return None
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text
    return found if _fits(found, _DEEPEST) else text


def _fits(value: object, levels: int) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_fits(each, levels - 1) for each in inside)


def _event(life: RequestLife) -> str:
    return lifecycle_events.encode(life.told()[-1]).decode()
