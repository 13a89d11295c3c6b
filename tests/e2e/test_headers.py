"""Does the Router learn who calls from the gateway alone, and never see a credential?"""

import socket
import ssl

import pytest

from tests.support.gateway import Gateway

INFER = {"model": "m", "input": "hello"}
OWNED = [
    "x-org-id",
    "x-tenant-id",
    "x-tenant-plan",
    "x-principal-id",
    "x-principal-kind",
    "x-scopes",
    "x-routing-policy",
    "x-internal-api-key",
    "x-gateway-metering",
    "x-gateway-identity",
    "x-envoy-original-path",
]
CREDENTIALS = ["authorization", "proxy-authorization", "x-api-key", "api-key", "cookie"]


def _raw(gateway: Gateway, lines: list[str], body: bytes = b'{"model":"m","input":"hello"}') -> bytes:
    """Send an HTTP/1.1 request byte for byte; no client library tidies it up."""
    head = ["POST /v1/infer HTTP/1.1", "host: localhost", "content-type: application/json", *lines]
    head += [f"content-length: {len(body)}", "connection: close", "", ""]
    with (
        socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as plain,
        gateway.tls.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall("\r\n".join(head).encode("latin-1") + body)
        answer = b""
        while piece := _received(connection):
            answer += piece
    return answer


def _received(connection: ssl.SSLSocket) -> bytes:
    try:
        return connection.recv(65536)
    except ssl.SSLEOFError:
        return b""


def _request_id(answer: bytes) -> str:
    head = answer.partition(b"\r\n\r\n")[0].decode()
    return next(line.partition(": ")[2] for line in head.splitlines() if line.startswith("x-request-id"))


@pytest.mark.parametrize("name", OWNED)
@pytest.mark.parametrize("spelling", ["plain", "upper", "title", "underscore", "twice", "padded"])
async def test_a_clients_copy_of_our_header_never_reaches_the_router(
    gateway: Gateway, name: str, spelling: str
) -> None:
    tenant = await gateway.tenant()
    lines = {
        "plain": [f"{name}: evil"],
        "upper": [f"{name.upper()}: evil"],
        "title": [f"{name.title()}: evil"],
        "underscore": [f"{name.replace('-', '_')}: evil"],
        "twice": [f"{name}: evil", f"{name}: evil, evil"],
        "padded": [f"{name}:\t evil \t"],
    }[spelling]
    answer = _raw(gateway, [f"authorization: Bearer {tenant.key}", *lines])
    assert answer.startswith(b"HTTP/1.1 200"), answer
    seen = await gateway.seen(_request_id(answer))
    assert seen is not None
    values = [value for key, value in seen["headers"] if key.replace("_", "-") == name]
    assert "evil" not in str(seen["headers"])
    assert len(values) <= 1


async def test_the_router_gets_the_real_tenant(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(tenant, http2=True) as client:
        answer = await client.post("/v1/infer", json=INFER)
    seen = await gateway.seen(answer.headers["x-request-id"])
    assert seen is not None
    headers = dict(seen["headers"])
    assert headers["x-tenant-id"] == tenant.id
    assert headers["x-principal-id"] == f"key_{tenant.key_id}"
    assert headers["x-principal-kind"] == "api_key"
    assert headers["x-tenant-plan"] == tenant.plan
    assert headers["x-request-id"] == answer.headers["x-request-id"]
    assert headers["x-org-id"].startswith("org_")
    assert headers["x-scopes"]


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
async def test_no_credential_reaches_the_router(gateway: Gateway, *, http2: bool) -> None:
    tenant = await gateway.tenant()
    sent = {
        "x-api-key": tenant.key,
        "api-key": tenant.key,
        "cookie": "session=abc",
        "proxy-authorization": "Basic eDp5",
    }
    async with gateway.client(tenant, http2=http2) as client:
        answer = await client.post("/v1/infer", json=INFER, headers=sent)
    assert answer.status_code == 200
    seen = await gateway.seen(answer.headers["x-request-id"])
    assert seen is not None
    assert not {key for key, _ in seen["headers"]} & set(CREDENTIALS)
    assert tenant.key not in str(seen)


async def test_the_request_id_is_ours_not_the_clients(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(tenant) as client:
        answer = await client.post("/v1/infer", json=INFER, headers={"x-request-id": "chosen-by-the-client"})
    assert answer.headers["x-request-id"] != "chosen-by-the-client"
    seen = await gateway.seen(answer.headers["x-request-id"])
    assert seen is not None
    assert "chosen-by-the-client" not in str(seen["headers"])


async def test_what_is_the_clients_own_passes(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with gateway.client(tenant) as client:
        answer = await client.post("/v1/infer", json=INFER, headers={"traceparent": trace, "x-custom": "yes"})
    seen = await gateway.seen(answer.headers["x-request-id"])
    assert seen is not None
    headers = dict(seen["headers"])
    assert (headers["traceparent"], headers["x-custom"]) == (trace, "yes")
