"""What the conformance check reads in an answer: numbers, events, and the Router's own words."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.router_check import catalogue
from sidecar.router_check.answer import Answer, json_object
from sidecar.router_check.event_stream import read_stream
from sidecar.router_check.evidence import Evidence
from sidecar.router_check.finding import Outcome
from sidecar.router_check.spoken import DIALECTS, Spoken
from sidecar.router_check.usage_numbers import Tokens, read_usage
from sidecar.router_check.word_promises import cost_is_readable, decision_is_readable

BY_NAME = {spoken.name: spoken for spoken in DIALECTS}


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}, Tokens(1, 2)),
        ({"input_tokens": 1, "output_tokens": 2}, Tokens(1, 2)),
        ({"prompt_tokens": 7, "total_tokens": 7}, Tokens(7, None)),
        ({"output_tokens": 9, "output_tokens_details": {"reasoning_tokens": 4}}, Tokens(None, 9, 4)),
        ({"prompt_tokens": 5, "completion_tokens": 0, "prompt_tokens_details": None}, Tokens(5, 0)),
        ({"input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": 100}, Tokens(1, 2)),
    ],
)
def test_numbers_that_can_be_charged(usage: dict[str, Any], tokens: Tokens) -> None:
    assert read_usage(usage) == tokens


@pytest.mark.parametrize(
    ("usage", "named"),
    [
        ({"prompt_tokens": -1}, "prompt_tokens"),
        ({"input_tokens": 1.5}, "input_tokens"),
        ({"output_tokens": "5"}, "output_tokens"),
        ({"completion_tokens": True}, "completion_tokens"),
        ({"output_tokens": 2**53}, "output_tokens"),
        ({"cache_read_input_tokens": -1}, "cache_read_input_tokens"),
        ({"prompt_tokens": 1, "input_tokens": 1}, "both"),
        ({"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 4}, "total_tokens"),
        ({"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": 2}}, "cached_tokens"),
        ({"output_tokens": 1, "output_tokens_details": {"reasoning_tokens": 2}}, "reasoning_tokens"),
    ],
)
def test_numbers_that_cannot_be_charged_are_named(usage: dict[str, Any], named: str) -> None:
    found = read_usage(usage)
    assert isinstance(found, str)
    assert named in found


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_stream_is_taken_apart_whatever_ends_its_lines(end: str) -> None:
    lines = [": ping", "", "event: a", 'data: {"type":"a"}', "", "data: [DONE]", ": word", "", "data: half"]
    found = read_stream(end.join(lines).encode())
    assert [(event.name, event.data, event.comments) for event in found.blocks] == [
        ("", "", (": ping",)),
        ("a", '{"type":"a"}', ()),
        ("", "[DONE]", (": word",)),
    ]
    assert found.rest == b"data: half"
    assert [event.data for event in found.events] == ['{"type":"a"}', "[DONE]"]


@given(st.binary(max_size=200) | st.text(alphabet="data: event{}[]\r\n", max_size=60).map(str.encode))
def test_no_body_raises(body: bytes) -> None:
    stream = Answer(status=200, headers={"content-type": "text/event-stream"}, pieces=(body,))
    for spoken in DIALECTS:
        evidence = Evidence(spoken=spoken, request_id="r", plain=stream, extended=stream, wrong=stream, stream=stream)
        for one in catalogue.promises_of(spoken):
            assert one.judge(evidence).outcome in Outcome
        assert cost_is_readable([evidence]).outcome in Outcome


def _streamed(text: str, spoken: Spoken, headers: dict[str, str] | None = None) -> Evidence:
    plain = Answer(status=200, headers={})
    stream = Answer(status=200, headers=headers or {}, pieces=(text.encode(),))
    return Evidence(spoken=spoken, request_id="r", plain=plain, stream=stream)


def _outcome(check: str, text: str) -> Outcome:
    [found] = [one for spoken in DIALECTS for one in catalogue.promises_of(spoken) if one.promise.name == check]
    return found.judge(_streamed(text, BY_NAME[check.partition(".")[0]])).outcome


USAGE = '"usage":{"prompt_tokens":1,"completion_tokens":2}'
DELTA = 'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":%d}}\n\n'
START = 'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":3}}}\n\n'


@pytest.mark.parametrize(
    ("check", "text", "outcome"),
    [
        ("chat.stream-usage", f'data: {{"choices":[],{USAGE}}}\n\ndata: [DONE]\n\n', Outcome.PASS),
        ("chat.stream-usage", f'data: {{"choices":[{{}}],{USAGE}}}\n\ndata: [DONE]\n\n', Outcome.FAIL),
        ("chat.stream-usage", f'data: {{"choices":[],{USAGE}}}\n\ndata: {{}}\n\ndata: [DONE]\n\n', Outcome.FAIL),
        ("chat.stream-usage", f"data: {{{USAGE}}}\n\ndata: [DONE]\n\n", Outcome.FAIL),
        ("messages.stream-usage", START + DELTA % 1 + DELTA % 4, Outcome.PASS),
        ("messages.stream-usage", START + DELTA % 4 + DELTA % 1, Outcome.FAIL),
        ("messages.stream-usage", DELTA % 4, Outcome.FAIL),
        ("chat.stream-end", "data: {}\n\ndata: [DONE]\n\n", Outcome.PASS),
        ("chat.stream-end", "data: [DONE]\n\ndata: {}\n\n", Outcome.FAIL),
        ("chat.stream-end", "data: [DONE]\n\ndata: [DONE]\n\n", Outcome.FAIL),
        ("messages.stream-end", 'event: message_stop\ndata: {"type":"message_stop"}\n\n', Outcome.PASS),
        ("messages.stream-end", 'data: {"type":"message_stop"}\n\n', Outcome.FAIL),
        ("responses.stream-end", 'event: response.failed\ndata: {"type":"response.failed"}\n\n', Outcome.PASS),
        ("responses.stream-end", "data: [DONE]\n\n", Outcome.FAIL),
        ("chat.stream-form", "", Outcome.FAIL),
        ("chat.stream-form", "data: {}\n\n: ping\n\n", Outcome.PASS),
        ("chat.stream-form", "data: nothing\n\n", Outcome.FAIL),
        ("infer.stream-events", 'data: {"delta":"a"}\n\n' * 2 + f'data: {{"choices":[],{USAGE}}}\n\n', Outcome.PASS),
    ],
)
def test_a_stream_is_judged(check: str, text: str, outcome: Outcome) -> None:
    assert _outcome(check, text) is outcome


END = "data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        (': x-router-cost {"total_usd":"0.5"}\n\n' + END, Outcome.PASS),
        (': x-router-cost {"total_usd":0}\n' + END, Outcome.PASS),
        ("data: {}\n\n" + END, Outcome.SKIP),
        (END + ': x-router-cost {"total_usd":1}\n\n', Outcome.FAIL),
        (':x-router-cost {"total_usd":1}\n\n' + END, Outcome.FAIL),
        (": x-router-cost 0.5\n\n" + END, Outcome.FAIL),
        (': x-router-cost {"total":1}\n\n' + END, Outcome.FAIL),
        (': x-router-cost {"total_usd":"-1"}\n\n' + END, Outcome.FAIL),
        (': x-router-cost {"total_usd":"NaN"}\n\n' + END, Outcome.FAIL),
        (': x-router-cost {"total_usd":true}\n\n' + END, Outcome.FAIL),
        (': x-router-cost {"total_usd":1000001}\n\n' + END, Outcome.FAIL),
        (': x-router-cost {"total_usd":1,"x":"é"}\n\n' + END, Outcome.FAIL),
        (': x-router-cost {"total_usd":1,"x":"' + "x" * 8192 + '"}\n\n' + END, Outcome.FAIL),
    ],
)
def test_what_a_comment_says_of_the_cost_is_judged(text: str, outcome: Outcome) -> None:
    assert cost_is_readable([_streamed(text, BY_NAME["chat"])]).outcome is outcome


@pytest.mark.parametrize(("value", "outcome"), [('{"model":"m"}', Outcome.PASS), ("[1]", Outcome.FAIL)])
def test_what_a_header_says_of_the_decision_is_judged(value: str, outcome: Outcome) -> None:
    evidence = _streamed(END, BY_NAME["chat"], {"x-router-decision": value})
    assert decision_is_readable([evidence]).outcome is outcome


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, "5"])
def test_what_is_no_object_is_none(data: bytes | str) -> None:
    assert json_object(data) is None


def test_an_unknown_name_of_a_check_is_refused() -> None:
    assert catalogue.chosen(()) == frozenset(catalogue.names())
    assert catalogue.chosen(("words", "chat.answer")) == {"words.decision", "words.cost", "chat.answer"}
    with pytest.raises(ValueError, match=r"chat\.nothing"):
        catalogue.chosen(("chat.answer", "chat.nothing"))
