"""May the pages of the origins that are set call the gateway, and no other page?"""

from typing import Any

import httpx
import pytest

from tests.support.gateway import CORS_ORIGINS, MAX_BODY_BYTES, Gateway, Tenant, streaming

HTTP2 = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
ORIGIN = CORS_ORIGINS[0]
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
FOREIGN = [
    *("https://evil.example", "http://app.example", "https://app.example:8443", "https://app.example.evil.example"),
    *("https://sub.app.example", "https://evilapp.example", "https://APP.example", "https://app.example/", "null"),
]


def _preflight(origin: str, method: str = "POST") -> dict[str, str]:
    asked = "authorization,content-type,x-api-key,x-csrf-token,x-stainless-os"
    return {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": asked,
    }


def _of_cors(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control-")}


def _readable(answer: httpx.Response, origin: str = ORIGIN) -> None:
    """A page of the origin may read the answer, sent with its cookie, and what the SDKs look for in it."""
    assert answer.headers["access-control-allow-origin"] == origin
    assert answer.headers["access-control-allow-credentials"] == "true"
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "retry-after", "retry-after-ms"} <= set(exposed)


@HTTP2
@pytest.mark.parametrize("origin", CORS_ORIGINS)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", f"/v1/{path}") for path in ("chat/completions", "infer", "messages", "embeddings", "sessions")),
        *(("GET", path) for path in ("/v1/models", "/v1/sessions", "/.well-known/jwks.json")),
        *(("DELETE", path) for path in ("/v1/sessions", "/v1/sessions/one")),
    ],
)
async def test_a_preflight_is_answered_without_a_credential(
    gateway: Gateway, method: str, path: str, origin: str, *, http2: bool
) -> None:
    async with gateway.client(http2=http2) as client:
        answer = await client.options(path, headers=_preflight(origin, method))
    assert (answer.status_code, answer.content) == (200, b"")
    _readable(answer, origin)
    assert method in answer.headers["access-control-allow-methods"].split(", ")
    asked = set(_preflight(origin)["access-control-request-headers"].split(","))
    assert asked <= set(answer.headers["access-control-allow-headers"].split(", "))
    assert answer.headers["access-control-max-age"] == "600"


@HTTP2
@pytest.mark.parametrize("origin", FOREIGN)
async def test_a_page_of_another_origin_may_neither_ask_nor_read(gateway: Gateway, origin: str, *, http2: bool) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(tenant, http2=http2) as client:
        preflight = await client.options("/v1/chat/completions", headers=_preflight(origin))
        answer = await client.post("/v1/chat/completions", json=CHAT, headers={"origin": origin})
    async with gateway.client(http2=http2) as client:
        refused = await client.post("/v1/chat/completions", json=CHAT, headers={"origin": origin})
    assert preflight.status_code >= 400
    assert (answer.status_code, refused.status_code) == (200, 401)
    assert [_of_cors(one) for one in (preflight, answer, refused)] == [{}, {}, {}]


async def test_a_caller_without_an_origin_hears_nothing_of_it(gateway: Gateway) -> None:
    async with gateway.client(await gateway.tenant()) as client:
        assert _of_cors(await client.post("/v1/chat/completions", json=CHAT)) == {}


@HTTP2
async def test_a_page_reads_its_answer(gateway: Gateway, *, http2: bool) -> None:
    async with gateway.client(await gateway.tenant(), http2=http2) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT, headers={"origin": ORIGIN})
        async with streaming(client, {}, origin=ORIGIN) as (stream, lines):
            read = [line async for line in lines]
    assert answer.status_code == stream.status_code == 200
    assert read[-1] == "[DONE]"
    _readable(answer)
    _readable(stream)


def _request(tenant: Tenant, **changes: Any) -> dict[str, Any]:
    headers = {"origin": ORIGIN, **tenant.headers, **changes.pop("headers", {})}
    return {"method": "POST", "url": "/v1/chat/completions", "json": CHAT, "headers": headers, **changes}


@HTTP2
@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"headers": {"authorization": ""}}, 401),
        ({"headers": {"authorization": "Bearer nonsense"}}, 401),
        ({"method": "PUT"}, 405),
        ({"method": "OPTIONS"}, 405),
        ({"json": {}}, 400),
        ({"headers": {"content-type": "text/plain"}}, 415),
        # Envoy's own.
        ({"json": {"model": "x" * MAX_BODY_BYTES}}, 413),
        ({"headers": {"x-demo-fault": "reset-before-headers"}}, 503),
    ],
    ids=["no-key", "wrong-key", "method", "no-preflight", "body", "media-type", "too-large", "router-away"],
)
async def test_a_page_reads_why_it_was_refused(
    gateway: Gateway, changes: dict[str, Any], status: int, *, http2: bool
) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(http2=http2) as client:
        try:
            answer = await client.request(**_request(tenant, **changes))
        except (httpx.WriteError, httpx.RemoteProtocolError):
            # Refused while it uploads, a client that reads only afterwards finds the connection closed.
            assert status == 413
            return
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]
    _readable(answer)


async def test_a_cache_keeps_an_answer_for_its_origin_alone(gateway: Gateway) -> None:
    async with gateway.client() as client:
        answer = await client.get("/.well-known/jwks.json", headers={"origin": ORIGIN})
    assert "origin" in answer.headers["vary"].lower().replace(" ", "").split(",")
    _readable(answer)
