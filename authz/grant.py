"""What does Check hand to Process? The Grant: who calls, for which tenant, under which limits.

It travels as text in Envoy's dynamic metadata, which no client can write, and is made and read once per principal:
both sides remember the text of the Grants they have seen.
"""

from enum import StrEnum
from functools import lru_cache

import msgspec

from quota.limit import Limit


class PrincipalKind(StrEnum):
    """How a principal proves itself."""

    API_KEY = "api_key"


class Metering(StrEnum):
    """Where a stream's tokens are counted."""

    NATIVE = "native"  # in Envoy; no chunk passes the sidecar
    INLINE = "inline"  # every chunk passes the sidecar


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """Permission for one principal to make inference requests, and the limits they run under."""

    organization_id: str
    tenant_id: str
    principal_id: str
    principal_kind: PrincipalKind
    key_id: str
    plan: str
    limits: tuple[Limit, ...]
    scopes: tuple[str, ...] = ("inference:text",)
    metering: Metering = Metering.NATIVE


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Grant)


@lru_cache(maxsize=10_000)
def encode(grant: Grant) -> str:
    """The Grant as text."""
    return _ENCODER.encode(grant).decode()


@lru_cache(maxsize=10_000)
def decode(text: str) -> Grant:
    """Read a Grant from its text; `msgspec.DecodeError` when it is none."""
    return _DECODER.decode(text)
