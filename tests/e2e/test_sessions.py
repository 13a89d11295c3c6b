"""A session from its exchange to its end, as a browser and a program see it through the public listener."""

from typing import Any

import httpx
import pytest

from tests.e2e import callers
from tests.e2e.callers import Caller, code, everywhere
from tests.support.gateway import CORS_ORIGINS, Gateway, until
from tests.support.oidc import OidcIssuer

COOKIE = "__Host-igw_session"


async def _exchange(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/v1/sessions", json=body)


async def _is(client: httpx.AsyncClient, expected: str, **options: Any) -> bool:
    return await code(client, **options) == expected


@pytest.mark.parametrize("kind", ["key", "jwt"])
async def test_a_program_exchanges_uses_lists_and_revokes(gateway: Gateway, issuer: OidcIssuer, kind: str) -> None:
    tenant = await gateway.tenant()
    owner = await (callers.key(gateway, tenant) if kind == "key" else callers.subject(issuer, tenant))
    async with owner.client(gateway) as client:
        made = (await _exchange(client, name="ci")).json()
        other = (await _exchange(client)).json()
    headers = {"authorization": f"Bearer {made['token']}"}
    async with gateway.client(headers=headers) as client:
        assert await code(client) == "200"
        listed = (await client.get("/v1/sessions")).json()
        sessions = {one["id"]: one for one in listed["data"]}
        assert set(sessions) == {made["id"], other["id"]}
        assert (sessions[made["id"]]["current"], sessions[other["id"]]["current"]) == (True, False)
        assert made["token"] not in str(listed)
        assert (await client.delete(f"/v1/sessions/{other['id']}")).status_code == 204
        assert (await client.delete(f"/v1/sessions/{other['id']}")).status_code == 404
        assert (await client.delete("/v1/sessions/current")).status_code == 204
        await everywhere(client, "invalid_session")
    async with gateway.client(headers={"authorization": f"Bearer {other['token']}"}) as client:
        await until(lambda: _is(client, "invalid_session"))


async def test_all_sessions_of_a_principal_end_together_and_nobody_elses(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    one, two = await callers.key(gateway, tenant), await callers.key(gateway, tenant)
    mine = [await callers.session(gateway, one) for _ in range(3)]
    theirs = await callers.session(gateway, two)
    async with theirs.client(gateway) as client:
        listed = (await client.get("/v1/sessions")).json()["data"]
        assert len(listed) == 1
    async with one.client(gateway) as client:
        foreign = listed[0]["id"]
        assert await code(client, "DELETE", f"/v1/sessions/{foreign}") == "unknown_session"
        assert (await client.delete("/v1/sessions")).json() == {"revoked": 3}
    for session in mine:
        async with session.client(gateway) as client:
            await until(lambda client=client: _is(client, "invalid_session"))  # type: ignore[misc]
    async with theirs.client(gateway) as client:
        assert await code(client) == "200"


async def test_a_session_makes_no_session_and_a_certificate_neither(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    session = await callers.session(gateway, await callers.key(gateway, tenant))
    robot = await callers.workload(gateway, tenant)
    for caller in (session, robot):
        async with caller.client(gateway) as client:
            assert await code(client, path="/v1/sessions", json={}) == "session_not_allowed"


async def test_a_session_ends_with_the_key_it_was_made_of(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    owner = Caller(tenant=tenant, headers=tenant.headers, key_id=tenant.key_id)
    session = await callers.session(gateway, owner)
    async with session.client(gateway) as client:
        assert await code(client) == "200"
        await gateway.revoke(tenant)
        await everywhere(client, "invalid_session")


async def test_a_browser_keeps_a_cookie_and_shows_a_token_of_its_own(gateway: Gateway) -> None:
    owner = await callers.key(gateway, await gateway.tenant())
    origin = CORS_ORIGINS[0]
    async with owner.client(gateway) as client:
        answer = await client.post("/v1/sessions", json={"transport": "cookie"}, headers={"origin": origin})
    assert answer.status_code == 201
    assert answer.headers["access-control-allow-origin"] == origin
    assert answer.headers["access-control-allow-credentials"] == "true"
    attributes = {part.strip().lower() for part in answer.headers["set-cookie"].split(";")[1:]}
    assert {"path=/", "secure", "httponly", "samesite=strict"} <= attributes
    assert not any(attribute.startswith("domain") for attribute in attributes)
    made = answer.json()
    assert "token" not in made
    assert answer.headers["cache-control"] == "no-store"
    value = answer.cookies[COOKIE]
    csrf = {"x-csrf-token": made["csrf_token"]}
    async with gateway.client(headers={"cookie": f"theme=dark; {COOKIE}={value}"}) as client:
        assert (await client.get("/v1/models")).status_code == 200, "reading needs no CSRF token"
        assert await code(client) == "invalid_csrf_token"
        assert await code(client, headers={"x-csrf-token": "guess"}) == "invalid_csrf_token"
        assert await code(client, headers=csrf) == "200"
        assert await code(client, "DELETE", "/v1/sessions/current") == "invalid_csrf_token"
        ended = await client.delete("/v1/sessions/current", headers=csrf)
        assert ended.status_code == 204
        assert "max-age=0" in ended.headers["set-cookie"].lower()
        await until(lambda: _is(client, "invalid_session", headers=csrf))
    async with gateway.client(headers={"authorization": f"Bearer {value}"}) as client:
        assert await code(client) == "invalid_session", "a cookie's token counts nowhere else"


async def test_neither_cookie_nor_csrf_token_reaches_the_router(gateway: Gateway) -> None:
    owner = await callers.key(gateway, await gateway.tenant())
    async with owner.client(gateway) as client:
        made = await client.post("/v1/sessions", json={"transport": "cookie"})
    headers = {"cookie": f"{COOKIE}={made.cookies[COOKIE]}", "x-csrf-token": made.json()["csrf_token"]}
    async with gateway.client(headers=headers) as client:
        answer = await client.post("/v1/infer", json=callers.INFER)
    seen = await gateway.seen(answer.headers["x-request-id"])
    assert seen is not None
    assert not {name for name, _ in seen["headers"]} & {"cookie", "x-csrf-token"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"transport": "carrier pigeon"}, "transport"),
        ({"unknown": 1}, "unknown"),
        ({"name": "x" * 101}, "name"),
        ({"idle_seconds": 0}, "idle_seconds"),
        ({"lifetime_seconds": 10**9}, "lifetime_seconds"),
        ({"lifetime_seconds": "long"}, "lifetime_seconds"),
    ],
)
async def test_a_wrong_exchange_names_the_field_and_makes_nothing(
    gateway: Gateway, body: dict[str, Any], param: str
) -> None:
    owner = await callers.key(gateway, await gateway.tenant())
    async with owner.client(gateway) as client:
        answer = await _exchange(client, **body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == param
        assert (await client.get("/v1/sessions")).json()["data"] == []


async def test_redis_holds_nothing_that_opens_a_door(gateway: Gateway) -> None:
    session = await callers.session(gateway, await callers.key(gateway, await gateway.tenant()))
    token = session.headers["authorization"].removeprefix("Bearer ")
    secret = token.split("_")[2]
    dump = await gateway.redis_dump()
    assert secret.encode() not in dump
    assert b"session" in dump
