"""Check, bytes to bytes. What Envoy would send and read is made and read by betterproto, a codec of its own."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.service.auth import v3 as auth

import tests.wire.first_import  # noqa: F401 - before authz.wire
from authz import api_key, key_ring, session
from authz import arrival as arrivals
from authz import grant as grants
from authz.arrival import Arrival
from authz.cached_directory import CachedDirectory
from authz.cached_sessions import CachedSessions
from authz.caps import Caps
from authz.failures import FailureGuard
from authz.grant import Grant
from authz.identification import Identifier
from authz.identity_token import IdentityTokens, read_caller, verified
from authz.key_ring import KeyRing
from authz.principal import Handle, Metering, Principal, PrincipalKind, Secret
from authz.refusal import Reason, Refusal
from authz.service import SERVICE_NAME, Authorization, RefusedCredential
from authz.wire import Passes
from quota.limit import requests_per_minute
from tests.authz.test_failures import SharedCounts
from tests.support.memory_directory import MemoryDirectory
from tests.support.memory_sessions import MemorySessions
from tests.support.tokens import no_tokens
from tests.support.values import NOON_MS, REQUEST_ID, Clock, principal, tenant
from wire.messages import CheckResponse

PEPPER = b"p" * 32
KEY = api_key.generate("test")
HANDLE = Handle(PrincipalKind.API_KEY, KEY.id)
NOON = datetime.fromtimestamp(NOON_MS / 1000, UTC)
RING = KeyRing((key_ring.generate(created_at=NOON - timedelta(days=1), active_from=NOON - timedelta(days=1)),))
STORED = principal(
    id=f"key_{KEY.id}",
    tenant=tenant(plan="gold", limits=(requests_per_minute(7),)),
    secrets=(Secret(hash=api_key.keyed_hash(KEY.text, PEPPER)),),
)
NEWER = (("api_keys:7Kq2mWZp4TsB", 2), ("tenants:ten_a", 1))
HEADERS = {
    "authorization": f"Bearer {KEY.text}",
    "content-type": "application/json",
    "content-length": "10",
    "x-request-id": REQUEST_ID,
    ":method": "POST",
}


@dataclass(slots=True)
class Checked:
    """An Authorization, what it told its observer, and the directory behind it."""

    directory: MemoryDirectory = field(default_factory=lambda: MemoryDirectory({HANDLE: STORED}))
    sessions: MemorySessions = field(default_factory=MemorySessions)
    clock: Clock = field(default_factory=Clock)
    grants: list[Grant | None] = field(default_factory=list)
    refusals: list[tuple[Refusal, RefusedCredential | None]] = field(default_factory=list)
    ring: KeyRing = RING
    router_api_key: str | None = None
    _made: Authorization | None = None

    def granted(self, grant: Grant | None, now: float) -> None:
        assert now == self.clock.now()
        self.grants.append(grant)

    def refused(self, refusal: Refusal, credential: RefusedCredential | None) -> None:
        self.refusals.append((refusal, credential))

    @property
    def authorization(self) -> Authorization:
        if self._made is None:
            directory = CachedDirectory(self.directory, now=self.clock.now)
            self.sessions.now_ms = self.clock.now_ms
            sessions = CachedSessions(self.sessions, now=self.clock.now)
            tokens = IdentityTokens(now=self.clock.now)
            tokens.use(self.ring)
            self._made = Authorization(
                Identifier(directory, sessions, no_tokens(), pepper=PEPPER),
                FailureGuard(SharedCounts(self.clock.now), limit=5, now=self.clock.now),
                Passes(tokens, router_api_key=self.router_api_key),
                observer=self,
                now=self.clock.now,
            )
        return self._made

    async def __call__(self, **changes: Any) -> auth.CheckResponse:
        return await self.ask(check_request(**changes))

    async def ask(self, raw: bytes) -> auth.CheckResponse:
        service = self.authorization.service()
        assert service.name == SERVICE_NAME
        assert set(service.unary) == {"Check"}
        answer = await service.unary["Check"](raw)
        # The answer is two messages in a row, which a reader merges. betterproto does not, so they are merged first.
        return auth.CheckResponse.parse(CheckResponse.FromString(answer).SerializeToString())

    async def reason(self, **changes: Any) -> Reason | None:
        """Why the request was refused; None when it was not."""
        before = len(self.refusals)
        await self(**changes)
        return self.refusals[-1][0].reason if len(self.refusals) > before else None


@pytest.fixture
def check() -> Checked:
    return Checked()


def check_request(
    *,
    method: str = "POST",
    path: str = "/v1/infer?x=1",
    address: str = "192.0.2.7",
    headers: dict[str, str | None] | None = None,
) -> bytes:
    whole = {**HEADERS, **(headers or {})}
    return bytes(
        auth.CheckRequest(
            attributes=auth.AttributeContext(
                source=auth.AttributeContextPeer(
                    address=core.Address(socket_address=core.SocketAddress(address=address, port_value=4711))
                ),
                request=auth.AttributeContextRequest(
                    time=datetime.fromtimestamp(NOON_MS / 1000, UTC) + timedelta(milliseconds=123, microseconds=999),
                    http=auth.AttributeContextHttpRequest(
                        id="17",
                        method=method,
                        path=path,
                        headers={name: value for name, value in whole.items() if value is not None},
                    ),
                ),
            )
        )
    )


def _headers(options: Any) -> dict[str, str]:
    found = {option.header.key: option.header.value for option in options}
    assert len(found) == len(options)
    # ext_authz reads `value`; a `raw_value` would give an empty header.
    assert not any(option.header.raw_value for option in options)
    return found


def _allowed(answer: auth.CheckResponse) -> dict[str, str]:
    assert answer.status is None or answer.status.code == 0
    assert answer.denied_response is None
    assert answer.ok_response is not None
    removed = set(answer.ok_response.headers_to_remove)
    assert removed >= {"authorization", "proxy-authorization", "x-api-key", "api-key", "cookie", "x-csrf-token"}
    headers = _headers(answer.ok_response.headers)
    assert not removed & set(headers), "set and removed is removed"
    return headers


async def test_a_good_key_passes_with_the_headers_of_its_tenant_and_nothing_of_its_own(check: Checked) -> None:
    answer = await check()
    headers = _allowed(answer)
    claims = verified(headers.pop("x-gateway-identity"), RING, audience="inference-router", now=NOON)
    assert claims is not None
    assert (claims["sub"], claims["tenant"], claims["exp"] - claims["iat"]) == (f"key_{KEY.id}", "ten_a", 60)
    assert headers == {
        "x-org-id": "org_a",
        "x-tenant-id": "ten_a",
        "x-principal-id": f"key_{KEY.id}",
        "x-principal-kind": "api_key",
        "x-tenant-plan": "gold",
        "x-scopes": "admin",
    }
    assert answer.ok_response is not None
    assert "accept-encoding" in answer.ok_response.headers_to_remove


async def test_the_identity_is_signed_once_for_half_its_lifetime(check: Checked) -> None:
    first = _allowed(await check())["x-gateway-identity"]
    check.clock.ms += 29_000
    assert _allowed(await check())["x-gateway-identity"] == first
    check.clock.ms += 2_000
    assert _allowed(await check())["x-gateway-identity"] != first


async def test_nobody_passes_while_no_identity_can_be_signed(check: Checked) -> None:
    check.ring = KeyRing()
    assert await check.reason() is Reason.IDENTITY_UNAVAILABLE


async def test_a_router_that_needs_a_shared_secret_gets_it(check: Checked) -> None:
    check.router_api_key = "between-us-two-only"
    check.directory.add(HANDLE, replace(STORED, tenant=replace(STORED.tenant, routing_policy='{"tenantId":"ten_a"}')))
    headers = _allowed(await check())
    assert headers["x-internal-api-key"] == "between-us-two-only"
    assert headers["x-routing-policy"] == '{"tenantId":"ten_a"}'


async def test_process_finds_the_grant_and_the_arrival_beside_the_request(check: Checked) -> None:
    answer = await check()
    assert answer.dynamic_metadata is not None
    fields = answer.dynamic_metadata.fields
    assert set(fields) == {"grant", "arrival"}
    assert fields["grant"].string_value is not None
    assert fields["arrival"].string_value is not None
    granted = grants.decode(fields["grant"].string_value)
    assert [granted] == check.grants
    assert granted.limits == STORED.tenant.limits
    assert arrivals.decode(fields["arrival"].string_value) == Arrival(
        request_id=REQUEST_ID, path="/v1/infer", received_ms=NOON_MS + 123
    )


async def test_inline_metering_is_asked_for_by_a_header(check: Checked) -> None:
    check.directory.add(HANDLE, replace(STORED, tenant=replace(STORED.tenant, metering=Metering.INLINE)))
    assert _allowed(await check())["x-gateway-metering"] == "inline"


async def test_a_plans_deadline_is_told_to_envoy(check: Checked) -> None:
    caps = Caps(stream_seconds=7, output_tokens=5)
    check.directory.add(HANDLE, replace(STORED, tenant=replace(STORED.tenant, caps=caps)))
    assert _allowed(await check())["x-envoy-upstream-rq-timeout-ms"] == "7000"


async def test_an_idempotency_key_goes_along_and_chooses_the_route_of_recorded_answers(check: Checked) -> None:
    answer = await check(headers={"idempotency-key": r'"a\"b"'})
    assert _allowed(answer)["x-gateway-metering"] == "recorded"
    assert answer.dynamic_metadata is not None
    text = answer.dynamic_metadata.fields["arrival"].string_value
    assert text is not None
    assert arrivals.decode(text).idempotency_key == 'a"b'


async def test_in_line_every_answer_passes_the_sidecar_anyway(check: Checked) -> None:
    check.directory.add(HANDLE, replace(STORED, tenant=replace(STORED.tenant, metering=Metering.INLINE)))
    assert _allowed(await check(headers={"idempotency-key": "k"}))["x-gateway-metering"] == "inline"


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models"), ("GET", "/v1/sessions")])
async def test_where_nothing_is_made_an_idempotency_key_means_nothing(check: Checked, method: str, path: str) -> None:
    assert "x-gateway-metering" not in _allowed(await check(method=method, path=path, headers={"idempotency-key": '"'}))


async def test_the_gateways_own_api_is_told_the_caller_in_a_signed_token_alone(check: Checked) -> None:
    answer = await check(method="GET", path="/v1/sessions")
    headers = _allowed(answer)
    caller = read_caller(headers.pop("x-gateway-identity"), RING, NOON)
    assert caller is not None
    assert (caller.principal_id, caller.handle) == (STORED.id, HANDLE)
    assert headers == {"x-gateway-client-address": "192.0.2.7"}
    assert answer.dynamic_metadata is None


async def test_a_public_path_needs_nobody_and_tells_nobody(check: Checked) -> None:
    answer = await check(method="GET", path="/.well-known/jwks.json", headers={"authorization": None})
    assert _allowed(answer) == {}
    assert check.grants == [None]


def _changed(**changes: Any) -> Callable[[Checked], None]:
    return lambda check: check.directory.add(HANDLE, replace(STORED, versions=NEWER, **changes))


def _out(check: Checked) -> None:
    check.directory.out = True


def _nothing(_: Checked) -> None:
    pass


_revoked = _changed(revoked_at=datetime(2025, 1, 1, tzinfo=UTC))
_suspended = _changed(tenant=replace(STORED.tenant, suspended=True))


@pytest.mark.parametrize(
    ("change", "before", "reason"),
    [
        ({"path": "/nowhere"}, _nothing, Reason.UNKNOWN_PATH),
        ({"path": "/nowhere", "headers": {"authorization": None}}, _nothing, Reason.UNKNOWN_PATH),
        ({"method": "GET"}, _nothing, Reason.METHOD_NOT_ALLOWED),
        ({"headers": {"authorization": None}}, _nothing, Reason.MISSING_CREDENTIALS),
        ({"headers": {"authorization": "Bearer x"}}, _nothing, Reason.INVALID_API_KEY),
        ({"headers": {"x-api-key": "other"}}, _nothing, Reason.CONFLICTING_CREDENTIALS),
        ({"headers": {"authorization": f"Bearer {api_key.generate('test').text}"}}, _nothing, Reason.INVALID_API_KEY),
        ({"headers": {"authorization": f"Bearer {session.generate(3).text}"}}, _nothing, Reason.INVALID_SESSION),
        ({"headers": {"authorization": "Bearer eyJhbGciOiJub25lIn0.e30."}}, _nothing, Reason.INVALID_TOKEN),
        ({}, _revoked, Reason.INVALID_API_KEY),
        ({}, _suspended, Reason.TENANT_SUSPENDED),
        ({}, _changed(scopes=frozenset()), Reason.INSUFFICIENT_SCOPE),
        ({}, _changed(networks=("10.0.0.0/8",)), Reason.NETWORK_NOT_ALLOWED),
        ({}, _out, Reason.IDENTITY_UNAVAILABLE),
        ({"headers": {"content-type": "text/plain"}}, _nothing, Reason.UNSUPPORTED_MEDIA_TYPE),
        ({"headers": {"content-encoding": "gzip"}}, _nothing, Reason.UNSUPPORTED_ENCODING),
        ({"headers": {"content-length": "0"}}, _nothing, Reason.MISSING_BODY),
        ({"headers": {"idempotency-key": '"a'}}, _nothing, Reason.INVALID_IDEMPOTENCY_KEY),
        # A stranger learns nothing of what the body should be.
        ({"headers": {"content-type": "text/plain"}}, _revoked, Reason.INVALID_API_KEY),
    ],
)
async def test_a_refusal_is_told_with_its_status_and_body(
    check: Checked, change: dict[str, Any], before: Callable[[Checked], None], reason: Reason
) -> None:
    before(check)
    answer = await check(**change)
    assert answer.status is not None
    assert answer.status.code == 7
    assert answer.ok_response is None
    assert answer.dynamic_metadata is None
    denied = answer.denied_response
    assert denied is not None
    assert denied.status is not None
    assert int(denied.status.code) == reason.status
    error = json.loads(denied.body)["error"]
    assert (error["code"], error["request_id"]) == (reason.code, REQUEST_ID)
    headers = _headers(denied.headers)
    assert headers["content-type"] == "application/json"
    assert ("retry-after" in headers) is (reason is Reason.IDENTITY_UNAVAILABLE)
    [(observed, credential)] = check.refusals
    assert observed.reason is reason
    written = reason.status in {401, 403} and reason is not Reason.MISSING_CREDENTIALS
    assert (credential is not None) is (written and reason is not Reason.CONFLICTING_CREDENTIALS)
    assert KEY.text not in repr(credential)


async def test_on_anthropics_path_the_answers_are_anthropics(check: Checked) -> None:
    answer = await check(path="/v1/messages", headers={"authorization": None})
    assert answer.denied_response is not None
    body = json.loads(answer.denied_response.body)
    assert (body["type"], body["error"]["type"]) == ("error", "authentication_error")
    # Its SDKs look for the request's id there.
    assert _headers(answer.denied_response.headers)["request-id"] == REQUEST_ID
    allowed = await check(path="/v1/messages")
    assert allowed.ok_response is not None
    assert _headers(allowed.ok_response.response_headers_to_add) == {"request-id": REQUEST_ID}
    elsewhere = await check()
    assert elsewhere.ok_response is not None
    assert not elsewhere.ok_response.response_headers_to_add


async def test_what_is_written_down_of_a_refused_credential(check: Checked) -> None:
    await check(headers={"authorization": None, "x-api-key": KEY.text})
    _suspended(check)
    check.clock.ms += 10_000
    await check(path="/v1/messages?x=1")
    [(_, credential)] = check.refusals
    assert credential == RefusedCredential(
        reason=Reason.TENANT_SUSPENDED,
        fingerprint=f"key:{KEY.id}",
        tenant_id="ten_a",
        address="192.0.2.7",
        request_id=REQUEST_ID,
        method="POST",
        path="/v1/messages",
    )


async def test_every_way_to_be_wrong_is_the_same_to_the_byte(check: Checked) -> None:
    unknown = await check(headers={"authorization": f"Bearer {api_key.generate('test').text}"})
    mistyped = await check(headers={"x-api-key": "nonsense", "authorization": None})
    _revoked(check)
    revoked = await check()
    assert bytes(unknown) == bytes(mistyped) == bytes(revoked)


async def test_nobody_is_looked_up_for_what_cannot_be_a_key(check: Checked) -> None:
    for text in ("Bearer nonsense", f"Bearer {KEY.text[:-1]}", "Basic x"):
        await check(headers={"authorization": text})
    await check(path="/nowhere")
    assert check.directory.asked == 0


async def test_a_request_that_says_nothing_is_refused_and_not_a_failure(check: Checked) -> None:
    answer = await check.ask(b"")
    assert answer.denied_response is not None
    assert answer.denied_response.status is not None
    assert int(answer.denied_response.status.code) == 404


def _guess() -> dict[str, str | None]:
    return {"authorization": f"Bearer {api_key.generate('test').text}"}


async def test_guesses_end_early_and_who_is_known_goes_on(check: Checked) -> None:
    assert await check.reason() is None
    for _ in range(5):
        assert await check.reason(headers=_guess()) is Reason.INVALID_API_KEY
    asked = check.directory.asked
    assert await check.reason(headers=_guess()) is Reason.TOO_MANY_FAILURES
    other = api_key.generate("test")
    stored = replace(STORED, id=f"key_{other.id}", secrets=(Secret(hash=api_key.keyed_hash(other.text, PEPPER)),))
    check.directory.add(Handle(PrincipalKind.API_KEY, other.id), stored)
    right = {"authorization": f"Bearer {other.text}"}
    assert await check.reason(headers=right) is Reason.TOO_MANY_FAILURES, "not held: it could be a guess"
    assert check.directory.asked == asked
    assert await check.reason() is None, "who is held here is behind the same address"
    assert await check.reason(headers=right, address="192.0.2.8") is None
    _, credential = check.refusals[-1]
    assert credential is None, "who is refused early is counted, and not written down"
    check.clock.ms += 61_000
    assert await check.reason(headers=_guess()) is Reason.INVALID_API_KEY


async def test_a_missing_credential_is_no_guess(check: Checked) -> None:
    for _ in range(10):
        assert await check.reason(headers={"authorization": None}) is Reason.MISSING_CREDENTIALS
    assert await check.reason() is None


async def _session(check: Checked, *, cookie: bool, of: Principal = STORED, handle: Handle = HANDLE) -> str:
    token = session.generate(0)
    made = session.Session(
        id=token.id,
        handle=handle,
        claimed_scopes=frozenset(),
        principal_id=of.id,
        tenant_id=of.tenant.id,
        created_ms=check.clock.ms,
        expires_ms=check.clock.ms + 3_600_000,
        idle_ms=600_000,
        last_used_ms=check.clock.ms,
        cookie=cookie,
    )
    assert await check.sessions.create(token, made)
    return token.text


async def test_a_session_stands_for_its_principal(check: Checked) -> None:
    token = await _session(check, cookie=False)
    headers = _allowed(await check(headers={"authorization": f"Bearer {token}"}))
    assert (headers["x-principal-id"], headers["x-principal-kind"]) == (STORED.id, "session")
    [granted] = check.grants
    assert granted is not None
    assert granted.session_id.startswith("ses_")
    # The key behind it is revoked: so is the session.
    _revoked(check)
    check.clock.ms += 10_000
    assert await check.reason(headers={"authorization": f"Bearer {token}"}) is Reason.INVALID_SESSION


async def test_a_cookie_needs_its_csrf_token_and_counts_nowhere_else(check: Checked) -> None:
    text = await _session(check, cookie=True)
    cookie: dict[str, str | None] = {"authorization": None, "cookie": f"x=y; __Host-igw_session={text}"}
    parsed = session.parse(text)
    assert parsed is not None
    right = session.csrf_token(parsed, PEPPER)
    assert await check.reason(headers=cookie) is Reason.INVALID_CSRF_TOKEN
    assert await check.reason(headers={**cookie, "x-csrf-token": "wrong"}) is Reason.INVALID_CSRF_TOKEN
    assert await check.reason(headers={**cookie, "x-csrf-token": right}) is None
    assert await check.reason(headers={"authorization": f"Bearer {text}"}) is Reason.INVALID_SESSION
    bearer = await _session(check, cookie=False)
    stolen: dict[str, str | None] = {"authorization": None, "cookie": f"__Host-igw_session={bearer}"}
    assert await check.reason(headers=stolen) is Reason.INVALID_SESSION


async def test_a_cookie_beside_a_key_must_agree_while_it_lives(check: Checked) -> None:
    stranger = replace(STORED, id="key_stranger", tenant=tenant(id="ten_b"))
    handle = Handle(PrincipalKind.API_KEY, "stranger")
    check.directory.add(handle, stranger)
    foreign = await _session(check, cookie=True, of=stranger, handle=handle)
    own = await _session(check, cookie=True)
    ended = session.generate(0).text
    for text, found in ((own, None), (foreign, Reason.CONFLICTING_CREDENTIALS), (ended, None), ("rubbish", None)):
        assert await check.reason(headers={"cookie": f"__Host-igw_session={text}"}) is found


async def test_redis_out_is_no_reason_to_call_a_session_wrong(check: Checked) -> None:
    token = await _session(check, cookie=False)
    check.sessions.out = True
    assert await check.reason(headers={"authorization": f"Bearer {token}"}) is Reason.IDENTITY_UNAVAILABLE


async def test_behind_a_blocked_address_who_was_right_before_goes_on_however_long_ago(check: Checked) -> None:
    token = await _session(check, cookie=False)
    of_session: dict[str, str | None] = {"authorization": f"Bearer {token}"}
    assert await check.reason() is None
    assert await check.reason(headers=of_session) is None
    for _ in range(5):
        await check.reason(headers=_guess())
    check.clock.ms += 30_000  # the copies are used up, the window is not
    assert await check.reason(headers=_guess()) is Reason.TOO_MANY_FAILURES
    assert await check.reason() is None
    assert await check.reason(headers=of_session) is None
    other = api_key.generate("test", public_id=KEY.id)
    assert await check.reason(headers={"authorization": f"Bearer {other.text}"}) is Reason.TOO_MANY_FAILURES
    _revoked(check)
    check.clock.ms += 10_000
    assert await check.reason() is Reason.TOO_MANY_FAILURES
