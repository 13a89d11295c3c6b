"""Limits on the command line: what holds for whom and how it stands, what changes, and what others would refuse."""

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from quota.applied import AppliedLimit, AppliedLimits
from quota.charges import Charges
from quota.limit import Limit, requests_per_minute
from quota.pipe import RedisPipe
from quota.redis import SHARDS, RedisReservations, key_of
from quota.reservation import Reservation
from sidecar.cli import app
from sidecar.commands.limit_standings import span
from sidecar.redis_client import server_pipe
from store import ledger
from store.database import opened
from tests.quota.own_redis import OwnRedis, running
from tests.support.identity_rows import audited
from tests.support.records import usage_record
from tests.support.values import amounts, claim

PEPPER = "0123456789abcdef" * 4
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def redis_server() -> Iterator[OwnRedis]:
    with running() as server:
        yield server


@pytest.fixture
def run(database: str, redis_server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("GATEWAY_KEY_PEPPER", PEPPER)
    monkeypatch.chdir(tmp_path)
    asked(redis_server, _make_whole)
    return lambda command, *words: CliRunner().invoke(app, [*command.split(), *words])


@pytest.fixture
def tenant(run: Run) -> dict[str, Any]:
    """acme/search, on a plan of one request a minute."""
    answered(run("plan create bare --limit requests_per_minute=1"))
    made: dict[str, Any] = as_json(run("tenant create search --organization acme --plan bare --json"))
    return made


def asked(server: OwnRedis, work: Callable[[RedisPipe], Any]) -> None:
    async def run_it() -> None:
        pipe = server_pipe(server.url, deadline=10)
        try:
            await work(pipe)
        finally:
            await pipe.aclose()

    asyncio.run(run_it())


async def _make_whole(pipe: RedisPipe) -> None:
    await pipe.call("FLUSHDB")
    for shard in range(SHARDS):
        await pipe.call("SET", key_of(shard, "epoch"), 1)


def taken(server: OwnRedis, organization_id: str, subject: str, limit: Limit, much: Charges) -> None:
    """A request that runs under the limit."""

    async def work(pipe: RedisPipe) -> None:
        limits = AppliedLimits((AppliedLimit(limit, subject),))
        asking = claim("a request", limits, much, organization_id=organization_id)
        assert isinstance(await RedisReservations(pipe).reserve(asking), Reservation)

    asked(server, work)


def answered(result: Result) -> str:
    assert (result.exit_code, result.exception) == (0, None), result.output
    return result.stdout


def as_json(result: Result) -> Any:
    return json.loads(answered(result))


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def ceilings(result: Result) -> dict[tuple[str, str], int]:
    """By name and origin."""
    return {(each["name"], each["from"]): each["ceiling"] for each in as_json(result)["limits"]}


def changes(database: str) -> list[dict[str, Any]]:
    async def read() -> list[dict[str, Any]]:
        async with opened(database) as pool:
            return await audited(pool)

    return asyncio.run(read())


def test_what_a_tenant_inherits_is_shown_with_its_origin(run: Run, tenant: dict[str, Any]) -> None:
    answered(run("limits set organization:acme tokens_per_day=500"))
    answered(run("limits set tenant:acme/search requests_per_minute=5 concurrent_requests=2"))
    found = {
        ("tokens_per_day", "organization acme"): 500,
        ("requests_per_minute", "tenant search"): 5,
        ("concurrent_requests", "tenant search"): 2,
    }
    for target in ("tenant:acme/search", "tenant:search", f"tenant:{tenant['id']}"):
        assert ceilings(run("limits show --json", target)) == found
    answered(run("limits remove tenant:search requests_per_minute"))
    assert ceilings(run("limits show tenant:search --json"))["requests_per_minute", "plan bare"] == 1
    text = answered(run("limits show tenant:search"))
    for word in ("CEILING", "organization acme", "plan bare", "500"):
        assert word in text


def test_the_numbers_are_those_of_redis(run: Run, tenant: dict[str, Any], redis_server: OwnRedis) -> None:
    much = requests_per_minute(1)
    taken(redis_server, tenant["organization_id"], f"tenant:{tenant['id']}", much, amounts())
    [found] = as_json(run("limits show tenant:search --json"))["limits"]
    assert (found["used"], found["reserved"], found["left"]) == (0, 1, 0)
    assert 0 < found["resets_in_ms"] <= 61_000
    assert re.search(r" [0-9m ]+s +plan bare", answered(run("limits show tenant:search")))


@pytest.mark.usefixtures("tenant")
def test_without_redis_the_limits_are_shown_all_the_same(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for url, why in (
        (None, "REDIS_URL is not set"),
        ("unix:///nowhere/redis.sock", "not known"),
        ("what", "not known"),
    ):
        monkeypatch.delenv("REDIS_URL") if url is None else monkeypatch.setenv("REDIS_URL", url)
        result = run("limits show tenant:search --json")
        [found] = as_json(result)["limits"]
        assert (found["ceiling"], found["used"], found["left"]) == (1, None, None)
        assert why in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.usefixtures("tenant")
def test_a_key_is_shown_what_holds_for_it(run: Run) -> None:
    key = as_json(run("key create --tenant search --name laptop --json"))
    answered(run("limits set tenant:search tokens_per_day=9,per=principal tokens_per_month=7,per=principal+model"))
    answered(run("limits set", f"key:{key['id']}", "concurrent_requests=3"))
    per_key = [
        each for each in as_json(run("limits show tenant:search --json"))["limits"] if "principal" in each["per"]
    ]
    assert [each["numbers_with"] for each in per_key] == [["principal"], ["principal", "model"]]
    found = as_json(run("limits show --json", f"key:{key['key']}"))
    assert found["target"] == f"key:{key['id']}"
    assert {each["name"]: each["numbers_with"] for each in found["limits"]} == {
        "requests_per_minute": [],
        "tokens_per_day": [],
        "tokens_per_month": ["model"],
        "concurrent_requests": [],
    }
    with_model = as_json(run("limits show --json --model gpt-5", f"key:{key['id']}"))["limits"]
    assert [each["left"] for each in with_model] == [1, 9, 7, 3]


def test_a_workload_has_limits_too(run: Run, tenant: dict[str, Any]) -> None:
    made = as_json(run("workload create spiffe://acme/search --tenant", tenant["id"], "--json"))
    shown = as_json(run("limits set workload:spiffe://acme/search requests_per_minute=4,mode=shadow --json"))
    assert shown["target"] == f"workload:{made['id']}"
    assert [(each["ceiling"], each["mode"]) for each in shown["limits"]] == [(1, "enforce"), (4, "shadow")]


@pytest.mark.usefixtures("tenant")
def test_single_limits_are_set_and_the_others_stay(run: Run, database: str) -> None:
    answered(run("limits set plan:bare requests_per_minute=2,model=gpt-* tokens_per_day=5"))
    before = len(changes(database))
    answered(run("limits set plan:bare requests_per_minute=3"))
    found = as_json(run("plan show bare --json"))["limits"]
    assert [(each["name"], each.get("model", ""), each["ceiling"]) for each in found] == [
        ("requests_per_minute", "", 3),
        ("requests_per_minute", "gpt-*", 2),
        ("tokens_per_day", "", 5),
    ]
    [change] = changes(database)[before:]
    assert (change["action"], change["subject"], change["actor"][:4]) == ("plan.update", "plan:bare", "cli:")
    answered(run("limits set plan:bare requests_per_minute=3"))
    assert len(changes(database)) == before + 1, "nothing has changed"


@pytest.mark.usefixtures("tenant")
def test_single_limits_are_removed_and_the_others_stay(run: Run) -> None:
    answered(run("limits set tenant:search requests_per_hour=3 requests_per_hour=2,model=gpt-* tokens_per_day=5"))
    refused(
        run("limits remove tenant:search requests_per_hour,model=other"), "model=other", "requests_per_hour,model=gpt-*"
    )
    answered(run("limits remove tenant:search requests_per_hour,model=gpt-* tokens_per_day"))
    own = as_json(run("tenant show search --json"))["tenant"]["limits"]
    assert [each["name"] for each in own] == ["requests_per_hour"]
    answered(run("limits remove tenant:search requests_per_hour"))
    assert as_json(run("tenant show search --json"))["tenant"]["limits"] == []


@pytest.mark.usefixtures("tenant")
def test_of_several_of_one_name_the_plain_one_is_meant_or_none(run: Run) -> None:
    answered(run("limits set tenant:search requests_per_hour=3,model=a requests_per_hour=2,model=b"))
    refused(run("limits remove tenant:search requests_per_hour"), "2 limits", "requests_per_hour,model=a", "model=b")
    answered(run("limits set tenant:search requests_per_hour=9"))
    answered(run("limits remove tenant:search requests_per_hour"))
    own = as_json(run("tenant show search --json"))["tenant"]["limits"]
    assert [each["model"] for each in own] == ["a", "b"]


@pytest.mark.usefixtures("tenant")
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("limits show search", ["TARGET", "tenant:acme/search"]),
        ("limits show user:search", ["TARGET", "user:search"]),
        ("limits show tenant:", ["TARGET"]),
        ("limits show tenant:acme/nobody", ["tenant", "acme/nobody"]),
        ("limits show plan:gold", ["plan", "gold", "bare"]),
        ("limits show organization:nobody", ["organization", "nobody"]),
        ("limits show key:nobody", ["key", "nobody"]),
        ("limits show workload:nobody", ["workload", "nobody"]),
        ("limits set tenant:search tokens=5", ["--limit", "tokens=5"]),
        ("limits set tenant:search tokens_per_day=5 tokens_per_day=6", ["tokens_per_day", "more than once"]),
        ("limits remove tenant:search requests_per_minute", ["no limit", "has: none"]),
        ("limits simulate", ["--tenant", "--organization"]),
        ("limits simulate --tenant search --organization acme", ["--tenant", "--organization"]),
        ("limits simulate --tenant nobody", ["tenant", "nobody"]),
        ("limits simulate --tenant search --only-proposed", ["--only-proposed", "--limit"]),
        ("limits simulate --tenant search --since 1h --until 2h", ["--until", "is not after"]),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line_and_changes_nothing(
    run: Run, database: str, command: str, words: list[str]
) -> None:
    before = changes(database)
    refused(run(command), *words)
    assert changes(database) == before


def used(database: str, tenant: dict[str, Any], *seconds_ago: int, **more: Any) -> None:
    """A request of the tenant at each of these times, of a second."""
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    owner = {"organization_id": tenant["organization_id"], "tenant_id": tenant["id"], "principal_id": "key_k"}
    times = [now_ms - 1000 * seconds for seconds in seconds_ago]
    counted = Charges(requests=1, input_tokens=20, tokens=50)
    records = [usage_record(admitted_ms=at, ended_ms=at + 1000, charges=counted, **owner | more) for at in times]

    async def write() -> None:
        async with opened(database) as pool:
            await ledger.write(pool, records)

    asyncio.run(write())


def test_a_simulation_says_what_would_have_been_refused(run: Run, tenant: dict[str, Any], database: str) -> None:
    used(database, tenant, 500, 498, 496, 100)
    command = "limits simulate --tenant acme/search --since 1h --limit requests_per_minute=2"
    found = as_json(run(f"{command} --json"))
    assert (found["requests"], found["refused"]) == (4, 1)
    [limit] = found["limits"]
    assert (limit["limit"], limit["proposed"], limit["peak"]) == ("requests_per_minute=2", True, 2)
    assert limit["callers"] == [{"principal_id": "key_k", "model": "demo", "requests": 1}]
    assert datetime.fromisoformat(limit["first"]) == datetime.fromisoformat(limit["last"])
    text = answered(run(command))
    for word in (
        "4 requests, 1 would have been refused (25.0%)",
        "requests_per_minute=2",
        "100.0%",
        "key_k",
        "demo",
    ):
        assert word in text


def test_proposed_limits_stand_beside_those_of_now_or_alone(run: Run, tenant: dict[str, Any], database: str) -> None:
    used(database, tenant, 500, 498)
    command = "limits simulate --tenant search --since 1h --limit tokens_per_hour=10000 --json"
    beside = as_json(run(command))
    assert (beside["refused"], len(beside["limits"])) == (1, 2)
    assert {each["limit"]: each["proposed"] for each in beside["limits"]}["requests_per_minute=1"] is False
    alone = as_json(run(f"{command} --only-proposed"))
    assert (alone["refused"], len(alone["limits"])) == (0, 1)
    assert as_json(run("limits simulate --tenant search --since 1h --json"))["refused"] == 1, "those of now"


def test_an_organization_is_simulated_with_all_its_tenants(run: Run, tenant: dict[str, Any], database: str) -> None:
    other = as_json(run("tenant create other --organization acme --plan bare --json"))
    used(database, tenant, 500, 300)
    used(database, other, 499, 299)
    limit = "requests_per_minute=1"
    found = as_json(run("limits simulate --organization acme --since 1h --only-proposed --json --limit", limit))
    assert (found["requests"], found["refused"]) == (4, 2)
    assert found["limits"][0]["owner"] == "organization"


def test_what_was_before_the_period_counts_in_its_windows(run: Run, tenant: dict[str, Any], database: str) -> None:
    since = datetime.now(UTC) - timedelta(seconds=600)
    used(database, tenant, 620, 580)
    found = as_json(run("limits simulate --tenant search --json --since", since.isoformat()))
    assert (found["requests"], found["refused"]) == (1, 1)


@pytest.mark.usefixtures("tenant")
def test_a_period_without_requests_is_said_so(run: Run) -> None:
    text = answered(run("limits simulate --tenant search"))
    assert "0 requests, 0 would have been refused (-)" in text
    assert "No limit held" in text


@pytest.mark.parametrize(
    ("ms", "text"),
    [(1, "0s"), (59_999, "59s"), (60_000, "1m 0s"), (3_725_000, "1h 2m"), (90_061_000, "1d 1h")],
)
def test_spans(ms: int, text: str) -> None:
    assert span(ms) == text
