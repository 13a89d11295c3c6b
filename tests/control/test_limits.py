"""What a principal is told of its limits: all that hold for it, how they stand, and when they come back."""

from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from authz.principal import Handle, PrincipalKind
from control.application import application
from quota.applied import AppliedLimits, Target, applied
from quota.charges import Charges
from quota.limit import (
    Dimension,
    Limit,
    Mode,
    OnOutage,
    Unit,
    Window,
    concurrent_requests,
    requests_per_minute,
    tokens_per_day,
)
from quota.pipe import RedisPipe
from quota.redis import SHARDS, RedisReservations, key_of
from quota.reservation import Reservation
from store.database import Pool
from store.limits import encode_limits
from store.sessions import RedisSessions
from tests.control.conftest import Api, pipe_to
from tests.quota.own_redis import OwnRedis, running
from tests.support.values import amounts, claim, grant, settlement

PATH = "/v1/limits"
KEY_ID = "k"
PRINCIPAL = f"key_{KEY_ID}"


@pytest.fixture
async def whole(pipe: RedisPipe) -> RedisPipe:
    """Redis, whose counters are whole."""
    for shard in range(SHARDS):
        await pipe.call("SET", key_of(shard, "epoch"), 1)
    return pipe


async def carry(
    pool: Pool, *, organization: tuple[Limit, ...] = (), tenant: tuple[Limit, ...] = (), key: tuple[Limit, ...] = ()
) -> None:
    """The key `k` of ten_a, of org_a, on a plan without limits."""
    await pool.execute("INSERT INTO plans (name, limits, metering) VALUES ('bare', '[]', 'native')")
    await pool.execute(
        "INSERT INTO organizations (id, name, limits) VALUES ('org_a', 'acme', $1::jsonb)", encode_limits(organization)
    )
    await pool.execute(
        "INSERT INTO tenants (id, organization_id, name, plan, time_zone, limits) "
        "VALUES ('ten_a', 'org_a', 'search', 'bare', 'Europe/Berlin', $1::jsonb)",
        encode_limits(tenant),
    )
    await pool.execute(
        "INSERT INTO api_keys (id, tenant_id, name, tag, hash, limits) "
        "VALUES ($1, 'ten_a', 'k', 'live', $2, $3::jsonb)",
        *(KEY_ID, bytes(32), encode_limits(key)),
    )


def holding(*limits: Limit, carrier: Dimension = Dimension.TENANT, model: str = "m") -> AppliedLimits:
    """The limits as they hold for a request of the key."""
    target = Target(
        organization_id="org_a",
        tenant_id="ten_a",
        principal_id=PRINCIPAL,
        route="/v1/infer",
        model=model,
        time_zone="Europe/Berlin",
    )
    return applied([(carrier, limits)], target)


async def take(pipe: RedisPipe, limits: AppliedLimits, asked: Charges, *, used: Charges | None = None) -> None:
    """A request that runs; one that has ended when it is said what it used."""
    reservations = RedisReservations(pipe)
    request_id = f"{asked} {used}"
    assert isinstance(await reservations.reserve(claim(request_id, limits, asked)), Reservation)
    if used is not None:
        assert await reservations.settle(settlement(request_id, used))


async def shown(api: Api, query: str = "") -> list[dict[str, Any]]:
    answer = await api.call("GET", f"{PATH}{query}")
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    data: list[dict[str, Any]] = answer.json()["data"]
    return data


def refused(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_a_limit_is_shown_with_all_that_it_is(api: Api, whole: RedisPipe) -> None:
    limit = tokens_per_day(1000)
    await carry(api.pool, tenant=(limit,))
    await take(whole, holding(limit), amounts(300), used=amounts(120))
    await take(whole, holding(limit), amounts(50))
    [found] = await shown(api)
    resets_at, resets_in_ms = datetime.fromisoformat(found.pop("resets_at")), found.pop("resets_in_ms")
    assert found == {
        "name": "tokens_per_day",
        "unit": "tokens",
        "window": {"kind": "calendar_day", "seconds": None, "time_zone": "Europe/Berlin"},
        "ceiling": 1000,
        "burst": None,
        "per": ["tenant"],
        "route": None,
        "model": None,
        "mode": "enforce",
        "on_outage": "closed",
        "numbers_with": [],
        "used": 120,
        "reserved": 50,
        "left": 830,
    }
    assert 0 < resets_in_ms <= 25 * 3_600_000
    assert resets_at.microsecond == 0
    assert abs(resets_at - api.now() - timedelta(milliseconds=resets_in_ms)) <= timedelta(seconds=0.5)


async def test_the_limits_of_all_above_are_shown_the_widest_first(api: Api, whole: RedisPipe) -> None:
    per_key = Limit(**fields(requests_per_minute(20)), burst=5, per=(Dimension.PRINCIPAL,))
    await carry(
        api.pool,
        organization=(tokens_per_day(10),),
        tenant=(requests_per_minute(7), per_key),
        key=(concurrent_requests(2),),
    )
    await take(whole, holding(concurrent_requests(2), carrier=Dimension.PRINCIPAL), amounts())
    found = await shown(api)
    assert [(one["name"], one["per"], one["burst"]) for one in found] == [
        ("tokens_per_day", ["organization"], None),
        ("requests_per_minute", ["tenant"], None),
        ("requests_per_minute", ["principal"], 5),
        ("concurrent_requests", ["principal"], None),
    ]
    assert found[0]["window"]["time_zone"] == "UTC", "tenants of several time zones share it"
    assert (found[1]["used"], found[1]["left"], found[1]["resets_at"], found[1]["resets_in_ms"]) == (0, 7, None, None)
    assert (found[3]["used"], found[3]["reserved"], found[3]["left"]) == (0, 1, 1)


def fields(limit: Limit) -> dict[str, Any]:
    return {name: getattr(limit, name) for name in ("name", "unit", "window", "ceiling", "seconds")}


async def test_what_is_counted_for_each_model_has_numbers_for_a_model(api: Api, whole: RedisPipe) -> None:
    limit = Limit(**fields(requests_per_minute(3)), per=(Dimension.TENANT, Dimension.MODEL))
    await carry(api.pool, tenant=(limit,))
    await take(whole, holding(limit, model="m1"), amounts(1), used=amounts(1))
    [bare] = await shown(api)
    assert bare["numbers_with"] == ["model"]
    assert {bare[name] for name in ("used", "reserved", "left", "resets_at", "resets_in_ms")} == {None}
    [of_model] = await shown(api, "?model=m1")
    assert (of_model["numbers_with"], of_model["used"], of_model["left"]) == ([], 1, 2)
    [of_another] = await shown(api, "?model=m2")
    assert (of_another["used"], of_another["left"]) == (0, 3)


async def test_with_a_route_and_a_model_only_what_holds_for_them_is_shown(api: Api, whole: RedisPipe) -> None:
    general = requests_per_minute(10)
    of_gpt = Limit(**fields(requests_per_minute(5)), model="gpt-*")
    on_chat = Limit(**fields(tokens_per_day(9)), route="/v1/chat/completions")
    await carry(api.pool, tenant=(general, of_gpt, on_chat))
    assert [one["ceiling"] for one in await shown(api)] == [10, 5, 9]
    assert all(one["left"] == one["ceiling"] for one in await shown(api)), "each of them has one counter"
    assert [one["ceiling"] for one in await shown(api, "?model=gpt-5")] == [5, 9]
    assert [one["ceiling"] for one in await shown(api, "?model=other&route=/v1/infer")] == [10]
    assert [one["model"] for one in await shown(api, "?model=gpt-5&route=/v1/infer")] == ["gpt-*"]
    assert whole


async def test_a_limit_says_how_it_is_meant(api: Api, whole: RedisPipe) -> None:
    shadow = Limit(
        name="tokens_per_calendar_hour",
        unit=Unit.TOKENS,
        window=Window.CALENDAR_HOUR,
        ceiling=5,
        mode=Mode.SHADOW,
        on_outage=OnOutage.LOCAL,
    )
    await carry(api.pool, key=(shadow,))
    await take(whole, holding(shadow, carrier=Dimension.PRINCIPAL), amounts(8), used=amounts(8))
    [found] = await shown(api)
    assert (found["mode"], found["on_outage"], found["used"], found["left"]) == ("shadow", "local", 8, 0)


async def test_who_has_no_limits_is_told_so_without_redis(api: Api) -> None:
    await carry(api.pool)
    assert await shown(api) == []


async def test_a_session_is_shown_what_its_principal_is(api: Api, whole: RedisPipe) -> None:
    await carry(api.pool, key=(requests_per_minute(4),))
    caller = api.as_(grant(principal_kind=PrincipalKind.SESSION, session_id="ses_1", principal_id=PRINCIPAL))
    answer = await api.call("GET", PATH, headers=caller)
    assert [one["ceiling"] for one in answer.json()["data"]] == [4]
    assert whole


async def test_a_jwt_is_shown_the_limits_of_the_plan_that_it_names(api: Api, whole: RedisPipe) -> None:
    await carry(api.pool)
    handle = Handle(PrincipalKind.JWT, "jwt_1", tenant_id="ten_a", plan="enterprise")
    caller = api.as_(grant(principal_kind=PrincipalKind.JWT, principal_id="jwt_1"), handle=handle)
    found = {one["name"]: one["ceiling"] for one in (await api.call("GET", PATH, headers=caller)).json()["data"]}
    assert found["requests_per_minute"] == 1000
    assert whole


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        (PrincipalKind.API_KEY, 401, "invalid_api_key"),
        (PrincipalKind.WORKLOAD, 401, "unknown_certificate"),
        (PrincipalKind.SESSION, 401, "invalid_session"),
        (PrincipalKind.JWT, 403, "unknown_tenant"),
    ],
)
async def test_who_was_deleted_meanwhile_is_told_what_check_would_say(
    api: Api, kind: PrincipalKind, status: int, code: str
) -> None:
    refused(await api.call("GET", PATH, headers=api.as_(grant(principal_kind=kind))), status, code)


async def test_nobody_is_shown_anything(offline: Api) -> None:
    refused(await offline.call("GET", PATH, headers={}), 401, "missing_credentials")


async def test_without_postgres_the_identity_is_unavailable(offline: Api) -> None:
    answer = await offline.call("GET", PATH)
    refused(answer, 503, "identity_unavailable")
    assert answer.headers["retry-after"] == "1"


async def test_without_redis_the_limits_are_unavailable(sessions: RedisSessions, pool: Pool) -> None:
    await carry(pool, key=(requests_per_minute(4),))
    with running() as own_redis:
        async with pipe_to(own_redis, deadline=0.5) as pipe:
            api = Api(sessions, pool, RedisReservations(pipe))
            own_redis.stop()
            answer = await api.call("GET", PATH)
    refused(answer, 503, "limits_unavailable")
    assert answer.headers["retry-after"] == "1"


async def test_while_counters_are_not_whole_the_limits_are_unavailable(api: Api, redis_server: OwnRedis) -> None:
    await carry(api.pool, key=(requests_per_minute(4),))
    async with Redis.from_url(redis_server.url) as redis:
        await redis.flushdb()
    refused(await api.call("GET", PATH), 503, "limits_unavailable")


async def test_it_is_described(api: Api) -> None:
    description = application(api.resources()).openapi()
    operation = description["paths"][PATH]["get"]
    assert {parameter["name"] for parameter in operation["parameters"]} == {"route", "model"}
    assert operation["responses"]["200"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/LimitList"
    }
