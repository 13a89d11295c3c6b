"""Small values for tests: each is whole by default, and a test names only what matters to it."""

from dataclasses import dataclass
from typing import Any

import msgspec

from authz.arrival import Arrival
from authz.grant import Grant
from authz.principal import Metering, Principal, PrincipalKind, Secret, Tenant
from authz.scope import Scope
from extproc.ending import Observation
from extproc.record import Admission
from quota.applied import AppliedLimit, AppliedLimits
from quota.charges import Charges
from quota.limit import Limit, Unit, Window
from quota.reservation import Claim, Progress, Settlement

NOON_MS = 1_767_268_800_000  # 2026-01-01T12:00:00Z
REQUEST_ID = "3f0d8a52-6a0c-4e57-9d2c-8a4f1f1f0a11"
ORGANIZATION = "org_a"


@dataclass(slots=True)
class Clock:
    """A clock that a test turns by hand, in milliseconds."""

    ms: int = NOON_MS

    def now_ms(self) -> int:
        return self.ms

    def now(self) -> float:
        return self.ms / 1000


def sliding(ceiling: int, *, seconds: int = 60, unit: Unit = Unit.REQUESTS, name: str = "sliding") -> Limit:
    return Limit(name=name, unit=unit, window=Window.SLIDING, ceiling=ceiling, seconds=seconds)


def tokens_a_day(ceiling: int, *, name: str = "tokens") -> Limit:
    return Limit(name=name, unit=Unit.TOKENS, window=Window.CALENDAR_DAY, ceiling=ceiling)


def slots(ceiling: int, *, name: str = "slots") -> Limit:
    return Limit(name=name, unit=Unit.CONCURRENT_REQUESTS, window=Window.LEASE, ceiling=ceiling)


def amounts(tokens: int = 1, *, requests: int = 1, cost: int = 0) -> Charges:
    """What a request counts for; its tokens are all input unless a test says more."""
    return Charges(requests=requests, input_tokens=tokens, tokens=tokens, cost=cost)


def held(*limits: Limit, subject: str = "tenant:ten_a", time_zone: str = "UTC") -> AppliedLimits:
    """The limits, all counted for one subject."""
    return AppliedLimits(tuple(AppliedLimit(limit, subject) for limit in limits), time_zone)


def claim(request_id: str, limits: AppliedLimits, asked: Charges | None = None, **changes: Any) -> Claim:
    """A request that asks for `asked`, one token by default, and makes do with no less."""
    asked = amounts() if asked is None else asked
    whole = {
        "organization_id": ORGANIZATION,
        "tenant_id": "ten_a",
        "request_id": request_id,
        "limits": limits,
        "amounts": asked,
        "least": asked,
        "admission": f"admission of {request_id}".encode(),
        "lease_ms": 60_000,
    }
    return Claim(**{**whole, **changes})


LIVE_STAGES = ("admitted", "dispatched", "streaming")


def progress(events: int = 0, stage: str = "", **changes: Any) -> Progress:
    """So many events, and a stage when a test names one."""
    before = LIVE_STAGES[: LIVE_STAGES.index(stage)] if stage in LIVE_STAGES else LIVE_STAGES
    whole = {"stage": stage, "after": before, "events": events}
    return Progress(**{**whole, **changes})


def settlement(request_id: str, charged: Charges | None = None, **changes: Any) -> Settlement:
    whole = {
        "organization_id": ORGANIZATION,
        "tenant_id": "ten_a",
        "request_id": request_id,
        "charges": amounts() if charged is None else charged,
        "ending": f"ending of {request_id}".encode(),
        "progress": progress(stage="completed"),
    }
    return Settlement(**{**whole, **changes})


def tenant(**changes: Any) -> Tenant:
    whole = {
        "id": "ten_a",
        "organization_id": ORGANIZATION,
        "organization_suspended": False,
        "suspended": False,
        "plan": "free",
        "limits": (),
        "metering": Metering.NATIVE,
    }
    return Tenant(**{**whole, **changes})


def principal(**changes: Any) -> Principal:
    """An API key of ten_a that may do everything; changes of its tenant go to `tenant`."""
    whole = {
        "id": "key_7Kq2mWZp4TsB",
        "kind": PrincipalKind.API_KEY,
        "tenant": tenant(),
        "scopes": frozenset({Scope.ADMIN}),
        "secrets": (Secret(hash=bytes(32)),),
        "versions": (("api_keys:7Kq2mWZp4TsB", 1), ("tenants:ten_a", 1)),
    }
    return Principal(**{**whole, **changes})


def grant(*limits: Limit, **changes: Any) -> Grant:
    whole = {
        "organization_id": ORGANIZATION,
        "tenant_id": "ten_a",
        "principal_id": "key_k",
        "principal_kind": PrincipalKind.API_KEY,
        "key_id": "k",
        "plan": "free",
        "limits": limits,
        "scopes": (Scope.ADMIN.value,),
    }
    return Grant(**{**whole, **changes})


def arrival(**changes: Any) -> Arrival:
    whole = {"request_id": REQUEST_ID, "path": "/v1/chat/completions", "received_ms": NOON_MS}
    return Arrival(**{**whole, **changes})


def admission(**changes: Any) -> Admission:
    """A streamed chat request of ten_a: 20 tokens in by estimate, 100 reserved for the answer."""
    whole = Admission(
        request_id=REQUEST_ID,
        organization_id=ORGANIZATION,
        tenant_id="ten_a",
        principal_id="key_k",
        key_id="k",
        path="/v1/chat/completions",
        model="demo",
        stream=True,
        metering="native",
        received_ms=NOON_MS,
        admitted_ms=NOON_MS + 2,
        input_estimate=20,
        output_reserved=100,
        plan="free",
        output_named=True,
    )
    return msgspec.structs.replace(whole, **changes)


def observation(**changes: Any) -> Observation:
    """What the access log says of a whole stream of 12 events, whose usage the Router did not say."""
    whole = {
        "status": 200,
        "details": "via_upstream",
        "client_gone": False,
        "passed": True,
        "input_tokens": None,
        "output_tokens": None,
        "events": 12,
        "response_bytes": 4096,
        "first_event_ms": NOON_MS + 50,
        "ended_ms": NOON_MS + 1000,
    }
    return Observation(**{**whole, **changes})
