"""Every route of the table, and every way not to be let in on it, through the public listener."""

import pytest

from authz.routes import ROUTES, Route, Upstream
from authz.scope import Scope
from tests.e2e import callers
from tests.e2e.callers import code, everywhere
from tests.support.gateway import Gateway

GUARDED = [route for route in ROUTES if not route.public]
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD")


def _name(route: Route) -> str:
    return f"{route.method} {route.path}"


def _path(route: Route) -> str:
    return route.path.replace("{id}", "ses_000000000000").replace("{asset}", "swagger-ui.css")


@pytest.mark.parametrize("route", GUARDED, ids=_name)
async def test_nobody_passes_without_a_credential(gateway: Gateway, route: Route) -> None:
    async with gateway.client() as client:
        assert await code(client, route.method, _path(route)) == "missing_credentials"
        wrong = {"authorization": "Bearer nonsense"}
        assert await code(client, route.method, _path(route), headers=wrong) == "invalid_api_key"


@pytest.mark.parametrize("route", [route for route in GUARDED if route.scope], ids=_name)
async def test_nobody_passes_without_the_scope(gateway: Gateway, route: Route) -> None:
    others = tuple(scope.value for scope in Scope if scope not in {route.scope, Scope.ADMIN})
    lacking = await callers.key(gateway, await gateway.tenant(), scopes=others)
    async with lacking.client(gateway) as client:
        answer = await client.request(route.method, _path(route), json=callers.INFER)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "insufficient_scope"
    assert answer.json()["error"]["details"] == {"scope": route.scope}
    assert f'scope="{route.scope}"' in answer.headers["www-authenticate"]


@pytest.mark.parametrize("level", ["organization", "tenant", "principal"])
@pytest.mark.parametrize("route", GUARDED, ids=_name)
async def test_nobody_passes_who_is_suspended_at_any_level(gateway: Gateway, route: Route, level: str) -> None:
    caller = await callers.key(gateway, await gateway.tenant(), scopes=("admin",))
    async with caller.client(gateway) as client:
        warm = await client.get("/v1/models")
        assert warm.status_code == 200
        await caller.suspend(gateway, level)
        await everywhere(client, f"{level}_suspended", route.method, _path(route))


@pytest.mark.parametrize("path", sorted({_path(route) for route in ROUTES}))
async def test_another_method_is_refused(gateway: Gateway, path: str) -> None:
    taken = {route.method for route in ROUTES if _path(route) == path}
    caller = await callers.key(gateway, await gateway.tenant(), scopes=("admin",))
    async with caller.client(gateway) as client:
        for method in set(METHODS) - taken:
            answer = await client.request(method, path)
            if next(route for route in ROUTES if _path(route) == path).upstream is Upstream.ENVOY:
                continue  # Envoy's own answer is the same for every method, and tells nothing
            assert answer.status_code == 405, (method, path)
            assert set(answer.headers["allow"].split(", ")) == taken


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/", "/v1/infer/", "/v1/sessions/a/b", "/v2/infer", "/metrics", "/readyz", "/demo/seen/x"],
)
async def test_what_is_not_in_the_table_does_not_exist(gateway: Gateway, path: str) -> None:
    caller = await callers.key(gateway, await gateway.tenant(), scopes=("admin",))
    async with caller.client(gateway) as client:
        for method in ("GET", "POST"):
            assert await code(client, method, path) == "unknown_path"
    async with gateway.client() as client:
        assert await code(client, "POST", path) == "unknown_path"


async def test_public_paths_need_nobody(gateway: Gateway) -> None:
    async with gateway.client() as client:
        for route in ROUTES:
            if route.public:
                assert (await client.request(route.method, _path(route))).status_code == 200
