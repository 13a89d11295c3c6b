"""What is a load generator told, and what does it answer? One line of JSON each way."""

from typing import Literal

import msgspec

Kind = Literal["json", "alone", "streams", "disconnect", "check", "check_million"]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One load on one listener. The first `warm_*` of it is not measured."""

    kind: Kind
    port: int
    ca: str
    key: str
    connections: int
    seconds: float
    warm_seconds: float
    router_port: int
    interval_ms: float
    events: int


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. `count` is requests, events or streams; `passed` all requests sent, the warm-up's included."""

    count: int
    seconds: float
    latencies_ms: list[float]
    passed: int
