"""What does docs/events.md say? What is told of a request, in which shape, and to whom; the schema from the code."""

import json
from typing import Any

import msgspec

from extproc import lifecycle_events
from extproc.lifecycle import Cause, State
from extproc.lifecycle_events import RequestEvent
from extproc.record import Admission, Ending, UsageSource
from quota.charges import Charges
from tests.docs.page import page, table

_ADMISSION = Admission(
    request_id="3bf775b0-af74-4a27-bc3f-4d15b48b54bf",
    organization_id="org_f442bf2eb8c0fa3269a0",
    tenant_id="ten_6f558b695227f1f97c92",
    principal_id="key_lMQftM7O3mGr",
    key_id="lMQftM7O3mGr",
    path="/v1/chat/completions",
    model="demo",
    stream=True,
    metering="native",
    received_ms=1_790_000_000_000,
    admitted_ms=1_790_000_000_004,
    input_estimate=12,
    output_reserved=100,
    plan="pro",
)
_ENDING = Ending(
    state=State.COMPLETED,
    cause=Cause.FINISHED,
    status=200,
    input_tokens=11,
    output_tokens=40,
    usage_source=UsageSource.EXACT,
    events=41,
    response_bytes=9_120,
    dispatched_ms=1_790_000_000_005,
    first_event_ms=1_790_000_000_230,
    ended_ms=1_790_000_004_100,
    charges=Charges(requests=1, input_tokens=11, output_tokens=40, tokens=51, cost=620),
)

_LISTENERS = (
    (
        "`GET /v1/requests/{id}/events`",
        "a request's events as Server-Sent Events: what has been, then what comes; it ends with the request",
        "each step once, in order; `last-event-id` leaves out what had been told",
    ),
    ("`/ws/inference/{id}`", "the same over WebSocket, a text message each", "each step once, in order"),
    (
        "webhooks ([webhooks.md](webhooks.md))",
        "the last event of each request of a tenant, signed",
        "at least once, from the ledger",
    ),
    (
        "`GET /v1/requests?format=cloudevents` ([requests.md](requests.md))",
        "the last event of each request that has ended",
        "what the ledger has",
    ),
    (
        "the ledger",
        "reads a queue of its own, filled by the same script, and acknowledges what it has written",
        "at least once, and a row only once",
    ),
    (
        "the log in Redis",
        "a stream for each shard, `igw1:{NN}:log`, field `event`; for whoever observes",
        "the last 10,000 steps of each shard, or some more",
    ),
)


def events() -> str:
    """The events, their schema, and how they are had."""
    return page(
        "The events of a request",
        "Each step of a request's life ([lifecycle.md](lifecycle.md)) is a CloudEvent 1.0, in JSON. It is appended to "
        "a stream in Redis by the same script that takes the step: no process can die in between. The times in it are "
        "when the step happened, as Envoy or the worker saw it. What is refused is never admitted and has no events: "
        "it is counted in the metrics.",
        _indented(_shown(lifecycle_events.ended(_ADMISSION, _ENDING))),
        "`id` is the request and the step: who is told twice can tell. `type` and `dataschema` end in the version of "
        f"the schema, {lifecycle_events.SCHEMA_VERSION} today; a field may be added without a new one. A field of "
        "`data` that is empty, or not known yet, is left out. All times in `data` are milliseconds since the epoch, "
        "`cost_micros` are micro-dollars.",
        "## Who is told",
        table(("how", "what", "promise"), _LISTENERS),
        "The first two need the scope `requests:read`, and tell of the caller's own tenant only. A step that is short "
        "may be told with the next one: a request that is over before Envoy's first report says `streaming` when it "
        "ends.",
        "## Schema",
        _indented(_schema()),
    )


def _indented(value: Any) -> str:
    return "    " + json.dumps(value, indent=2).replace("\n", "\n    ")


def _shown(event: RequestEvent) -> Any:
    return json.loads(lifecycle_events.encode(event))


def _schema() -> Any:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(RequestEvent)}
