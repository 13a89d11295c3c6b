"""What a tenant is told of its usage: the sums of the ledger, of its own requests alone."""

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from quota.charges import Charges
from store import ledger
from tests.control.conftest import Api
from tests.support.records import DAY, NOON, usage_record
from tests.support.values import grant

PATH = "/v1/usage"
WEEK = "?from=2026-01-01&to=2026-01-08"
COLUMNS = ["by", "group", "requests", "completed", "estimated", "input_tokens", "cached_tokens", "output_tokens",
           "reasoning_tokens", "cost_micros", "cost_dollars"]  # fmt: skip
FIRST = {
    "group": "2026-01-01",
    "requests": 1,
    "completed": 1,
    "estimated": 0,
    "input_tokens": 10,
    "cached_tokens": 3,
    "output_tokens": 30,
    "reasoning_tokens": 7,
    "cost_micros": 2_500_001,
    "cost_dollars": "2.500001",
}
SECOND = {**FIRST, "group": "2026-01-02", "cached_tokens": 0, "reasoning_tokens": 0, "cost_micros": 9,
          "cost_dollars": "0.000009"}  # fmt: skip
BOTH = {**FIRST, "group": "", "requests": 2, "completed": 2, "input_tokens": 20, "output_tokens": 60,
        "cost_micros": 2_500_010, "cost_dollars": "2.500010"}  # fmt: skip


@pytest.fixture
async def two_days(api: Api) -> Api:
    first = usage_record(cached_tokens=3, reasoning_tokens=7, charges=Charges(cost=2_500_001))
    second = usage_record(ended_ms=NOON + DAY, charges=Charges(cost=9), model="large", path="/v1/infer")
    theirs = usage_record(tenant_id="ten_b", charges=Charges(cost=77))
    too_late = usage_record(ended_ms=NOON + 8 * DAY)
    await ledger.write(api.pool, [first, second, theirs, too_late])
    return api


async def shown(api: Api, query: str = "", **request: Any) -> Any:
    answer = await api.call("GET", f"{PATH}{query}", **request)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return answer.json()


def refused(answer: httpx.Response, param: str) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_parameter", param)


async def test_usage_is_summed_by_day_with_a_total(two_days: Api) -> None:
    assert await shown(two_days, WEEK) == {
        "object": "usage",
        "from": "2026-01-01T00:00:00Z",
        "to": "2026-01-08T00:00:00Z",
        "group_by": "day",
        "data": [FIRST, SECOND],
        "total": BOTH,
    }


@pytest.mark.parametrize(
    ("group_by", "groups"),
    [
        ("day", ["2026-01-01", "2026-01-02"]),
        ("model", ["demo", "large"]),
        ("principal", ["key:k"]),
        ("route", ["/v1/chat/completions", "/v1/infer"]),
    ],
)
async def test_usage_is_summed_by_what_is_asked_for(two_days: Api, group_by: str, groups: list[str]) -> None:
    found = await shown(two_days, f"{WEEK}&group_by={group_by}")
    assert [one["group"] for one in found["data"]] == groups
    assert found["total"] == BOTH


async def test_the_end_is_not_in_it(two_days: Api) -> None:
    noon = "2026-01-01T12:00:00.123Z"
    assert (await shown(two_days, f"?from=2026-01-01&to={noon}"))["total"]["requests"] == 0
    assert (await shown(two_days, f"?from={noon}&to=2026-01-02"))["total"]["requests"] == 1


async def test_by_default_it_is_of_the_last_seven_days(api: Api) -> None:
    now = api.clock.ms
    ended = [now - 1, now - 7 * DAY, now - 7 * DAY - 1, now, now + 1]
    await ledger.write(api.pool, [usage_record(ended_ms=ms) for ms in ended])
    found = await shown(api)
    assert found["total"]["requests"] == 2
    until = datetime.fromtimestamp(now / 1000, UTC)
    assert datetime.fromisoformat(found["to"]) == until
    assert datetime.fromisoformat(found["from"]) == until - timedelta(days=7)


async def test_another_tenant_sees_its_own(two_days: Api) -> None:
    theirs = await shown(two_days, WEEK, headers=two_days.as_(grant(tenant_id="ten_b")))
    assert theirs["total"]["cost_micros"] == 77
    nobodys = await shown(two_days, WEEK, headers=two_days.as_(grant(tenant_id="ten_c")))
    assert (nobodys["data"], nobodys["total"]["requests"]) == ([], 0)


@pytest.mark.parametrize("way", ["format", "accept"])
async def test_as_csv_the_last_row_is_the_total(two_days: Api, way: str) -> None:
    if way == "format":
        answer = await two_days.call("GET", f"{PATH}{WEEK}&format=csv")
    else:
        answer = await two_days.call("GET", f"{PATH}{WEEK}", headers={**two_days.as_(), "accept": "text/csv"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="usage.csv"'
    names, *rows = csv.reader(io.StringIO(answer.text))
    assert names == COLUMNS
    expected = [("day", FIRST), ("day", SECOND), ("total", BOTH)]
    assert rows == [[by, *map(str, sums.values())] for by, sums in expected]


async def test_as_json_lines_the_last_row_is_the_total(two_days: Api) -> None:
    answer = await two_days.call("GET", f"{PATH}{WEEK}&format=jsonl&group_by=model")
    rows = [json.loads(line) for line in answer.text.splitlines()]
    assert [(row["by"], row["group"]) for row in rows] == [("model", "demo"), ("model", "large"), ("total", "")]
    assert rows[-1] == {"by": "total", **BOTH}


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("?from=then", "from"),
        ("?to=2026-13-01", "to"),
        ("?from=2026-01-02&to=2026-01-02", "from"),
        ("?from=2026-01-02&to=2026-01-01", "from"),
        ("?group_by=tenant", "group_by"),
        ("?group_by=", "group_by"),
        ("?format=cloudevents", "format"),
        ("?since=2026-01-01", "since"),
        ("?tenant=ten_b", "tenant"),
        ("?from=2026-01-01&from=2026-01-02", "from"),
    ],
)
async def test_a_wrong_parameter_is_named(offline: Api, query: str, param: str) -> None:
    refused(await offline.call("GET", f"{PATH}{query}"), param)


async def test_it_says_when_it_cannot_be_known(offline: Api) -> None:
    answer = await offline.call("GET", PATH)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
