"""What may a tenant's routing policy say? The schema, checked when it is written; the Router obeys it.

The policy travels in the header `x-routing-policy`: one line of ASCII, at most `MAX_BYTES` long.
"""

import json
import re
from typing import Annotated, Any, Literal

import msgspec

from store.field_error import FieldError

FIELD = "routing_policy"
MAX_BYTES = 4096
MAX_PROVIDERS = 100
MAX_COST_USD = 1_000_000
# What is asked for may be indented, but is not worth reading at any length.
_MAX_TEXT = 65_536
_PROVIDER_NAME = r"^[a-z0-9._-]{1,64}\Z"

Provider = Annotated[str, msgspec.Meta(pattern=_PROVIDER_NAME)]
Providers = Annotated[tuple[Provider, ...], msgspec.Meta(max_length=MAX_PROVIDERS)]
_PROVIDER_RULE = "a provider's name has 1 to 64 of a-z, 0-9, '.', '_' and '-'"
_LIST_RULE = f"must be a list of at most {MAX_PROVIDERS} providers"
_RULES = {
    "tenantId": "must be a text",
    "allowedProviders": _LIST_RULE,
    "deniedProviders": _LIST_RULE,
    "preferredProvider": _PROVIDER_RULE,
    "maxCostPerRequestUsd": f"must be a number from 0 to {MAX_COST_USD:,}",
    "defaultStrategy": "must be one of: cheapest, quality, pinned",
}
# How msgspec says it.
_LOCATED = re.compile(r" - at `\$\.(?P<path>[^`]*)`\Z")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_-]{1,64}(\[[0-9]+\])?")


class RoutingPolicy(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel", omit_defaults=True
):
    """Which providers may serve a tenant's requests, and how the Router chooses. An empty allow list allows all."""

    tenant_id: str
    allowed_providers: Providers = ()
    denied_providers: Providers = ()
    preferred_provider: Provider | None = None
    max_cost_per_request_usd: Annotated[float, msgspec.Meta(ge=0, le=MAX_COST_USD)] | None = None
    default_strategy: Literal["cheapest", "quality", "pinned"] | None = None

    def allows(self, provider: str) -> bool:
        """Whether this provider may serve the tenant: deny beats allow."""
        if provider in self.denied_providers:
            return False
        return not self.allowed_providers or provider in self.allowed_providers


def parse(text: str, *, tenant_id: str) -> RoutingPolicy:
    """Read a tenant's policy from JSON; its `tenantId` may be left out. Raises `FieldError`, which names the field."""
    given = _read(text)
    if not isinstance(given, dict):
        raise FieldError(FIELD, "must be a JSON object")
    if given.setdefault("tenantId", tenant_id) != tenant_id:
        raise _error("tenantId", f"must be the tenant's own, {tenant_id}, or be left out")
    try:
        # Strict: neither a boolean nor a text is a number.
        policy = msgspec.convert(given, RoutingPolicy)
    except msgspec.ValidationError as error:
        raise _shape_error(str(error)) from None
    except UnicodeEncodeError:
        raise FieldError(FIELD, "holds half of a UTF-16 pair, which is no character") from None
    _check(policy)
    return policy


def canonical(policy: RoutingPolicy) -> str:
    """The policy as compact JSON in ASCII, its fields in the order of the schema."""
    return json.dumps(msgspec.to_builtins(policy), separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def canonical_text(text: str, *, tenant_id: str) -> str:
    """Check a policy and give it as it is stored and sent. Raises `FieldError`."""
    policy = canonical(parse(text, tenant_id=tenant_id))
    if len(policy) > MAX_BYTES:
        raise FieldError(FIELD, f"takes {len(policy):,} bytes; a header carries at most {MAX_BYTES:,}")
    return policy


def stored_text(text: str) -> str:
    """The same as `canonical_text` gave, from what Postgres makes of it; what was written past us stays as it is."""
    try:
        return canonical(msgspec.json.decode(text, type=RoutingPolicy))
    except msgspec.MsgspecError:
        return json.dumps(json.loads(text), separators=(",", ":"))


def _read(text: str) -> Any:
    if len(text) > _MAX_TEXT:
        raise FieldError(FIELD, f"is longer than {_MAX_TEXT:,} characters")
    try:
        return json.loads(text, object_pairs_hook=_without_repetition)
    except json.JSONDecodeError as error:
        raise FieldError(FIELD, f"is not JSON: {error}") from None
    except (ValueError, RecursionError):  # a number of thousands of digits; brackets in brackets
        raise FieldError(FIELD, "is not JSON that can be read") from None


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers could each believe another of the values."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        raise _error(next(name for name in names if names.count(name) > 1), "is given more than once")
    return fields


def _check(policy: RoutingPolicy) -> None:
    for name, providers in (
        ("allowedProviders", policy.allowed_providers),
        ("deniedProviders", policy.denied_providers),
    ):
        for at, provider in enumerate(providers):
            if provider in providers[:at]:
                raise _error(f"{name}[{at}]", f"{provider!r} is in the list already")
    preferred = policy.preferred_provider
    if preferred is None and policy.default_strategy == "pinned":
        raise _error("preferredProvider", "is needed by the strategy 'pinned'")
    if preferred is not None and not policy.allows(preferred):
        which = "is denied" if preferred in policy.denied_providers else "is not among the allowed providers"
        raise _error("preferredProvider", f"{preferred!r} {which}")


def _shape_error(message: str) -> FieldError:
    if unknown := _UNKNOWN.match(message):
        return _error(unknown["name"], f"there is no such field; there are: {', '.join(_RULES)}")
    located = _LOCATED.search(message)
    path = "" if located is None else located["path"]
    if path.endswith("]"):
        return _error(path, _PROVIDER_RULE)
    return _error(path, _RULES.get(path, message))


def _error(path: str, reason: str) -> FieldError:
    """The path is shown as it is when it is surely one, and else quoted: a name may hold anything."""
    if not path:
        return FieldError(FIELD, reason)
    if _PLAIN_PATH.fullmatch(path):
        return FieldError(f"{FIELD}.{path}", reason)
    return FieldError(FIELD, f"{path[:60]!r}: {reason}")
