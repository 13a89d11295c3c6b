"""The headers of an answer, from the standings of its limits."""

import re

import msgspec
import pytest

from authz.routes import Dialect
from extproc.rate_limit_headers import told
from quota.applied import AppliedLimit, AppliedLimits
from quota.limit import (
    Dimension,
    Limit,
    Mode,
    Unit,
    Window,
    concurrent_requests,
    limit_name,
    requests_per_minute,
    tokens_per_day,
)
from quota.reservation import Standing
from tests.support.envoy_file import CORS, HOST
from tests.support.values import NOON_MS, held

OPENAI, ANTHROPIC = Dialect.OPENAI_CHAT, Dialect.ANTHROPIC_MESSAGES
RPM, TPD, SLOTS = requests_per_minute(10), tokens_per_day(1000), concurrent_requests(5)


def limit(unit: Unit, ceiling: int, *, seconds: int = 60) -> Limit:
    name = limit_name(unit, Window.SLIDING, seconds)
    return Limit(name=name, unit=unit, window=Window.SLIDING, ceiling=ceiling, seconds=seconds)


def standing(used: int, reset_ms: int = 60_000) -> Standing:
    return Standing(used=used, reserved=0, reset_ms=reset_ms)


def headers(
    *pairs: tuple[Limit, Standing], dialect: Dialect = OPENAI, refused: bool = False, now_ms: int = NOON_MS
) -> dict[str, str]:
    limits = held(*(one for one, _ in pairs))
    found = told(limits, tuple(now for _, now in pairs), dialect, now_ms, refused=refused)
    assert len(dict(found)) == len(found)
    return dict(found)


@pytest.mark.parametrize("dialect", [OPENAI, Dialect.OPENAI_EMBEDDINGS, Dialect.INFER])
def test_openais_headers(dialect: Dialect) -> None:
    assert headers((RPM, standing(3)), (TPD, standing(250, 43_200_000)), (SLOTS, standing(2, 0)), dialect=dialect) == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "7",
        "x-ratelimit-reset-requests": "1m0s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "750",
        "x-ratelimit-reset-tokens": "12h0m0s",
        "ratelimit-policy": (
            '"requests_per_minute";q=10;w=60, "tokens_per_day";q=1000;igw-unit="tokens";w=86400, '
            '"concurrent_requests";q=5;qu="concurrent-requests"'
        ),
        "ratelimit": '"requests_per_minute";r=7;t=60, "tokens_per_day";r=750;t=43200, "concurrent_requests";r=3',
    }


def test_anthropics_headers() -> None:
    of_input, of_output = limit(Unit.INPUT_TOKENS, 400), limit(Unit.OUTPUT_TOKENS, 100)
    found = headers(
        (RPM, standing(3, 59_001)),
        (TPD, standing(900)),
        (of_input, standing(50)),
        (of_output, standing(60)),
        dialect=ANTHROPIC,
    )
    assert {name: value for name, value in found.items() if not name.startswith("ratelimit")} == {
        "anthropic-ratelimit-requests-limit": "10",
        "anthropic-ratelimit-requests-remaining": "7",
        "anthropic-ratelimit-requests-reset": "2026-01-01T12:01:00Z",
        "anthropic-ratelimit-tokens-limit": "1000",
        "anthropic-ratelimit-tokens-remaining": "100",
        "anthropic-ratelimit-tokens-reset": "2026-01-01T12:01:00Z",
        "anthropic-ratelimit-input-tokens-limit": "400",
        "anthropic-ratelimit-input-tokens-remaining": "350",
        "anthropic-ratelimit-input-tokens-reset": "2026-01-01T12:01:00Z",
        "anthropic-ratelimit-output-tokens-limit": "100",
        "anthropic-ratelimit-output-tokens-remaining": "40",
        "anthropic-ratelimit-output-tokens-reset": "2026-01-01T12:01:00Z",
        "anthropic-ratelimit-unified-status": "allowed",
        "anthropic-ratelimit-unified-reset": str(NOON_MS // 1000 + 60),
    }


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0ms"),
        (120, "120ms"),
        (999, "999ms"),
        (1000, "1s"),
        (1001, "2s"),
        (59_999, "1m0s"),
        (360_000, "6m0s"),
        (3_599_001, "1h0m0s"),
        (3_661_000, "1h1m1s"),
        (31 * 86_400_000, "744h0m0s"),
    ],
)
def test_a_reset_is_a_duration_that_is_never_too_short(ms: int, text: str) -> None:
    assert headers((RPM, standing(1, ms)))["x-ratelimit-reset-requests"] == text


@pytest.mark.parametrize(("ms", "seconds"), [(0, 0), (1, 1), (1000, 1), (1001, 2)])
def test_seconds_are_rounded_up(ms: int, seconds: int) -> None:
    assert headers((RPM, standing(1, ms)))["ratelimit"] == f'"requests_per_minute";r=9;t={seconds}'
    unified = headers((RPM, standing(1, ms)), dialect=ANTHROPIC)["anthropic-ratelimit-unified-reset"]
    assert unified == str(NOON_MS // 1000 + seconds)


def test_of_a_unit_the_limit_with_the_least_left_is_told() -> None:
    hourly = limit(Unit.REQUESTS, 100, seconds=3600)
    found = headers((RPM, standing(1)), (hourly, standing(95, 3_000_000)))
    assert found["x-ratelimit-limit-requests"] == "100"
    assert found["x-ratelimit-remaining-requests"] == "5"
    assert found["x-ratelimit-reset-requests"] == "50m0s"


def test_of_two_with_the_same_left_the_later_is_told() -> None:
    hourly = limit(Unit.REQUESTS, 100, seconds=3600)
    found = headers((RPM, standing(10)), (hourly, standing(100, 3_000_000)))
    assert (found["x-ratelimit-limit-requests"], found["x-ratelimit-reset-requests"]) == ("100", "50m0s")


def test_without_a_limit_of_the_sum_openai_is_told_that_of_either_side() -> None:
    of_input, of_output = limit(Unit.INPUT_TOKENS, 400), limit(Unit.OUTPUT_TOKENS, 100)
    found = headers((of_input, standing(350)), (of_output, standing(20)))
    assert (found["x-ratelimit-limit-tokens"], found["x-ratelimit-remaining-tokens"]) == ("400", "50")
    assert "x-ratelimit-limit-requests" not in found
    found = headers((of_input, standing(350)), (TPD, standing(20)))
    assert (found["x-ratelimit-limit-tokens"], found["x-ratelimit-remaining-tokens"]) == ("1000", "980")


def test_nothing_is_ever_less_than_nothing_left() -> None:
    found = headers((RPM, standing(12)), (TPD, standing(5000)))
    assert (found["x-ratelimit-remaining-requests"], found["x-ratelimit-remaining-tokens"]) == ("0", "0")
    assert found["ratelimit"] == '"requests_per_minute";r=0;t=60, "tokens_per_day";r=0;t=60'


def test_no_more_is_left_than_a_burst_takes_at_once() -> None:
    bursting = msgspec.structs.replace(RPM, burst=3)
    assert headers((bursting, standing(1)))["x-ratelimit-remaining-requests"] == "3"
    assert headers((bursting, standing(8)))["x-ratelimit-remaining-requests"] == "2"


def test_a_limit_in_shadow_mode_is_not_told() -> None:
    shadow = msgspec.structs.replace(RPM, mode=Mode.SHADOW)
    assert headers((shadow, standing(99))) == {}
    found = headers((shadow, standing(99)), (TPD, standing(1)))
    assert set(found) == {
        *("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
        *("ratelimit-policy", "ratelimit"),
    }
    assert found["ratelimit"] == '"tokens_per_day";r=999;t=60'


def test_without_limits_or_without_their_standings_nothing_is_told() -> None:
    assert told(held(), (), OPENAI, NOON_MS) == []
    assert told(held(), (), ANTHROPIC, NOON_MS, refused=True) == []
    assert told(held(RPM), (), OPENAI, NOON_MS) == [], "a request that has ended has none"


def test_money_and_slots_are_told_by_the_drafts_fields_alone() -> None:
    cost = Limit(name="cost_per_month", unit=Unit.COST, window=Window.CALENDAR_MONTH, ceiling=5_000_000)
    found = headers((cost, standing(1_000_000, 1_234_567)), (SLOTS, standing(5, 0)))
    assert found == {
        "ratelimit-policy": (
            '"cost_per_month";q=5000000;igw-unit="microdollars";w=2678400, '
            '"concurrent_requests";q=5;qu="concurrent-requests"'
        ),
        "ratelimit": '"cost_per_month";r=4000000;t=1235, "concurrent_requests";r=0',
    }
    assert headers((SLOTS, standing(5, 0)), dialect=ANTHROPIC)["anthropic-ratelimit-unified-status"] == "allowed"
    assert "anthropic-ratelimit-unified-reset" not in headers((SLOTS, standing(5, 0)), dialect=ANTHROPIC)


def test_the_window_of_a_calendar_limit() -> None:
    hourly = Limit(name="requests_per_calendar_hour", unit=Unit.REQUESTS, window=Window.CALENDAR_HOUR, ceiling=9)
    assert headers((hourly, standing(1)))["ratelimit-policy"] == '"requests_per_calendar_hour";q=9;w=3600'


def test_a_refusal_leaves_the_time_to_retry_after() -> None:
    found = headers((RPM, standing(10)), (TPD, standing(100, 1000)), dialect=ANTHROPIC, refused=True)
    assert found["anthropic-ratelimit-unified-status"] == "rejected"
    assert found["anthropic-ratelimit-unified-reset"] == str(NOON_MS // 1000 + 60), "of the smallest share that is left"
    assert found["ratelimit"] == '"requests_per_minute";r=0, "tokens_per_day";r=900'


def test_the_last_request_of_a_limit_is_still_allowed() -> None:
    assert headers((RPM, standing(10)), dialect=ANTHROPIC)["anthropic-ratelimit-unified-status"] == "allowed"


def test_limits_of_the_same_name_are_told_apart_without_anybodys_id() -> None:
    per_model = msgspec.structs.replace(RPM, per=(Dimension.MODEL,))
    pairs = [
        (RPM, "organization:org_1"),
        (RPM, "tenant:ten_1"),
        (RPM, "principal:key_1"),
        (per_model, "tenant:ten_1,model:a,principal:b"),
        (RPM, "tenant:ten_1,of gpt-*"),
        (TPD, "tenant:ten_1"),
    ]
    limits = AppliedLimits(tuple(AppliedLimit(one, subject) for one, subject in pairs))
    found = dict(told(limits, tuple(standing(at) for at in range(len(pairs))), OPENAI, NOON_MS))
    names = [item.partition(";")[0] for item in found["ratelimit"].split(", ")]
    assert names == [
        '"organization/requests_per_minute"',
        '"tenant/requests_per_minute"',
        '"principal/requests_per_minute"',
        '"tenant+model/requests_per_minute"',
        '"tenant/requests_per_minute#2"',
        '"tokens_per_day"',
    ]
    assert [item.partition(";")[0] for item in found["ratelimit-policy"].split(", ")] == names
    assert "ten_1" not in str(found)


def test_a_name_is_quoted_as_a_structured_field() -> None:
    odd = msgspec.structs.replace(RPM, name='a "b" \\ ü\n')
    assert headers((odd, standing(1)))["ratelimit"] == '"a \\"b\\" \\\\ ??";r=9;t=60'


def test_the_same_limits_are_read_once_and_numbers_are_not_remembered() -> None:
    limits = held(RPM)
    first, second = (dict(told(limits, (standing(used),), OPENAI, NOON_MS)) for used in (1, 2))
    assert first["ratelimit-policy"] is second["ratelimit-policy"]
    assert (first["x-ratelimit-remaining-requests"], second["x-ratelimit-remaining-requests"]) == ("9", "8")


def _every_header() -> set[str]:
    of_tokens = [limit(unit, 10) for unit in (Unit.TOKENS, Unit.INPUT_TOKENS, Unit.OUTPUT_TOKENS)]
    pairs = [(one, standing(1)) for one in (RPM, *of_tokens)]
    return {name for dialect in (OPENAI, ANTHROPIC) for name in headers(*pairs, dialect=dialect)}


def test_envoy_puts_every_header_on_the_answer_and_lets_a_browser_read_it() -> None:
    added = {
        entry["header"]["key"]: entry["header"]["value"]
        for entry in HOST["response_headers_to_add"]
        if entry["append_action"] == "OVERWRITE_IF_EXISTS_OR_ADD"
    }
    assert set(added) == _every_header()
    assert added == {name: f"%DYNAMIC_METADATA(gateway.admission:told:{name})%" for name in added}
    assert _every_header() <= set(re.split(r",\s*", CORS["expose_headers"].strip()))
