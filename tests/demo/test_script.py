import pytest

from demo.encoding import Encoding
from demo.script import BadHeader, Fault, Place, Script, Terminal, UsageRule, read_script


def test_no_steering_header_changes_nothing() -> None:
    assert read_script([("content-type", "application/json")]) == Script()


def test_every_header_is_read_whatever_its_case() -> None:
    headers = [
        ("X-Demo-Events", "7"),
        ("x-demo-interval-ms", "1.5"),
        ("x-demo-delay-ms", "20"),
        ("x-demo-status", "503"),
        ("x-demo-padding", "100"),
        ("x-demo-split", "3"),
        ("x-demo-batch", "4"),
        ("x-demo-usage", "5,6"),
        ("x-demo-cached-tokens", "3"),
        ("x-demo-cache-written-tokens", "1"),
        ("x-demo-reasoning-tokens", "2"),
        ("x-demo-own-limit", "99"),
        ("x-demo-fault", "hang"),
        ("x-demo-terminal", "failed"),
        ("x-demo-encoding", "gzip"),
        ("x-demo-decision", "{}"),
        ("x-demo-cost", "no JSON"),
        ("x-demo-words", "comment"),
        ("x-demo-pings", "8"),
    ]
    assert read_script(headers) == Script(
        events=7,
        interval_ms=1.5,
        delay_ms=20.0,
        status=503,
        padding=100,
        split=3,
        batch=4,
        usage=UsageRule(numbers=(5, 6)),
        cached=3,
        cache_written=1,
        reasoning=2,
        own_limit=99,
        fault=Fault.HANG,
        terminal=Terminal.FAILED,
        encoding=Encoding.GZIP,
        decision="{}",
        cost="no JSON",
        words=Place.COMMENT,
        pings=8,
    )


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("none", UsageRule(reported=False)),
        ("zero", UsageRule(numbers=(0, 0))),
        ("12,34", UsageRule(numbers=(12, 34))),
    ],
)
def test_usage_rules(text: str, rule: UsageRule) -> None:
    script = read_script([("x-demo-usage", text)])
    assert isinstance(script, Script)
    assert script.usage == rule


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-demo-events", "-1"),
        ("x-demo-events", "many"),
        ("x-demo-interval-ms", "nan"),
        ("x-demo-interval-ms", "-1"),
        ("x-demo-delay-ms", "inf"),
        ("x-demo-status", "199"),
        ("x-demo-status", "600"),
        ("x-demo-padding", "1.5"),
        ("x-demo-split", "0"),
        ("x-demo-batch", "0"),
        ("x-demo-usage", "1"),
        ("x-demo-usage", "1,2,3"),
        ("x-demo-usage", "-1,2"),
        ("x-demo-cached-tokens", "-1"),
        ("x-demo-cache-written-tokens", "x"),
        ("x-demo-reasoning-tokens", "1.5"),
        ("x-demo-own-limit", ""),
        ("x-demo-fault", "sneeze"),
        ("x-demo-evnets", "3"),
        ("x-demo-terminal", "completed"),
        ("x-demo-encoding", "deflate"),
        ("x-demo-words", "header"),
        ("x-demo-pings", "-1"),
    ],
)
def test_a_bad_header_is_named(name: str, value: str) -> None:
    bad = read_script([(name, value)])
    assert isinstance(bad, BadHeader)
    assert bad.name == name
    assert bad.wants
