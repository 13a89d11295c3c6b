"""Is what must be refused refused, with one body that names what is wrong, and does nothing of it reach the Router?"""

import base64
from typing import Any

import httpx
import pytest

from authz import api_key
from tests.support.gateway import MAX_BODY_BYTES, Gateway, until

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
ERROR_FIELDS = {"message", "type", "param", "code", "details", "request_id", "timestamp"}
HTTP2 = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])


def _checked(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == ERROR_FIELDS
    assert error["code"] == code
    assert error["request_id"] == answer.headers["x-request-id"]
    return error


async def _not_seen(gateway: Gateway, answer: httpx.Response) -> None:
    assert await gateway.seen(answer.headers["x-request-id"]) is None


def _mistyped(key: str) -> str:
    return key[:-1] + ("x" if key[-1] != "x" else "y")


@HTTP2
@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_credentials"),
        ({"authorization": ""}, "invalid_api_key"),
        ({"authorization": "Bearer"}, "invalid_api_key"),
        ({"authorization": "Bearer nonsense"}, "invalid_api_key"),
        ({"authorization": f"Bearer {api_key.generate('test').text}"}, "invalid_api_key"),
        ({"authorization": "Basic " + base64.b64encode(b"a:b").decode()}, "invalid_api_key"),
        ({"x-api-key": "nonsense"}, "invalid_api_key"),
    ],
)
async def test_who_proves_nothing_is_refused(
    gateway: Gateway, headers: dict[str, str], code: str, *, http2: bool
) -> None:
    async with gateway.client(http2=http2) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
    _checked(answer, 401, code)
    assert answer.headers["www-authenticate"].startswith("Bearer")
    await _not_seen(gateway, answer)


async def test_a_mistyped_or_truncated_key_is_refused(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with gateway.client() as client:
        for text in (_mistyped(tenant.key), tenant.key[:-1], tenant.key + "a", tenant.key.upper()):
            headers = {"authorization": f"Bearer {text}"}
            _checked(await client.post("/v1/infer", json=CHAT, headers=headers), 401, "invalid_api_key")


@pytest.mark.parametrize("header", ["authorization", "x-api-key", "api-key"])
async def test_a_key_is_taken_from_each_header(gateway: Gateway, header: str) -> None:
    tenant = await gateway.tenant()
    value = f"Bearer {tenant.key}" if header == "authorization" else tenant.key
    async with gateway.client() as client:
        answer = await client.post("/v1/chat/completions", json=CHAT, headers={header: value})
    assert answer.status_code == 200


async def test_two_different_keys_are_refused(gateway: Gateway) -> None:
    one, other = await gateway.tenant(), await gateway.tenant()
    async with gateway.client(one) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT, headers={"x-api-key": other.key})
        _checked(answer, 401, "conflicting_credentials")
        same = await client.post("/v1/chat/completions", json=CHAT, headers={"x-api-key": one.key})
    assert same.status_code == 200


async def test_a_revoked_key_is_refused_by_every_worker(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(tenant) as client:

        async def post() -> int:
            return (await client.post("/v1/chat/completions", json=CHAT)).status_code

        assert [await post() for _ in range(8)] == [200] * 8
        await gateway.revoke(tenant)

        async def refused() -> bool:
            return [await post() for _ in range(8)] == [401] * 8

        await until(refused, seconds=5)


@HTTP2
@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"", 400, "missing_body", None),
        (b"{", 400, "invalid_json", None),
        (b"not json", 400, "invalid_json", None),
        (b"[]", 400, "invalid_body", None),
        (b"{}", 400, "invalid_body", "model"),
        (b'{"model": 1, "messages": [{"role": "user"}]}', 400, "invalid_body", "model"),
        (b'{"model": "", "messages": [{"role": "user"}]}', 400, "invalid_body", "model"),
        (b'{"model": "m"}', 400, "invalid_body", "messages"),
        (b'{"model": "m", "messages": []}', 400, "invalid_body", "messages"),
        (b'{"model": "m", "messages": [{}]}', 400, "invalid_body", "messages[0].role"),
        (b'{"model": "m", "messages": [{"role": "user"}], "stream": 1}', 400, "invalid_body", "stream"),
        (b'{"model": "m", "messages": [{"role": "user"}], "max_tokens": 0}', 400, "invalid_body", "max_tokens"),
    ],
)
async def test_a_bad_body_is_refused_by_name(
    gateway: Gateway, body: bytes, status: int, code: str, param: str | None, *, http2: bool
) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(tenant, http2=http2) as client:
        answer = await client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert _checked(answer, status, code)["param"] == param
    await _not_seen(gateway, answer)
    assert await gateway.rows(tenant) == []


@HTTP2
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [MAX_BODY_BYTES + 1, 6_000_000])
async def test_a_body_over_the_limit_is_refused(gateway: Gateway, *, size: int, chunked: bool, http2: bool) -> None:
    tenant = await gateway.tenant()
    body = b'{"model": "m", "input": "' + b"x" * size + b'"}'

    async def pieces() -> Any:
        for at in range(0, len(body), 65536):
            yield body[at : at + 65536]

    async with gateway.client(tenant, http2=http2) as client:
        content = pieces() if chunked else body
        try:
            answer = await client.post("/v1/infer", content=content, headers={"content-type": "application/json"})
        except (httpx.WriteError, httpx.RemoteProtocolError):
            # Refused while it uploads, a client that reads only afterwards finds the connection closed.
            return
    _checked(answer, 413, "payload_too_large")


@HTTP2
@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", None])
async def test_another_content_type_is_refused(gateway: Gateway, content_type: str | None, *, http2: bool) -> None:
    tenant = await gateway.tenant()
    headers = {"content-type": content_type} if content_type else {}
    async with gateway.client(tenant, http2=http2) as client:
        answer = await client.post("/v1/infer", content=b"{}", headers=headers)
    assert _checked(answer, 415, "unsupported_media_type")["param"] == "content-type"


async def test_a_compressed_body_is_refused(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    headers = {"content-type": "application/json; charset=utf-8", "content-encoding": "gzip"}
    async with gateway.client(tenant) as client:
        answer = await client.post("/v1/infer", content=b"\x1f\x8b", headers=headers)
    _checked(answer, 415, "unsupported_encoding")


@HTTP2
@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/infer/", "/v1/model", "/v2/infer", "/v1/chat/completions/x", "/V1/infer", "/demo/totals"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_unknown_path_does_not_exist(gateway: Gateway, path: str, method: str, *, http2: bool) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(tenant, http2=http2) as client:
        answer = await client.request(method, path)
    _checked(answer, 404, "unknown_path")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_another_method_is_refused(gateway: Gateway, method: str) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(tenant) as client:
        answer = await client.request(method, "/v1/infer")
    _checked(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "path", ["/v1/../v1/infer", "/v1//infer", "/v1/%69nfer", "/v1/infer?model=x", "/v1/infer%2f..%2f..", "/v1%2finfer"]
)
async def test_other_spellings_of_a_path_open_nothing_more(gateway: Gateway, path: str) -> None:
    """Each is normalised to a known path and asks for a key, or is no path at all."""
    async with gateway.client() as client:
        request = client.build_request("POST", gateway.url, json=CHAT)
        request.url = request.url.copy_with(raw_path=path.encode())
        answer = await client.send(request)
    assert answer.status_code in {400, 401, 404}
    assert set(answer.json()["error"]) == ERROR_FIELDS


async def test_envoys_own_refusals_have_the_same_body(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(tenant) as client:
        too_large = await client.post("/v1/infer", json=CHAT, headers={"x-long": "y" * 100_000})
    error = _checked_local(too_large, 431)
    assert error["code"] == "headers_too_large"


def _checked_local(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == ERROR_FIELDS
    return error


async def test_a_router_that_is_away_is_said_so(gateway: Gateway) -> None:
    """The Router breaks off before it answers: Envoy's own reply, in our body."""
    tenant = await gateway.tenant()
    async with gateway.client(tenant) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT, headers={"x-demo-fault": "reset-before-headers"})
    assert _checked(answer, 503, "upstream_unavailable")["type"] == "server_error"
    assert answer.headers["retry-after"] == "1"
    record = await gateway.row(answer.headers["x-request-id"])
    assert (record.ending.state, record.ending.cause) == ("failed", "upstream_reset")
    assert (record.ending.input_tokens, record.ending.output_tokens) == (0, 0)


async def test_the_routers_own_error_passes_unchanged(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(tenant) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT, headers={"x-demo-status": "500"})
    assert answer.status_code == 500
    assert "timestamp" not in answer.json()["error"]
    record = await gateway.row(answer.headers["x-request-id"])
    assert (record.ending.state, record.ending.cause, record.ending.status) == ("failed", "upstream_error", 500)
