"""A request with an idempotency key is made once: what its retries are told, through Envoy, with both meterings."""

import asyncio
from collections import Counter
from typing import Any

import asyncpg
import httpx
import httpx2
import pytest
from openai import AsyncOpenAI, ConflictError

from authz.principal import Metering
from quota.limit import concurrent_requests
from tests.e2e import owners
from tests.e2e.bodies import CHAT, EMBEDDINGS, INFER, MESSAGES, body
from tests.e2e.running import Running, running
from tests.support.gateway import ROOMY, Gateway, Tenant, until

METERING = pytest.mark.parametrize("metering", list(Metering))
HTTP = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
KEY = {"idempotency-key": '"8e03978e-40d5-43dd-bc93-6894a57f9324"'}
STREAM = body(CHAT, stream=True)
SLOW = {"x-demo-delay-ms": "1500"}
TRICKLE = {"x-demo-events": "2000", "x-demo-interval-ms": "20"}
RETRIES = 50


async def post(client: httpx.AsyncClient, path: str = INFER, json: Any = None, **headers: str) -> httpx.Response:
    renamed = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.post(path, json=body(path) if json is None else json, headers={**KEY, **renamed})


def code(answer: httpx.Response) -> str:
    """Why a request was refused; its status when it was not, with a word for an answer given again."""
    if answer.is_success:
        return f"{answer.status_code} again" if "idempotent-replayed" in answer.headers else str(answer.status_code)
    return str(answer.json()["error"]["code"])


def request_id(answer: httpx.Response) -> str:
    return str(answer.headers["x-request-id"])


async def upstream(gateway: Gateway, answers: list[httpx.Response]) -> list[str]:
    """The requests of these answers that the Router saw."""
    async with httpx.AsyncClient(base_url=gateway.router_url) as router:
        seen = [await router.get(f"/demo/seen/{request_id(answer)}") for answer in answers]
    return [request_id(answer) for answer, one in zip(answers, seen, strict=True) if one.is_success]


async def settled(gateway: Gateway, tenant: Tenant, count: int = 1) -> list[dict[str, Any]]:
    """The tenant's rows when there are so many, and nothing of it runs."""

    async def found() -> list[dict[str, Any]] | None:
        rows = await gateway.rows(tenant)
        return rows if len(rows) >= count and await gateway.slots_held(tenant) == 0 else None

    rows = await until(found)
    assert rows is not None
    assert len(rows) == count
    return rows


async def claimed(gateway: Gateway, tenant: Tenant) -> str:
    """The request that holds the tenant's key, when one does."""
    connection = await asyncpg.connect(gateway.dsn)
    try:

        async def held() -> str | None:
            found = await connection.fetchval("SELECT request_id FROM idempotency_keys WHERE tenant_id = $1", tenant.id)
            return None if found is None else str(found)

        found = await until(held)
    finally:
        await connection.close()
    return str(found)


async def change(gateway: Gateway, tenant: Tenant, assignment: str) -> None:
    """Change the row of the tenant's key: what passes only with time, or when a process dies at the wrong moment."""
    connection = await asyncpg.connect(gateway.dsn)
    try:
        statement = f"UPDATE idempotency_keys SET {assignment} WHERE tenant_id = $1"  # noqa: S608 - a test's own words
        assert await connection.execute(statement, tenant.id) == "UPDATE 1"
    finally:
        await connection.close()


@METERING
@HTTP
@pytest.mark.parametrize("path", [INFER, CHAT, MESSAGES, EMBEDDINGS])
async def test_a_json_answer_is_given_again(gateway: Gateway, path: str, metering: Metering, *, http2: bool) -> None:
    tenant = await gateway.tenant(metering=metering)
    async with gateway.client(tenant, http2=http2) as client:
        first, again = [await post(client, path, body(path, max_tokens=50)) for _ in range(2)]
    assert [code(first), code(again)] == ["200", "200 again"]
    assert again.content == first.content
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["content-length"] == str(len(first.content))
    assert again.headers["x-gateway-original-request-id"] == request_id(first) != request_id(again)
    assert again.headers.get("request-id") == (request_id(again) if path == MESSAGES else None)
    assert await upstream(gateway, [first, again]) == [request_id(first)]
    [row] = await settled(gateway, tenant)
    assert (row["request_id"], row["state"], row["metering"]) == (request_id(first), "completed", metering.value)
    assert row["usage_source"] == "exact"


@METERING
@HTTP
async def test_of_a_stream_that_is_done_a_retry_is_told_where_to_look(
    gateway: Gateway, metering: Metering, *, http2: bool
) -> None:
    tenant = await gateway.tenant(metering=metering)
    async with gateway.client(tenant, http2=http2) as client:
        first = await post(client, CHAT, STREAM)
        assert first.text.endswith("data: [DONE]\n\n")
        [row] = await settled(gateway, tenant)
        again = await post(client, CHAT, STREAM)
        assert (code(again), again.status_code) == ("idempotent_result_elsewhere", 409)
        url = f"/v1/requests/{request_id(first)}"
        assert again.json()["error"]["details"] == {"request_id": request_id(first), "url": url}
        assert (again.headers["location"], again.headers["x-should-retry"]) == (url, "false")
        found = await client.get(again.headers["location"])
    assert (found.status_code, found.json()["id"]) == (200, request_id(first))
    assert (row["state"], row["usage_source"], row["events"]) == ("completed", "exact", row["events"])
    assert await upstream(gateway, [first, again]) == [request_id(first)]


@METERING
async def test_of_a_large_answer_too(gateway: Gateway, metering: Metering) -> None:
    tenant = await gateway.tenant(metering=metering)
    large = {"x_demo_events": "60", "x_demo_padding": "6000"}
    async with gateway.client(tenant) as client:
        first = await post(client, **large)
        assert len(first.content) > 256 * 1024
        await settled(gateway, tenant)
        again = await post(client, **large)
    assert code(again) == "idempotent_result_elsewhere"
    assert await upstream(gateway, [first, again]) == [request_id(first)]


@METERING
@pytest.mark.parametrize(("path", "request_body"), [(INFER, None), (CHAT, STREAM)], ids=["json", "stream"])
async def test_a_retry_while_the_first_runs_is_told_not_to_come_again(
    gateway: Gateway, metering: Metering, path: str, request_body: Any
) -> None:
    tenant = await gateway.tenant(metering=metering)
    async with gateway.client(tenant) as client:
        first = asyncio.create_task(post(client, path, request_body, **{"x-demo-delay-ms": "1000"}))
        holder = await claimed(gateway, tenant)
        again = await post(client, path, request_body)
        other = await post(client, path, body(path, "another"))
        answer = await first
    assert (code(again), again.status_code, again.headers["x-should-retry"]) == ("idempotency_key_in_use", 409, "false")
    assert again.json()["error"]["details"] == {"request_id": holder}
    assert (code(other), other.status_code, other.headers["x-should-retry"]) == ("idempotency_key_reused", 422, "false")
    assert (answer.status_code, request_id(answer)) == (200, holder)
    assert await upstream(gateway, [answer, again, other]) == [holder]
    assert len(await settled(gateway, tenant)) == 1


@METERING
async def test_a_key_means_another_request_with_another_body_or_path(gateway: Gateway, metering: Metering) -> None:
    async with gateway.client(await gateway.tenant(metering=metering)) as client:
        assert code(await post(client)) == "200"
        other = body(INFER, "another")
        assert [code(await post(client, INFER, other)), code(await post(client, CHAT))] == [
            "idempotency_key_reused"
        ] * 2
        assert code(await post(client)) == "200 again"


@METERING
async def test_keys_of_other_principals_and_tenants_are_other_keys(gateway: Gateway, metering: Metering) -> None:
    tenant = await gateway.tenant(metering=metering)
    async with asyncpg.create_pool(gateway.dsn, min_size=1) as pool:
        colleague = await owners.another_key(pool, tenant)
    answers = []
    for number, one in enumerate((tenant, colleague, await gateway.tenant(metering=metering))):
        async with gateway.client(one) as client:
            answers.append(await post(client, INFER, body(INFER, f"m{number}")))
    assert [code(answer) for answer in answers] == ["200"] * 3
    assert len(await upstream(gateway, answers)) == 3


@pytest.mark.parametrize("value", ["", '""', '"a', "a b", "a,b", '"a","b"', "x" * 256, '"a";b=1'])
async def test_what_is_no_key_is_refused_and_the_header_named(gateway: Gateway, value: str) -> None:
    async with gateway.client(await gateway.tenant()) as client:
        answer = await post(client, **{"idempotency-key": value})
        assert (answer.status_code, code(answer)) == (400, "invalid_idempotency_key")
        assert answer.json()["error"]["param"] == "idempotency-key"
        # It means nothing where nothing is made.
        assert (await client.get("/v1/models", headers={"idempotency-key": value})).status_code == 200


async def test_a_header_that_is_sent_twice_is_refused(gateway: Gateway) -> None:
    async with gateway.client(await gateway.tenant()) as client:
        for twice in (("a", "b"), ('"a"', '"b"')):
            headers = [("idempotency-key", value) for value in twice]
            answer = await client.post(INFER, json=body(INFER), headers=headers)
            assert code(answer) == "invalid_idempotency_key"


async def test_quotes_are_no_part_of_a_key(gateway: Gateway) -> None:
    async with gateway.client(await gateway.tenant()) as client:
        codes = [code(await post(client, **{"idempotency-key": value})) for value in ('"a"', "a", "b")]
    assert codes == ["200", "200 again", "200"]


async def test_the_router_gets_the_key_as_the_client_wrote_it(gateway: Gateway) -> None:
    async with gateway.client(await gateway.tenant()) as client:
        seen = await gateway.seen(request_id(await post(client)))
    assert seen is not None
    headers = dict(seen["headers"])
    assert headers["idempotency-key"] == KEY["idempotency-key"]
    assert "x-gateway-metering" not in headers


@METERING
async def test_what_is_refused_leaves_the_key_free(gateway: Gateway, metering: Metering) -> None:
    tenant = await gateway.tenant(*ROOMY[:2], concurrent_requests(1), metering=metering)
    async with gateway.client(tenant) as client:
        async with running(client, headers=TRICKLE) as request:
            await request.seen(1)
            assert code(await post(client)) == "rate_limit_exceeded"
            assert code(await post(client, INFER, {"model": "m"})) == "invalid_body"

        async def runs() -> bool:
            # Another body: nothing of the refused request is left.
            return code(await post(client, INFER, body(INFER, "another"))) == "200"

        await until(runs)


@METERING
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("failing", [{"x-demo-status": "503"}, {"x-demo-fault": "reset-before-headers"}], ids=str)
async def test_what_failed_may_be_made_again(
    gateway: Gateway, metering: Metering, failing: dict[str, str], *, stream: bool
) -> None:
    tenant = await gateway.tenant(metering=metering)
    wanted = body(CHAT, stream=stream)
    async with gateway.client(tenant) as client:
        first = await post(client, CHAT, wanted, **failing)
        assert first.status_code == 503
        await settled(gateway, tenant)
        again = await post(client, CHAT, wanted)
        assert code(again) == "200"
    rows = await settled(gateway, tenant, 2)
    assert [row["state"] for row in rows] == ["failed", "completed"]
    assert rows[1]["request_id"] == request_id(again)


async def left(request: Running) -> None:
    """The client goes away."""
    request.task.cancel()
    await asyncio.gather(request.task, return_exceptions=True)


@METERING
async def test_a_client_that_left_a_stream_may_make_it_again(gateway: Gateway, metering: Metering) -> None:
    tenant = await gateway.tenant(metering=metering)
    async with gateway.client(tenant) as client:
        async with running(client, path=CHAT, body=STREAM, headers=TRICKLE | KEY) as request:
            await request.seen(2)
            await left(request)
        await settled(gateway, tenant)
        again = await post(client, CHAT, STREAM)
        assert code(again) == "200"
    rows = await settled(gateway, tenant, 2)
    assert [row["cause"] for row in rows] == ["client_disconnect", "finished"]


@METERING
async def test_a_client_that_left_before_the_answer_may_ask_again(gateway: Gateway, metering: Metering) -> None:
    tenant = await gateway.tenant(metering=metering)
    async with gateway.client(tenant) as client:
        async with running(client, path=INFER, body=body(INFER), headers=SLOW | KEY) as request:
            holder = await claimed(gateway, tenant)

            async def at_the_router() -> bool:
                return await gateway.seen(holder) is not None

            await until(at_the_router)
            await left(request)
        await settled(gateway, tenant)
        assert code(await post(client)) == "200"
        assert code(await post(client)) == "200 again"
    rows = await settled(gateway, tenant, 2)
    assert [row["cause"] for row in rows] == ["client_disconnect", "finished"]


@METERING
async def test_a_stream_with_a_key_can_be_cancelled_and_made_again(gateway: Gateway, metering: Metering) -> None:
    """So its ext_proc stream stays open behind its headers, which Process has seen."""
    tenant = await gateway.tenant(metering=metering)
    async with gateway.client(tenant) as client:
        async with running(client, path=CHAT, body=STREAM, headers=TRICKLE | KEY) as request:
            await request.seen(2)
            answer = await client.post(f"/v1/requests/{request.request_id}/cancel")
            assert answer.status_code == 200
            await request.ended()
        await settled(gateway, tenant)
        assert code(await post(client, CHAT, STREAM)) == "200"
    assert [row["cause"] for row in await settled(gateway, tenant, 2)] == ["client_cancel", "finished"]


@METERING
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_storm_of_retries_makes_one_request(gateway: Gateway, metering: Metering, *, stream: bool) -> None:
    tenant = await gateway.tenant(metering=metering)
    wanted = body(CHAT, stream=stream)
    async with gateway.client(tenant) as client:

        async def retry(number: int) -> httpx.Response:
            await asyncio.sleep(0.02 * number)  # some while it runs, some when it is done
            return await post(client, CHAT, wanted, **{"x-demo-delay-ms": "300"})

        answers = await asyncio.gather(*map(retry, range(RETRIES)))
    codes = Counter(map(code, answers))
    assert codes["200"] == 1
    assert set(codes) <= {"200", "200 again", "idempotency_key_in_use", "idempotent_result_elsewhere"}
    [first] = [answer for answer in answers if code(answer) == "200"]
    assert {answer.content for answer in answers if answer.is_success} == {first.content}
    assert codes["200 again"] > 0 or stream
    assert await upstream(gateway, answers) == [request_id(first)]
    [row] = await settled(gateway, tenant)
    assert (row["request_id"], row["state"]) == (request_id(first), "completed")


@METERING
async def test_a_claim_of_which_nothing_came_passes_to_one_retry(gateway: Gateway, metering: Metering) -> None:
    """As if the worker had died between its claim and its admission."""
    tenant = await gateway.tenant(metering=metering)
    async with gateway.client(tenant) as client:
        assert code(await post(client)) == "200"
        await settled(gateway, tenant)
        lost = "request_id = gen_random_uuid()::text, admitted = false, status = NULL, content_type = NULL, body = NULL"
        await change(gateway, tenant, lost)
        assert code(await post(client)) == "idempotency_key_in_use"
        await change(gateway, tenant, "claimed_at = claimed_at - interval '31 seconds'")
        answers = await asyncio.gather(*(post(client, **{"x-demo-delay-ms": "300"}) for _ in range(RETRIES)))
    codes = Counter(map(code, answers))
    assert codes["200"] == 1
    assert set(codes) <= {"200", "200 again", "idempotency_key_in_use"}
    assert len(await upstream(gateway, answers)) == 1
    await settled(gateway, tenant, 2)


@METERING
async def test_an_expired_key_is_a_new_one(gateway: Gateway, metering: Metering) -> None:
    tenant = await gateway.tenant(metering=metering)
    async with gateway.client(tenant) as client:
        assert code(await post(client)) == "200"
        await change(gateway, tenant, "expires_at = now()")
        assert code(await post(client, INFER, body(INFER, "another"))) == "200"
        assert code(await post(client, INFER, body(INFER, "another"))) == "200 again"


async def test_openais_sdk_is_given_the_same_and_does_not_try_again_in_vain(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    sent: list[str] = []

    async def note(request: httpx2.Request) -> None:
        sent.append(request.url.path)

    transport = httpx2.AsyncClient(verify=gateway.tls, event_hooks={"request": [note]})
    sdk = AsyncOpenAI(api_key=tenant.key, base_url=f"{gateway.url}/v1", http_client=transport, max_retries=3)
    async with sdk:
        ask = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "extra_headers": KEY}
        first, again = [await sdk.chat.completions.create(**ask) for _ in range(2)]  # type: ignore[call-overload]
        assert (first.id, first.choices, first.usage) == (again.id, again.choices, again.usage)
        other = {**ask, "extra_headers": {"idempotency-key": "stream"}, "stream": True}
        async for _ in await sdk.chat.completions.create(**other):  # type: ignore[call-overload]
            pass
        await settled(gateway, tenant, 2)
        sent.clear()
        with pytest.raises(ConflictError) as raised:
            await sdk.chat.completions.create(**other)  # type: ignore[call-overload]
    assert raised.value.code == "idempotent_result_elsewhere"
    assert len(sent) == 1, "x-should-retry: false"
