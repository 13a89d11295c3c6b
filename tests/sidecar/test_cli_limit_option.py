"""Limits as a person writes them: what is meant, the way back, and what is wrong with what is no limit."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from authz.routes import ROUTES, Limited
from quota.limit import OWNERS, Dimension, Limit, Mode, OnOutage, Unit, Window, limit_name
from sidecar.commands.limit_option import field, parse_limit, parse_limits, written
from store.field_error import FieldError
from store.limits import MAX_CEILING, MAX_PRIORITY, MAX_SECONDS, checked_limits

SLIDING, PATHS = Window.SLIDING, sorted({route.path for route in ROUTES if route.limited is Limited.ALL})
EVERYTHING = (
    "requests_per_minute=100,burst=20,per=principal+model,route=/v1/embeddings,model=gpt-*,priority=5,mode=shadow,"
    "on_outage=local"
)


@pytest.mark.parametrize(
    ("text", "name", "seconds", "back"),
    [
        ("requests_per_minute=10", "requests_per_minute", 60, None),
        ("requests_per_hour=10", "requests_per_hour", 3600, None),
        ("requests_per_calendar_hour=10", "requests_per_calendar_hour", 0, None),
        ("requests_per_day=10", "requests_per_day", 0, None),
        ("output_tokens_per_month=10", "output_tokens_per_month", 0, None),
        ("tokens_per_day=1000000", "tokens_per_day", 0, None),
        ("concurrent_requests=5", "concurrent_requests", 0, None),
        ("requests=100/3600s", "requests_per_hour", 3600, "requests_per_hour=100"),
        ("requests=100/1m", "requests_per_minute", 60, "requests_per_minute=100"),
        ("input_tokens=100/90s", "input_tokens_per_90s", 90, None),
        ("tokens=100/1d", "tokens_per_86400s", 86_400, "tokens=100/86400s"),
        ("requests_per_minute=0", "requests_per_minute", 60, None),
        ("cost=$1.5/12h,burst=250000", "cost_per_43200s", 43_200, "cost=$1.50/43200s,burst=$0.25"),
        ("tokens_per_day=1,priority=0,mode=enforce,on_outage=closed", "tokens_per_day", 0, "tokens_per_day=1"),
        (EVERYTHING, "requests_per_minute", 60, None),
    ],
)
def test_limits_are_read_and_written(text: str, name: str, seconds: int, back: str | None) -> None:
    limit = parse_limit(text)
    assert (limit.name, limit.seconds) == (name, seconds)
    assert written(limit) == (back or text)
    assert parse_limit(written(limit)) == limit


def test_everything_can_be_said_of_a_limit() -> None:
    assert parse_limits([EVERYTHING]) == (
        Limit(
            name="requests_per_minute",
            unit=Unit.REQUESTS,
            window=SLIDING,
            seconds=60,
            ceiling=100,
            burst=20,
            per=(Dimension.PRINCIPAL, Dimension.MODEL),
            route="/v1/embeddings",
            model="gpt-*",
            priority=5,
            mode=Mode.SHADOW,
            on_outage=OnOutage.LOCAL,
        ),
    )


@pytest.mark.parametrize(
    ("text", "micros", "back"),
    [
        ("25500000", 25_500_000, "$25.50"),
        ("$25.50", 25_500_000, "$25.50"),
        ("$25", 25_000_000, "$25.00"),
        ("$0.000001", 1, "$0.000001"),
        ("$0.1", 100_000, "$0.10"),
        ("0", 0, "$0.00"),
        ("$9007199.254741", 9_007_199_254_741, "$9007199.254741"),
    ],
)
def test_money_is_exact(text: str, micros: int, back: str) -> None:
    limit = parse_limit(f"cost_per_month={text}")
    assert limit.ceiling == micros
    assert written(limit) == f"cost_per_month={back}"
    assert field(limit) == ("cost_per_month", back)


@st.composite
def limits(draw: st.DrawFn) -> Limit:
    unit = draw(st.sampled_from(Unit))
    window = Window.LEASE
    if unit is not Unit.CONCURRENT_REQUESTS:
        window = draw(st.sampled_from([window for window in Window if window is not Window.LEASE]))
    seconds = draw(st.sampled_from([60, 3600]) | st.integers(1, MAX_SECONDS)) if window is SLIDING else 0
    ceiling = draw(st.integers(0, MAX_CEILING))
    owners = draw(st.lists(st.sampled_from(sorted(OWNERS)), max_size=1))
    others = draw(st.lists(st.sampled_from([Dimension.ROUTE, Dimension.MODEL]), unique=True))
    limit = Limit(
        name=limit_name(unit, window, seconds),
        unit=unit,
        window=window,
        seconds=seconds,
        ceiling=ceiling,
        burst=draw(st.integers(0, ceiling)) if window is SLIDING else 0,
        per=(*owners, *others),
        route=draw(st.sampled_from(["", *PATHS])),
        model=draw(st.sampled_from(["", "gpt-5", "vendor/a:b@1*"])),
        priority=draw(st.integers(0, MAX_PRIORITY)),
        mode=draw(st.sampled_from(Mode)),
        on_outage=draw(st.sampled_from(OnOutage)),
    )
    assume(limit.burst == 0 or limit.ceiling * limit.window_ms < 2**53)
    return limit


@given(limits())
def test_what_is_written_is_read_as_it_was(limit: Limit) -> None:
    [stored] = checked_limits("limits", [limit])
    assert parse_limits([written(stored)]) == (stored,)
    assert set(stored.per) == set(limit.per)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["ceiling", "requests_per_minute=10"]),
        ("10", ["ceiling"]),
        ("requests", ["ceiling"]),
        ("requests_per_minute", ["ceiling"]),
        ("requests=10", ["requests needs a window", "requests_per_minute=10"]),
        ("requests_per_minute=", ["the ceiling, ''"]),
        ("requests_per_minute=-1", ["the ceiling, '-1'"]),
        ("requests_per_minute=1.5", ["the ceiling, '1.5'", "whole"]),
        ("requests_per_minute=$5", ["the ceiling, '$5'", "whole"]),
        ("requests_per_minute=٣", ["the ceiling"]),
        ("requests_per_minute=1\n", ["the ceiling"]),
        ("requests_per_minute=" + "9" * 17, ["the ceiling"]),
        ("cost_per_day=1.5", ["the ceiling, '1.5'", "micro-dollars", "$25.50"]),
        ("cost_per_day=$1.0000001", ["the ceiling, '$1.0000001'", "6 places"]),
        ("cost_per_day=$$1", ["the ceiling, '$$1'"]),
        ("cost_per_day=$", ["the ceiling, '$'"]),
        ("cost_per_day=$-1", ["the ceiling"]),
        (" requests_per_minute=1", ["unit", "' requests'", "concurrent_requests"]),
        ("words_per_minute=1", ["unit", "'words'", "input_tokens"]),
        ("requests_per_week=1", ["_per_week", "_per_month"]),
        ("requests_per_minute=1/60s", ["window already", "/60s"]),
        ("requests=1/s", ["length of the window, 's'"]),
        ("requests=1/60", ["length of the window, '60'", "90s"]),
        ("requests=1/", ["length of the window, ''"]),
        ("requests=1/60w", ["length of the window, '60w'"]),
        ("concurrent_requests=1/60s", ["concurrent_requests has no window"]),
        ("concurrent_requests_per_day=1", ["concurrent_requests has no window"]),
        ("requests_per_day=1,", ["option ''", "burst="]),
        ("requests_per_day=1,speed=2", ["option 'speed=2'", "on_outage="]),
        ("requests_per_day=1,mode", ["mode has no value"]),
        ("requests_per_day=1,mode=off", ["mode", "'off'", "shadow"]),
        ("requests_per_day=1,mode=shadow,mode=shadow", ["mode is given more than once"]),
        ("requests_per_day=1,per=tenant+colour", ["per", "'colour'", "principal"]),
        ("requests_per_day=1,per=", ["per has no value"]),
        ("requests_per_minute=9,burst=x", ["the burst, 'x'"]),
        ("requests_per_day=1,priority=high", ["the priority, 'high'"]),
        ("requests_per_day=1,on_outage=retry", ["on_outage", "'retry'", "closed, open, local"]),
    ],
)
def test_what_is_no_limit_says_which_part_is_wrong(text: str, words: list[str]) -> None:
    with pytest.raises(FieldError) as raised:
        parse_limit(text)
    assert raised.value.field == "--limit"
    assert "\n" not in raised.value.reason
    for word in words:
        assert word in raised.value.reason


def test_what_makes_no_sense_together_is_said_at_the_option_too() -> None:
    with pytest.raises(FieldError, match=r"--limit.*burst"):
        parse_limits(["requests_per_minute=5,burst=6"])
    with pytest.raises(FieldError, match=r"--limit.*principal's own"):
        parse_limits(["requests_per_minute=5,per=organization"], Dimension.PRINCIPAL)
