"""Who the API takes its caller for: whom Check signed for, and nobody else."""

import httpx
import pytest

from authz.identity_token import IDENTITY_HEADER, IdentityTokens
from authz.key_ring import KeyRing
from tests.control.conftest import KEY, Api, ring_at
from tests.support.values import REQUEST_ID, grant

LIFETIME_MS = 60_000


async def _as(api: Api, *tokens: str) -> httpx.Response:
    headers = [*((IDENTITY_HEADER, token) for token in tokens), ("x-request-id", REQUEST_ID)]
    return await api.call("GET", "/v1/sessions", headers=headers)


def _refused(answer: httpx.Response) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["request_id"]) == (401, "missing_credentials", REQUEST_ID)
    assert answer.headers["www-authenticate"] == 'Bearer realm="inference-gateway"'
    assert answer.headers["cache-control"] == "no-store"


async def test_whom_check_signed_for_is_let_in(offline: Api) -> None:
    assert (await _as(offline, offline.token())).status_code == 200


async def test_nobody_is_let_in_without_a_token(offline: Api) -> None:
    _refused(await _as(offline))


async def test_the_headers_of_the_router_are_no_identity(offline: Api) -> None:
    headers = {"x-principal-id": "key_k", "x-tenant-id": "ten_a", "x-org-id": "org_a", "authorization": "Bearer x"}
    _refused(await offline.call("GET", "/v1/sessions", headers={**headers, "x-request-id": REQUEST_ID}))


@pytest.mark.parametrize("text", ["", "nonsense", "a.b.c", "eyJhbGciOiJub25lIn0.e30."])
async def test_what_is_no_token_is_refused(offline: Api, text: str) -> None:
    _refused(await _as(offline, text))


async def test_a_token_that_another_key_signed_is_refused(offline: Api) -> None:
    foreign = IdentityTokens(now=offline.clock.now)
    foreign.use(ring_at(offline.now()))
    signed = foreign.for_control(grant(), KEY, frozenset())
    assert signed is not None
    _refused(await _as(offline, signed.text))


async def test_a_token_that_has_expired_is_refused(offline: Api) -> None:
    token = offline.token()
    offline.clock.ms += LIFETIME_MS
    _refused(await _as(offline, token))


async def test_a_token_that_was_made_for_the_router_is_refused(offline: Api) -> None:
    tokens = IdentityTokens(now=offline.clock.now)
    tokens.use(offline.ring or KeyRing())
    signed = tokens.for_router(grant())
    assert signed is not None
    _refused(await _as(offline, signed.text))


async def test_two_tokens_are_refused_even_when_they_are_the_same(offline: Api) -> None:
    _refused(await _as(offline, offline.token(), offline.token()))
    _refused(await _as(offline, offline.token(), "nonsense"))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/sessions"),
        ("GET", "/v1/sessions"),
        ("DELETE", "/v1/sessions"),
        ("DELETE", "/v1/sessions/current"),
        ("DELETE", "/v1/sessions/ses_x"),
    ],
)
async def test_no_endpoint_is_open(offline: Api, method: str, path: str) -> None:
    _refused(await offline.call(method, path, headers={"x-request-id": REQUEST_ID}))


async def test_while_the_keys_are_not_known_it_is_no_fault_of_the_caller(offline: Api) -> None:
    token, offline.ring = offline.token(), None
    answer = await _as(offline, token)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "identity_unavailable")
    assert answer.headers["retry-after"] == "1"
