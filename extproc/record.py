"""What is written down of a request? What was known at its admission, how it ended, and the row made of both."""

from enum import StrEnum

import msgspec

from authz.caps import NO_CAPS, Caps
from extproc.lifecycle import Cause, State
from quota.charges import NOTHING, Charges, Rates


class UsageSource(StrEnum):
    """Whether the Router said how many tokens, or the gateway had to estimate."""

    EXACT = "exact"
    ESTIMATED = "estimated"


class Degraded(StrEnum):
    """How a request was admitted while the limits could not be asked."""

    NO = ""
    OPEN = "open"  # without limits
    LOCAL = "local"  # under its worker's share of them


class Admission(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was known when the request was admitted. Times are milliseconds since the epoch.

    `input_estimate` and `output_reserved` are tokens, the former made of `input_bytes`. `output_named` says whether
    the caller named the output's maximum. `rates` are those of its model
    at that time: it is charged by them whoever settles it. It travels in Envoy's dynamic metadata and stands in Redis,
    so that whoever sees the end can write the whole row, even when the other two have lost it. `caps` are its plan's.
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
    input_bytes: int = 0
    rates: Rates = Rates()
    degraded: Degraded = Degraded.NO
    plan: str = ""
    output_named: bool = False
    caps: Caps = NO_CAPS


class Ending(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a request ended, and what it used. Times are milliseconds since the epoch; `status` 0 is no answer sent.

    Of the input tokens `cached_tokens` were read from a cache, of the output `reasoning_tokens` were never shown.
    `charges` is what the limits count; a request that got nothing for it counts nothing. `dispatched_ms` is when the
    Router got it, None when it did not. `routing_snapshot` and `actual_cost` are the Router's words, JSON or empty.
    """

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
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    charges: Charges = NOTHING
    dispatched_ms: int | None = None
    routing_snapshot: str = ""
    actual_cost: str = ""


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The settled fact: one per admitted request, one row in `inference_requests`.

    `reserved_ms` is when room was taken by the clock of Redis, None when that knew of no reservation; `settlement` the
    place of the settled event among those of its shard.
    """

    admission: Admission
    ending: Ending
    reserved_ms: int | None = None
    settlement: int | None = None
