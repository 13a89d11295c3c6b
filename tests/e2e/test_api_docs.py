"""The description of the API and its page, behind Envoy, for anybody."""

import re

import httpx
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.support.gateway import Gateway


async def test_the_description_is_public_and_valid(gateway: Gateway) -> None:
    async with gateway.client() as client:
        answer = await client.get("/openapi.json")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    OpenAPIV31SpecValidator(answer.json()).validate()


async def test_who_shows_a_credential_is_shown_the_same(gateway: Gateway) -> None:
    async with gateway.client(await gateway.tenant()) as client, gateway.client() as nobody:
        assert (await client.get("/openapi.json")).content == (await nobody.get("/openapi.json")).content


async def test_the_page_and_all_that_it_loads_are_public_and_whole(gateway: Gateway) -> None:
    async with gateway.client() as client:
        page = await client.get("/docs")
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "script-src 'self'" in page.headers["content-security-policy"]
        loaded = re.findall(r'(?:src|href)="(/docs/[^"]+)"', page.text)
        answers: list[httpx.Response] = [await client.get(path) for path in loaded]
    assert len(loaded) == 4
    for answer in answers:
        assert answer.status_code == 200, answer.url
        assert len(answer.content) == int(answer.headers["content-length"]) > 0


async def test_nothing_else_is_there(gateway: Gateway) -> None:
    async with gateway.client() as client:
        for path in ("/docs/index.html", "/docs/a/b", "/redoc", "/openapi.yaml"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_path"), path
