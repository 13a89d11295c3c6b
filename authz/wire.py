"""How do a CheckRequest and a CheckResponse become our values, and back? The only place of `authz` that knows them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from authz import error_body
from authz.arrival import Arrival
from authz.grant import Grant, Metering, encode
from authz.refusal import Refusal
from wire.messages import CheckRequest, CheckResponse

METADATA_NAMESPACE = "envoy.filters.http.ext_authz"
GRANT_KEY = "grant"
ARRIVAL_KEY = "arrival"
METERING_HEADER = "x-gateway-metering"

# google.rpc.Code: https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto
_PERMISSION_DENIED = 7
_MS_PER_SECOND, _NS_PER_MS = 1000, 1_000_000

# The Router never sees a credential. It is not asked to compress, so that the answer can be metered as it passes.
# The content length is set again by Envoy, from the body as the sidecar leaves it.
_NOT_FOR_THE_ROUTER = (
    "authorization",
    "proxy-authorization",
    "x-api-key",
    "api-key",
    "cookie",
    "accept-encoding",
    "content-length",
)


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """A request as Check sees it: headers in lower case, duplicates joined by commas, the path with its query."""

    method: str
    target: str
    headers: Mapping[str, str]
    received_ms: int

    @property
    def request_id(self) -> str:
        """Envoy's own id of the request."""
        return self.headers.get("x-request-id", "")


def read(raw: bytes) -> CheckedRequest:
    """Read a CheckRequest."""
    request = CheckRequest.FromString(raw).attributes.request
    time = request.time
    return CheckedRequest(
        request.http.method,
        request.http.path,
        request.http.headers,
        time.seconds * _MS_PER_SECOND + time.nanos // _NS_PER_MS,
    )


def allow(grant: Grant, arrival: Arrival) -> bytes:
    """Let the request pass: tenant headers for the Router, the Grant for Process."""
    response = CheckResponse()
    metadata = response.dynamic_metadata.fields
    metadata[ARRIVAL_KEY].string_value = msgspec.json.encode(arrival).decode()
    # Serialised messages that follow one another are merged by the reader, maps included
    # (https://protobuf.dev/programming-guides/encoding/#last-one-wins): what is the same for all requests of a
    # principal is built once.
    return _same_for_all(grant) + bytes(response.SerializeToString())


def deny(refusal: Refusal, *, request_id: str, now: float) -> bytes:
    """Refuse the request with our error body."""
    response = CheckResponse()
    response.status.code = _PERMISSION_DENIED
    denied = response.denied_response
    denied.status.code = refusal.reason.status
    for name, value in error_body.headers(refusal):
        _set(denied.headers.add(), name, value)
    denied.body = error_body.render(refusal, request_id=request_id, now=now).decode()
    return bytes(response.SerializeToString())


def _set(option: object, name: str, value: str) -> None:
    # ext_authz reads `value`; `raw_value` would give an empty header (ext_proc is the opposite).
    header = option.header  # type: ignore[attr-defined]
    header.key = name
    header.value = value


@lru_cache(maxsize=10_000)
def _same_for_all(grant: Grant) -> bytes:
    response = CheckResponse()
    ok = response.ok_response
    for name, value in router_headers(grant):
        _set(ok.headers.add(), name, value)
    if grant.metering is Metering.INLINE:
        _set(ok.headers.add(), METERING_HEADER, grant.metering.value)
    ok.headers_to_remove.extend(_NOT_FOR_THE_ROUTER)
    response.dynamic_metadata.fields[GRANT_KEY].string_value = encode(grant)
    return bytes(response.SerializeToString())


def router_headers(grant: Grant) -> list[tuple[str, str]]:
    """What the Router is told of the caller (docs/router.md)."""
    return [
        ("x-org-id", grant.organization_id),
        ("x-tenant-id", grant.tenant_id),
        ("x-principal-id", grant.principal_id),
        ("x-principal-kind", grant.principal_kind.value),
        ("x-tenant-plan", grant.plan),
        ("x-scopes", " ".join(grant.scopes)),
    ]
