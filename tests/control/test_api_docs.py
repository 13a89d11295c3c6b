"""The description of the API: valid, whole, true, and shown by a page that needs nothing from elsewhere."""

import re
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from authz.refusal import Reason
from authz.routes import ROUTES, Route, Upstream, at
from control.request_body import RequestStatus
from tests.control.conftest import Api

# What a browser reads, or what stays open, is no call that OpenAPI can describe.
UNDESCRIBED = {"/openapi.json", "/docs", "/docs/{asset}", "/ws/inference/{id}", "/healthz"}
CALLS = [route for route in ROUTES if route.path not in UNDESCRIBED]


@pytest.fixture
async def description(offline: Api) -> dict[str, Any]:
    answer = await offline.call("GET", "/openapi.json", headers={})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()
    return found


def operations(description: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, of_path in description["paths"].items()
        for method, operation in of_path.items()
    ]


def route_of(path: str, method: str) -> Route:
    found = [route for route in at(re.sub(r"[{}]", "", path)) if route.method == method.upper()]
    assert len(found) == 1, (method, path)
    return found[0]


async def test_it_is_valid(description: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(description).validate()
    assert description["openapi"].startswith("3.1")


async def test_it_has_every_call_that_the_gateway_serves_and_no_other(description: dict[str, Any]) -> None:
    described = {route_of(path, method) for path, method, _ in operations(description)}
    assert {(route.method, route.path) for route in described} == {(route.method, route.path) for route in CALLS}


async def test_every_call_says_what_it_is_for_and_to_what_it_belongs(description: dict[str, Any]) -> None:
    tags = {tag["name"] for tag in description["tags"]}
    for path, method, operation in operations(description):
        assert operation["summary"], (method, path)
        assert set(operation["tags"]) <= tags, (method, path)
        assert any(status.startswith("2") for status in operation["responses"]), (method, path)
    names = [operation["operationId"] for *_, operation in operations(description)]
    assert len(set(names)) == len(names)


async def test_who_may_call_is_what_the_table_of_routes_says(description: dict[str, Any]) -> None:
    schemes = set(description["components"]["securitySchemes"])
    for path, method, operation in operations(description):
        route = route_of(path, method)
        needed = [set(each) for each in operation["security"]]
        assert (needed == []) is route.public, (method, path)
        assert all(names <= schemes for names in needed)
        assert ({"sessionCookie", "csrfToken"} in needed) is (not route.public and method != "get")
        scopes = {scope for each in operation["security"] for of_scheme in each.values() for scope in of_scheme}
        assert scopes == ({route.scope.value} if route.scope else set()), (method, path)


async def test_every_error_is_described_in_the_body_that_it_has(description: dict[str, Any]) -> None:
    answers = description["components"]["responses"]
    for path, method, operation in operations(description):
        errors = {status: one for status, one in operation["responses"].items() if status >= "400"}
        assert {"500", "503"} <= set(errors)
        assert ("401" in errors) is not route_of(path, method).public
        for status, error in errors.items():
            whole = answers[error["$ref"].rpartition("/")[2]] if "$ref" in error else error
            [schema] = [one["schema"]["$ref"] for one in whole["content"].values()]
            expected = "AnthropicError" if path == "/v1/messages" else "Error"
            assert schema == f"#/components/schemas/{expected}", (method, path, status)
    error = description["components"]["schemas"]["Error"]["properties"]["error"]
    assert set(error["properties"]["code"]["enum"]) == {reason.code for reason in Reason}
    assert "HTTPValidationError" not in description["components"]["schemas"]


async def test_the_body_of_an_error_is_as_described(offline: Api, description: dict[str, Any]) -> None:
    body = (await offline.call("GET", "/v1/requests", headers={})).json()
    error = description["components"]["schemas"]["Error"]["properties"]["error"]
    assert set(body["error"]) == set(error["properties"]) == set(error["required"])


async def test_every_path_of_this_api_is_routed_to_it() -> None:
    assert all(route.public for route in ROUTES if route.path in {"/openapi.json", "/docs", "/docs/{asset}"})
    assert {route.upstream for route in CALLS} == {Upstream.ROUTER, Upstream.CONTROL}


class Links(HTMLParser):
    """What a page loads, and what stands in it."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.inline: list[str] = []
        self._open = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag
        found = dict(attrs)
        self.loaded += [found[name] or "" for name in ("src", "href") if name in found and tag != "a"]
        self.inline += [name for name in found if name.startswith("on") or name == "style"]

    def handle_data(self, data: str) -> None:
        if self._open in {"script", "style"} and data.strip():
            self.inline.append(data)


async def page(api: Api) -> httpx.Response:
    answer = await api.call("GET", "/docs", headers={})
    assert answer.status_code == 200
    return answer


async def test_the_page_loads_only_what_the_gateway_serves(offline: Api) -> None:
    links = Links()
    links.feed((await page(offline)).text)
    assert links.inline == []
    assert len(links.loaded) == 4
    media_types = set()
    for path in links.loaded:
        assert re.fullmatch(r"/docs/[\w.-]+", path)
        answer = await offline.call("GET", path, headers={})
        assert (answer.status_code, answer.headers["x-content-type-options"]) == (200, "nosniff"), path
        assert answer.content
        media_types.add(answer.headers["content-type"].partition(";")[0])
    assert media_types == {"text/javascript", "text/css", "image/png"}
    start = (await offline.call("GET", "/docs/start.js", headers={})).text
    assert 'url: "/openapi.json"' in start
    assert "validatorUrl: null" in start


async def test_the_page_may_load_and_send_nothing_elsewhere(offline: Api) -> None:
    policy = (await page(offline)).headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in policy
    assert "http" not in policy
    css = (await offline.call("GET", "/docs/swagger-ui.css", headers={})).text
    assert not re.search(r"url\(\s*(?![\"']?(data:|#))", css), "the style sheet loads nothing"


@pytest.mark.parametrize("name", ["nothing.js", "__init__.py", "..", "%2e%2e%2fapi_docs.py", "index.html"])
async def test_nothing_else_of_the_packages_is_served(offline: Api, name: str) -> None:
    answer = await offline.call("GET", f"/docs/{name}", headers={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_path")


async def test_an_example_is_of_the_shape_described(description: dict[str, Any]) -> None:
    answer = description["paths"]["/v1/requests/{request_id}"]["get"]["responses"]["200"]["content"]["application/json"]
    schema = description["components"]["schemas"]["RequestStatus"]
    assert answer["schema"] == {"$ref": "#/components/schemas/RequestStatus"}
    assert set(answer["example"]) == set(schema["properties"]) == set(schema["required"])
    RequestStatus.model_validate(answer["example"])
