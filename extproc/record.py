"""What is written down of a request? What was known at its admission, how it ended, and the row made of both."""

from enum import StrEnum

import msgspec

from extproc.lifecycle import Cause, State


class UsageSource(StrEnum):
    """Whether the Router said how many tokens, or the gateway had to estimate."""

    EXACT = "exact"
    ESTIMATED = "estimated"


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """What was known when the request was admitted. Times are milliseconds since the epoch.

    `input_estimate` and `output_reserved` are tokens. It travels in Envoy's dynamic metadata and stands in Redis, so
    that whoever sees the end can write the whole row, even when the other two have lost it.
    """

    request_id: str
    organization_id: str
    tenant_id: str
    principal_id: str
    key_id: str
    path: str
    model: str
    stream: bool
    metering: str
    received_ms: int
    admitted_ms: int
    input_estimate: int
    output_reserved: int


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How a request ended, and what it used. Times are milliseconds since the epoch; `status` 0 is no answer sent."""

    state: State
    cause: Cause
    status: int
    input_tokens: int
    output_tokens: int
    usage_source: UsageSource
    events: int
    response_bytes: int
    first_event_ms: int | None
    ended_ms: int


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The settled fact: one per admitted request, one row in `inference_requests`."""

    admission: Admission
    ending: Ending
