import json
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest

from demo import message
from demo.ask import Ask, Dialect, Malformed, read_ask
from demo.dialect import DONE, closing_events, delta_events, error_body, whole_answer
from demo.prose import count_tokens, endless_pieces, pieces
from demo.reply import Reply, Usage
from demo.script import Terminal

REPLY = Reply(
    dialect=Dialect.CHAT,
    ident="chatcmpl-1",
    created=7,
    model="m",
    finish="stop",
    padding=0,
    usage=Usage(3, 4),
)
OWN = replace(REPLY, dialect=Dialect.INFER)
ANTHROPIC = replace(REPLY, dialect=Dialect.MESSAGES)


def ask(dialect: Dialect, **fields: Any) -> Ask | Malformed:
    return read_ask(dialect, json.dumps({"model": "m"} | fields).encode())


def decoded(event: bytes) -> Any:
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    return json.loads(event[6:])


def test_the_last_user_message_is_echoed_and_all_messages_are_counted() -> None:
    messages = [
        {"role": "system", "content": "12345678"},
        {"role": "user", "content": [{"type": "text", "text": "what is"}, {"type": "image_url"}]},
        {"role": "assistant", "content": None},
    ]
    found = ask(Dialect.CHAT, messages=messages, max_completion_tokens=9, stream=True)
    assert isinstance(found, Ask)
    assert (found.prompt, found.prompt_tokens, found.max_tokens) == ("what is", 3, 9)
    assert (found.stream, found.include_usage) == (True, False)


def test_a_prompt_of_nothing_is_one_token() -> None:
    found = ask(Dialect.INFER, input="", stream_options={"include_usage": True})
    assert isinstance(found, Ask)
    assert (found.prompt_tokens, found.stream, found.include_usage) == (1, False, True)


@pytest.mark.parametrize(
    ("dialect", "body", "param"),
    [
        (Dialect.CHAT, b"{", None),
        (Dialect.CHAT, b"\xff", None),
        (Dialect.CHAT, b"[]", None),
        (Dialect.CHAT, b"[" * 100_000, None),
        (Dialect.INFER, b'{"model":"m","input":"\\ud800"}', None),
        (Dialect.CHAT, b'{"messages":[]}', "model"),
        (Dialect.CHAT, b'{"model":"m","messages":[]}', "messages"),
        (Dialect.CHAT, b'{"model":"m","messages":["hi"]}', "messages"),
        (Dialect.INFER, b'{"model":"m"}', "input"),
        (Dialect.COMPLETIONS, b'{"model":"m"}', "prompt"),
        (Dialect.COMPLETIONS, b'{"model":"m","prompt":[]}', "prompt"),
        (Dialect.COMPLETIONS, b'{"model":"m","prompt":"x","n":0}', "n"),
        (Dialect.COMPLETIONS, b'{"model":"m","prompt":"x","max_tokens":"5"}', "max_tokens"),
        (Dialect.RESPONSES, b'{"model":"m"}', "input"),
        (Dialect.RESPONSES, b'{"model":"m","input":[]}', "input"),
        (Dialect.RESPONSES, b'{"model":"m","input":["x"]}', "input"),
        (Dialect.RESPONSES, b'{"model":"m","input":"x","max_output_tokens":0}', "max_output_tokens"),
        (Dialect.INFER, b'{"model":"m","input":"x","max_tokens":0}', "max_tokens"),
        (Dialect.INFER, b'{"model":"m","input":"x","max_tokens":true}', "max_tokens"),
        (Dialect.MESSAGES, b'{"model":"m","max_tokens":1}', "messages"),
        (Dialect.MESSAGES, b'{"model":"m","messages":[{}]}', "max_tokens"),
        (Dialect.EMBEDDINGS, b'{"model":"m"}', "input"),
        (Dialect.EMBEDDINGS, b'{"model":"m","input":[]}', "input"),
        (Dialect.EMBEDDINGS, b'{"model":"m","input":{"a":1}}', "input"),
    ],
)
def test_a_malformed_body_names_its_field(dialect: Dialect, body: bytes, param: str | None) -> None:
    found = read_ask(dialect, body)
    assert isinstance(found, Malformed)
    assert found.param == param


def test_a_system_prompt_outside_of_the_messages_is_counted() -> None:
    messages = [{"role": "user", "content": "12345678"}]
    for system in ("12345678", [{"type": "text", "text": "12345678"}]):
        found = ask(Dialect.MESSAGES, messages=messages, system=system, max_tokens=9, stream=True)
        assert isinstance(found, Ask)
        assert (found.prompt, found.prompt_tokens, found.max_tokens) == ("12345678", 4, 9)
        assert found.include_usage, "nobody asks for it, and it is always said"


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("ab", ("ab",)),
        (["ab", "cd"], ("ab", "cd")),
        ([1, 2], ("[1,2]",)),
        ([[1, 2], [3]], ("[1,2]", "[3]")),
    ],
)
def test_there_is_a_vector_for_every_input(given: Any, inputs: tuple[str, ...]) -> None:
    found = ask(Dialect.EMBEDDINGS, input=given, stream=True)
    assert isinstance(found, Ask)
    assert (found.inputs, found.stream) == (inputs, False)
    answer = json.loads(whole_answer(replace(REPLY, dialect=Dialect.EMBEDDINGS), found.inputs))
    assert [one["index"] for one in answer["data"]] == list(range(len(inputs)))
    assert all(-1 <= number <= 1 for one in answer["data"] for number in one["embedding"])
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


@pytest.mark.parametrize("count", [0, 1, 2, 12, 100])
def test_the_answer_has_exactly_the_words_asked_for(count: int) -> None:
    assert len("".join(pieces("why is the sky blue", count)).split()) == count


def test_the_answer_echoes_the_prompt() -> None:
    assert "".join(pieces("why is the sky blue today", 8)) == "You asked: why is the sky blue and"


def test_an_endless_answer_goes_on() -> None:
    assert len(list(islice(endless_pieces("hi"), 1000))) == 1000


@pytest.mark.parametrize(("size", "tokens"), [(0, 1), (3, 1), (8, 2), (4000, 1000)])
def test_four_bytes_make_a_token(size: int, tokens: int) -> None:
    assert count_tokens(size) == tokens


@pytest.mark.parametrize("padding", [0, 5])
def test_the_stream_and_the_document_say_the_same(padding: int) -> None:
    reply = replace(REPLY, padding=padding)
    deltas = [decoded(event)["choices"][0] for event in delta_events(reply, pieces('say "é"', 6), 6)]
    whole = json.loads(whole_answer(reply, pieces('say "é"', 6)))
    assert "".join(delta["delta"]["content"] for delta in deltas) == whole["choices"][0]["message"]["content"]
    assert [delta["finish_reason"] for delta in deltas] == [None] * 5 + ["stop"]
    assert ["role" in delta["delta"] for delta in deltas] == [True] + [False] * 5
    assert whole["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_the_own_dialect() -> None:
    deltas = [decoded(event) for event in delta_events(OWN, pieces("hi", 4), 4)]
    assert {delta["object"] for delta in deltas} == {"inference.delta"}
    whole = json.loads(whole_answer(OWN, pieces("hi", 4)))
    assert whole["output"] == "".join(delta["delta"] for delta in deltas)
    assert whole["usage"] == {"input_tokens": 3, "output_tokens": 4}
    usage = decoded(closing_events(OWN, ["hi"])[0])
    assert usage == {"object": "inference.usage", "choices": [], "usage": whole["usage"]}


CACHED = Usage(140, 12, cached=100, cache_written=30, reasoning=7)


def test_cached_and_reasoning_tokens_are_parts_of_what_openai_says() -> None:
    numbers = {"prompt_tokens": 140, "completion_tokens": 12, "total_tokens": 152}
    details = {"prompt_tokens_details": {"cached_tokens": 100}, "completion_tokens_details": {"reasoning_tokens": 7}}
    reply = replace(REPLY, usage=CACHED)
    assert json.loads(whole_answer(reply, []))["usage"] == numbers | details
    assert decoded(closing_events(reply, ["hi"])[0])["usage"] == numbers | details
    own = json.loads(whole_answer(replace(OWN, usage=CACHED), []))["usage"]
    assert own == {
        "input_tokens": 140,
        "output_tokens": 12,
        "input_tokens_details": {"cached_tokens": 100},
        "output_tokens_details": {"reasoning_tokens": 7},
    }


def test_cached_tokens_stand_beside_what_anthropic_says() -> None:
    of_input = {"input_tokens": 10, "cache_creation_input_tokens": 30, "cache_read_input_tokens": 100}
    reply = replace(ANTHROPIC, usage=CACHED)
    assert json.loads(whole_answer(reply, []))["usage"] == of_input | {"output_tokens": 12}
    events = named(b"".join(closing_events(reply, [])))
    assert events[0][1]["message"]["usage"] == of_input | {"output_tokens": 1}
    assert events[-2][1]["usage"] == of_input | {"output_tokens": 12}


def test_there_is_a_choice_for_every_prompt_and_every_answer_wanted() -> None:
    for prompt, choices in (("x", 2), (["x", "y"], 4), ([1, 2], 2), ([[1, 2], [3]], 4)):
        found = ask(Dialect.COMPLETIONS, prompt=prompt, n=2, max_tokens=7)
        assert isinstance(found, Ask)
        assert (found.choices, found.max_tokens, found.include_usage) == (choices, 7, False)


def test_the_choices_of_a_completion_say_the_same_in_a_stream() -> None:
    reply = replace(REPLY, dialect=Dialect.COMPLETIONS, choices=2)
    stream = [decoded(event) for event in delta_events(reply, pieces("hi", 3), 3)]
    whole = json.loads(whole_answer(reply, pieces("hi", 3)))
    for choice in whole["choices"]:
        told = [event["choices"][0] for event in stream if event["choices"][0]["index"] == choice["index"]]
        assert "".join(one["text"] for one in told) == choice["text"] == "You asked: hi"
        assert [one["finish_reason"] for one in told] == [None, None, "stop"]
    assert {event["object"] for event in stream} == {"text_completion"}
    assert all(event["usage"] is None for event in stream)
    last = decoded(closing_events(reply, ["hi"])[0])
    assert (last["choices"], last["usage"]) == ([], whole["usage"])


RESPONSES = replace(REPLY, dialect=Dialect.RESPONSES, ident="resp_1")


@pytest.mark.parametrize(("count", "padding"), [(0, 0), (1, 0), (6, 5)])
def test_a_stream_of_responses_is_numbered_and_says_what_its_document_says(count: int, padding: int) -> None:
    reply, said = replace(RESPONSES, padding=padding), pieces('say "é"', count)
    stream = [*delta_events(reply, said, count), *closing_events(reply, said)]
    assert len(stream) == count + 1
    events = named(b"".join(stream))
    assert [event["sequence_number"] for _, event in events] == list(range(count + 8))
    assert (events[0][0], events[-1][0]) == ("response.created", "response.completed")
    whole = json.loads(whole_answer(reply, said))
    assert events[-1][1]["response"] == whole
    text = whole["output"][0]["content"][0]["text"]
    assert "".join(event["delta"] for name, event in events if name == "response.output_text.delta") == text
    assert whole["usage"]["input_tokens_details"] == {"cached_tokens": 0}
    assert (whole["id"], whole["usage"]["output_tokens"]) == ("resp_1", 4)


@pytest.mark.parametrize(
    ("terminal", "finish", "status", "reason"),
    [
        (None, "stop", "completed", None),
        (None, "length", "incomplete", "max_output_tokens"),
        (Terminal.INCOMPLETE, "stop", "incomplete", "content_filter"),
        (Terminal.FAILED, "stop", "failed", None),
    ],
)
def test_a_response_ends_as_it_is_told_to(
    terminal: Terminal | None, finish: str, status: str, reason: str | None
) -> None:
    reply = replace(RESPONSES, terminal=terminal, finish=finish, usage=CACHED)
    name, event = named(closing_events(reply, ["hi"])[-1])[-1]
    response = event["response"]
    assert (name, response["status"]) == (f"response.{status}", status)
    assert (response["incomplete_details"] or {}).get("reason") == reason
    assert (response["error"] is None) == (status != "failed")
    assert response["usage"] == {
        "input_tokens": 140,
        "input_tokens_details": {"cached_tokens": 100},
        "output_tokens": 12,
        "output_tokens_details": {"reasoning_tokens": 7},
        "total_tokens": 152,
    }


@pytest.mark.parametrize(
    ("dialect", "last"),
    [
        (Dialect.CHAT, b"data: [DONE]\n\n"),
        (Dialect.COMPLETIONS, b"data: [DONE]\n\n"),
        (Dialect.INFER, b"data: [DONE]\n\n"),
        (Dialect.MESSAGES, b"event: message_stop\n"),
        (Dialect.RESPONSES, b"event: response.completed\n"),
    ],
)
def test_the_last_words_stand_before_the_last_event(dialect: Dialect, last: bytes) -> None:
    words = b": x-router-cost {}\n\n"
    ends = b"".join(closing_events(replace(REPLY, dialect=dialect, words=words), ["hi"]))
    assert ends.count(words + last) == 1
    assert b"\n\n" not in ends.partition(words + last)[2].removesuffix(b"\n\n")


def test_a_stream_without_usage_does_not_mention_it() -> None:
    quiet = replace(REPLY, usage=None)
    assert all(b"usage" not in event for event in delta_events(quiet, pieces("hi", 3), 3))
    assert "usage" not in json.loads(whole_answer(quiet, pieces("hi", 3)))
    assert closing_events(quiet, ["hi"]) == [DONE]


def test_the_usage_event_has_no_choices() -> None:
    event = decoded(closing_events(REPLY, ["hi"])[0])
    assert (event["object"], event["choices"]) == ("chat.completion.chunk", [])
    assert event["usage"]["total_tokens"] == 7


@pytest.mark.parametrize(("status", "kind"), [(429, "invalid_request_error"), (503, "server_error")])
def test_an_error_has_the_shape_of_openai(status: int, kind: str) -> None:
    error = json.loads(error_body(status, "no", "input"))["error"]
    assert error == {"message": "no", "type": kind, "param": "input", "code": None}


def named(text: bytes) -> list[tuple[str, Any]]:
    """The events of an Anthropic stream; each says its name twice."""
    found = []
    for block in text.decode().removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
        assert found[-1][0] == found[-1][1]["type"]
    return found


@pytest.mark.parametrize(("count", "padding"), [(0, 0), (1, 0), (6, 5)])
def test_an_anthropic_stream_and_its_document_say_the_same(count: int, padding: int) -> None:
    reply = replace(ANTHROPIC, padding=padding)
    stream = [*delta_events(reply, pieces('say "é"', count), count), *closing_events(reply, pieces('say "é"', count))]
    assert len(stream) == count + 1
    events = named(b"".join(stream))
    opening = ["message_start", "content_block_start", "ping"]
    closing = ["content_block_stop", "message_delta", "message_stop"]
    assert [name for name, _ in events] == [*opening, *["content_block_delta"] * count, *closing]
    whole = json.loads(whole_answer(reply, pieces('say "é"', count)))
    assert "".join(event["delta"]["text"] for _, event in events[3:-3]) == whole["content"][0]["text"]
    assert whole["usage"] == {"input_tokens": 3, "output_tokens": 4}
    assert events[0][1]["message"]["usage"] == {"input_tokens": 3, "output_tokens": 1}
    assert events[-2][1]["usage"] == {"output_tokens": 4}
    assert events[-2][1]["delta"]["stop_reason"] == whole["stop_reason"] == "end_turn"


def test_an_anthropic_stream_can_hide_its_usage() -> None:
    quiet = replace(ANTHROPIC, usage=None, finish="length")
    stream = [*delta_events(quiet, pieces("hi", 3), 3), *closing_events(quiet, ["hi"])]
    assert b"usage" not in b"".join(stream)
    assert b'"stop_reason":"max_tokens"' in stream[-1]


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (429, "rate_limit_error"), (500, "api_error"), (529, "overloaded_error")],
)
def test_an_error_has_the_shape_of_anthropic(status: int, kind: str) -> None:
    error = json.loads(message.error_body(status, "no", "r"))
    assert error == {"type": "error", "error": {"type": kind, "message": "no"}, "request_id": "r"}
