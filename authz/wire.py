"""How do a CheckRequest and a CheckResponse become our values, and back? The only place of `authz` that knows them."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping

import msgspec

from authz import error_body
from authz.arrival import Arrival
from authz.grant import Grant, encode
from authz.identity_token import ADDRESS_HEADER, IDENTITY_HEADER, IdentityTokens
from authz.principal import Metering
from authz.proof import Proof
from authz.refusal import Refusal
from authz.routes import Dialect
from wire.messages import CheckRequest, CheckResponse

METADATA_NAMESPACE = "envoy.filters.http.ext_authz"
GRANT_KEY = "grant"
ARRIVAL_KEY = "arrival"
METERING_HEADER = "x-gateway-metering"
RECORDED = "recorded"
"""In `METERING_HEADER`: metered natively, and a JSON answer passes the sidecar, which keeps it for a retry."""
ROUTER_KEY_HEADER = "x-internal-api-key"
DEADLINE_HEADER = "x-envoy-upstream-rq-timeout-ms"
"""Of Envoy's router filter, which obeys it and removes it; a client's own is removed before."""

# google.rpc.Code: https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto
_PERMISSION_DENIED = 7
_MS_PER_SECOND, _NS_PER_MS = 1000, 1_000_000
_PASSES = 20_000

# The next one never sees a credential.
_CREDENTIALS = ("authorization", "proxy-authorization", "x-api-key", "api-key", "cookie", "x-csrf-token")
# The Router is not asked to compress, so that the answer can be metered as it passes. The content length is set again
# by Envoy, from the body as the sidecar leaves it.
_NOT_FOR_THE_ROUTER = (*_CREDENTIALS, "accept-encoding", "content-length")


class CheckedRequest(msgspec.Struct, frozen=True):
    """A request as Check sees it: headers in lower case, duplicates joined by commas, the path with its query.

    `address` is the client's, `certificate` the URL-encoded PEM of a certificate that Envoy has verified, or empty.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    received_ms: int
    address: str = ""
    certificate: str = ""

    @property
    def request_id(self) -> str:
        """Envoy's own id of the request."""
        return self.headers.get("x-request-id", "")

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]


def read(raw: bytes) -> CheckedRequest:
    """Read a CheckRequest."""
    attributes = CheckRequest.FromString(raw).attributes
    request, source = attributes.request, attributes.source
    time = request.time
    return CheckedRequest(
        request.http.method,
        request.http.path,
        request.http.headers,
        time.seconds * _MS_PER_SECOND + time.nanos // _NS_PER_MS,
        source.address.socket_address.address,
        source.certificate,
    )


class _Pass(msgspec.Struct, frozen=True, kw_only=True):
    """What is the same for all requests of a principal, until its identity is to be signed anew."""

    grant: Grant
    renew_at: float
    headers: bytes
    metadata: bytes


class Passes:
    """The answers that let a request through. What is the same for all requests of a principal is built once.

    Serialised messages that follow one another are merged by the reader, maps and repeated fields included
    (https://protobuf.dev/programming-guides/encoding/#last-one-wins).
    """

    def __init__(self, tokens: IdentityTokens, *, router_api_key: str | None) -> None:
        self._tokens = tokens
        self._router_api_key = router_api_key
        # By identity: `decision.grant` gives the same object for the same principal, and a Grant is dear to hash.
        self._held: OrderedDict[int, _Pass] = OrderedDict()

    def to_router(
        self, grant: Grant, arrival: Arrival | None, *, now: float, dialect: Dialect = Dialect.PLAIN
    ) -> bytes | None:
        """Tenant headers for the Router; the Grant and the arrival for Process, where it is asked (else None).

        None while no identity can be signed.
        """
        held = self._held.get(id(grant))
        if held is None or held.grant is not grant or now >= held.renew_at:
            held = self._build(grant)
            if held is None:
                return None
        if arrival is None:
            return held.headers
        response = CheckResponse()
        response.dynamic_metadata.fields[ARRIVAL_KEY].string_value = msgspec.json.encode(arrival).decode()
        for name, value in error_body.request_id_headers(dialect, arrival.request_id):
            _set(response.ok_response.response_headers_to_add.add(), name, value)
        if arrival.idempotency_key and grant.metering is Metering.NATIVE:
            _set(response.ok_response.headers.add(), METERING_HEADER, RECORDED)
        return held.headers + held.metadata + bytes(response.SerializeToString())

    def clear(self) -> None:
        """Build everything anew: the keys have changed."""
        self._held.clear()

    def to_control(self, grant: Grant, proof: Proof, *, address: str) -> bytes | None:
        """The signed identity for the gateway's own HTTP API, and where it came from; None while none can be signed."""
        token = self._tokens.for_control(grant, proof.handle, proof.claimed_scopes)
        if token is None:
            return None
        return _ok([(IDENTITY_HEADER, token.text), (ADDRESS_HEADER, address)], remove=_CREDENTIALS)

    def _build(self, grant: Grant) -> _Pass | None:
        token = self._tokens.for_router(grant)
        if token is None:
            return None
        headers = [*router_headers(grant), (IDENTITY_HEADER, token.text)]
        if self._router_api_key is not None:
            headers.append((ROUTER_KEY_HEADER, self._router_api_key))
        if grant.metering is Metering.INLINE:
            headers.append((METERING_HEADER, grant.metering.value))
        if grant.caps.stream_seconds > 0:
            headers.append((DEADLINE_HEADER, str(grant.caps.stream_seconds * _MS_PER_SECOND)))
        metadata = CheckResponse()
        metadata.dynamic_metadata.fields[GRANT_KEY].string_value = encode(grant)
        held = _Pass(
            grant=grant,
            renew_at=token.renew_at,
            headers=_ok(headers, remove=_NOT_FOR_THE_ROUTER),
            metadata=bytes(metadata.SerializeToString()),
        )
        self._held[id(grant)] = held
        self._held.move_to_end(id(grant))
        if len(self._held) > _PASSES:
            self._held.popitem(last=False)
        return held


def deny(refusal: Refusal, *, dialect: Dialect, request_id: str, now: float) -> bytes:
    """Refuse the request with our error body."""
    response = CheckResponse()
    response.status.code = _PERMISSION_DENIED
    denied = response.denied_response
    denied.status.code = refusal.reason.status
    for name, value in (*error_body.headers(refusal), *error_body.request_id_headers(dialect, request_id)):
        _set(denied.headers.add(), name, value)
    denied.body = error_body.render(refusal, dialect=dialect, request_id=request_id, now=now).decode()
    return bytes(response.SerializeToString())


def router_headers(grant: Grant) -> list[tuple[str, str]]:
    """What the Router is told of the caller (docs/router.md)."""
    headers = [
        ("x-org-id", grant.organization_id),
        ("x-tenant-id", grant.tenant_id),
        ("x-principal-id", grant.principal_id),
        ("x-principal-kind", grant.principal_kind.value),
        ("x-tenant-plan", grant.plan),
        ("x-scopes", " ".join(grant.scopes)),
    ]
    if grant.routing_policy is not None:
        headers.append(("x-routing-policy", grant.routing_policy))
    return headers


def _ok(headers: Iterable[tuple[str, str]], *, remove: Iterable[str]) -> bytes:
    response = CheckResponse()
    ok = response.ok_response
    ok.SetInParent()
    for name, value in headers:
        _set(ok.headers.add(), name, value)
    ok.headers_to_remove.extend(remove)
    return bytes(response.SerializeToString())


def _set(option: object, name: str, value: str) -> None:
    # ext_authz reads `value`; `raw_value` would give an empty header (ext_proc is the opposite).
    header = option.header  # type: ignore[attr-defined]
    header.key = name
    header.value = value


PUBLIC = _ok((), remove=_CREDENTIALS)
