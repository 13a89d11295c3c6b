"""Is this body an inference request? Every wrong shape names its field, and no bytes whatever raise."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from authz import error_body
from authz.refusal import Reason, Refusal
from authz.routes import Dialect
from extproc import inference_request
from extproc.inference_request import InferenceRequest, may_say_twice, validate

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
INFER: dict[str, Any] = {"model": "m", "input": "hello"}
BODIES = {
    Dialect.OPENAI_CHAT: CHAT,
    Dialect.OPENAI_COMPLETIONS: {"model": "m", "prompt": "hello"},
    Dialect.OPENAI_RESPONSES: INFER,
    Dialect.OPENAI_EMBEDDINGS: INFER,
    Dialect.ANTHROPIC_MESSAGES: {**CHAT, "max_tokens": 5},
    Dialect.INFER: INFER,
}
# Those whose stream says its usage only when asked to.
ASKED = [Dialect.OPENAI_CHAT, Dialect.OPENAI_COMPLETIONS, Dialect.INFER]
GONE = object()
MOST = 100_000_000


def _body(dialect: Dialect, **changes: Any) -> bytes:
    whole = {**BODIES[dialect], **changes}
    return json.dumps({name: value for name, value in whole.items() if value is not GONE}).encode()


def _valid(body: bytes, dialect: Dialect = Dialect.OPENAI_CHAT) -> InferenceRequest:
    found = validate(body, dialect)
    assert isinstance(found, InferenceRequest), found
    return found


def _refused(body: bytes, dialect: Dialect = Dialect.OPENAI_CHAT) -> Refusal:
    found = validate(body, dialect)
    assert isinstance(found, Refusal), found
    return found


@pytest.mark.parametrize("dialect", list(BODIES))
@pytest.mark.parametrize("model", [GONE, None, "", 4, "x" * 257, ["m"]])
def test_every_dialect_needs_a_model(dialect: Dialect, model: Any) -> None:
    _assert_named(_refused(_body(dialect, model=model), dialect), "model")


def _assert_named(refusal: Refusal, param: str) -> None:
    assert (refusal.reason, refusal.param) == (Reason.INVALID_BODY, param)
    assert refusal.message is not None
    assert param in refusal.message
    assert "`" not in refusal.message


@pytest.mark.parametrize("dialect", [*ASKED, Dialect.ANTHROPIC_MESSAGES])
@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"stream": "true"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": MOST + 1}, "max_tokens"),
        ({"max_tokens": 2**63}, "max_tokens"),
        ({"max_tokens": 10**400}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
    ],
)
def test_a_wrong_field_of_a_dialect_that_generates_is_named(
    dialect: Dialect, change: dict[str, Any], param: str
) -> None:
    _assert_named(_refused(_body(dialect, **change), dialect), param)


@pytest.mark.parametrize("dialect", ASKED)
@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"stream_options": []}, "stream_options"),
        ({"stream_options": "x"}, "stream_options"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    ],
)
def test_wrong_stream_options_are_named(dialect: Dialect, change: dict[str, Any], param: str) -> None:
    _assert_named(_refused(_body(dialect, **change), dialect), param)


@pytest.mark.parametrize(
    ("dialect", "change", "param"),
    [
        (Dialect.OPENAI_CHAT, {"messages": GONE}, "messages"),
        (Dialect.OPENAI_CHAT, {"messages": None}, "messages"),
        (Dialect.OPENAI_CHAT, {"messages": []}, "messages"),
        (Dialect.OPENAI_CHAT, {"messages": "hello"}, "messages"),
        (Dialect.OPENAI_CHAT, {"messages": {}}, "messages"),
        (Dialect.OPENAI_CHAT, {"messages": ["hello"]}, "messages[0]"),
        (Dialect.OPENAI_CHAT, {"messages": [{"role": "user"}, {}]}, "messages[1].role"),
        (Dialect.OPENAI_CHAT, {"messages": [{"role": 5}]}, "messages[0].role"),
        (Dialect.OPENAI_CHAT, {"max_completion_tokens": 0}, "max_completion_tokens"),
        (Dialect.OPENAI_CHAT, {"max_completion_tokens": "x"}, "max_completion_tokens"),
        (Dialect.OPENAI_CHAT, {"n": 0}, "n"),
        (Dialect.OPENAI_CHAT, {"n": 129}, "n"),
        (Dialect.OPENAI_COMPLETIONS, {"prompt": GONE}, "prompt"),
        (Dialect.OPENAI_COMPLETIONS, {"prompt": []}, "prompt"),
        (Dialect.OPENAI_COMPLETIONS, {"prompt": 5}, "prompt"),
        (Dialect.OPENAI_COMPLETIONS, {"prompt": {"text": "x"}}, "prompt"),
        (Dialect.OPENAI_COMPLETIONS, {"prompt": ["x"] * 2_049}, "prompt"),
        (Dialect.OPENAI_COMPLETIONS, {"prompt": ["x"] * 100, "n": 21}, "prompt"),
        (Dialect.OPENAI_COMPLETIONS, {"n": 0}, "n"),
        (Dialect.OPENAI_COMPLETIONS, {"n": "2"}, "n"),
        (Dialect.OPENAI_COMPLETIONS, {"best_of": 129}, "best_of"),
        (Dialect.OPENAI_RESPONSES, {"input": GONE}, "input"),
        (Dialect.OPENAI_RESPONSES, {"input": None, "prompt": None, "conversation": None}, "input"),
        (Dialect.OPENAI_RESPONSES, {"input": 5}, "input"),
        (Dialect.OPENAI_RESPONSES, {"input": {"text": "x"}}, "input"),
        (Dialect.OPENAI_RESPONSES, {"previous_response_id": 5}, "previous_response_id"),
        (Dialect.OPENAI_RESPONSES, {"stream": "yes"}, "stream"),
        (Dialect.OPENAI_RESPONSES, {"max_output_tokens": 0}, "max_output_tokens"),
        (Dialect.OPENAI_RESPONSES, {"max_output_tokens": MOST + 1}, "max_output_tokens"),
        (Dialect.OPENAI_RESPONSES, {"max_output_tokens": "5"}, "max_output_tokens"),
        (Dialect.OPENAI_RESPONSES, {"background": True}, "background"),
        (Dialect.OPENAI_RESPONSES, {"background": "no"}, "background"),
        (Dialect.INFER, {"input": GONE}, "input"),
        (Dialect.INFER, {"input": None}, "input"),
        (Dialect.INFER, {"input": 5}, "input"),
        (Dialect.INFER, {"input": True}, "input"),
        (Dialect.ANTHROPIC_MESSAGES, {"messages": GONE}, "messages"),
        (Dialect.ANTHROPIC_MESSAGES, {"messages": []}, "messages"),
        (Dialect.ANTHROPIC_MESSAGES, {"messages": "hello"}, "messages"),
        (Dialect.ANTHROPIC_MESSAGES, {"messages": [{}]}, "messages[0].role"),
        (Dialect.ANTHROPIC_MESSAGES, {"max_tokens": GONE}, "max_tokens"),
        (Dialect.ANTHROPIC_MESSAGES, {"max_tokens": None}, "max_tokens"),
        (Dialect.ANTHROPIC_MESSAGES, {"system": 5}, "system"),
        (Dialect.ANTHROPIC_MESSAGES, {"system": {"text": "x"}}, "system"),
        (Dialect.OPENAI_EMBEDDINGS, {"input": GONE}, "input"),
        (Dialect.OPENAI_EMBEDDINGS, {"input": None}, "input"),
        (Dialect.OPENAI_EMBEDDINGS, {"input": 5}, "input"),
        (Dialect.OPENAI_EMBEDDINGS, {"input": {"text": "x"}}, "input"),
    ],
)
def test_a_wrong_field_of_one_dialect_is_named(dialect: Dialect, change: dict[str, Any], param: str) -> None:
    refusal = _refused(_body(dialect, **change), dialect)
    assert (refusal.reason, refusal.param) == (Reason.INVALID_BODY, _place(refusal, param))


def _place(refusal: Refusal, param: str) -> str:
    """msgspec names an element of a list by its number in some releases, and by ... in others."""
    return param if refusal.param == param else param.replace("[0]", "[...]").replace("[1]", "[...]")


@pytest.mark.parametrize("body", [b"[]", b"null", b"5", b'"x"', b"true", b"[" * 100_000])
def test_what_is_json_but_no_object_has_the_wrong_shape(body: bytes) -> None:
    refusal = _refused(body)
    assert (refusal.reason, refusal.param) == (Reason.INVALID_BODY, None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"}",
        b"{'model': 'm'}",
        b'{"model":"m",}',
        _body(Dialect.OPENAI_CHAT) * 2,
        _body(Dialect.OPENAI_CHAT) + b" x",
        b"\xef\xbb\xbf" + _body(Dialect.OPENAI_CHAT),  # a byte order mark, RFC 8259 section 8.1
        _body(Dialect.OPENAI_CHAT).decode().encode("utf-16"),
        b'{"model":"\xff"}',
        b'{"model":"\xed\xa0\x80","messages":[{"role":"user"}]}',  # a surrogate in UTF-8
        b'{"model":"\\ud800","messages":[{"role":"user"}]}',  # half a pair
        b'{"model":"m","messages":[{"role":"user"}],"x":NaN}',
        b'{"model":"m","messages":[{"role":"user"}],"x":Infinity}',
        b'{"model":"m","messages":[{"role":"user"}],"x":01}',
        b'{"model":"m","messages":[{"role":"user"}],"x":"\n"}',
        b"\0",
    ],
)
def test_what_is_no_json_is_said_to_be_none(body: bytes) -> None:
    refusal = _refused(body)
    assert (refusal.reason, refusal.param) == (Reason.INVALID_JSON, None)


DEEP = 10_000
NESTED = {
    "arrays": b"[" * DEEP + b"]" * DEEP,
    "objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "open": b"[" * DEEP,
}


@pytest.mark.parametrize("nested", list(NESTED.values()), ids=list(NESTED))
@pytest.mark.parametrize("field", ["metadata", "input", "messages", "stream_options", "model"])
@pytest.mark.parametrize("dialect", list(BODIES))
def test_nesting_beyond_all_reason_is_refused(dialect: Dialect, field: str, nested: bytes) -> None:
    head = json.dumps({name: value for name, value in BODIES[dialect].items() if name != field}).encode()
    refusal = _refused(head[:-1] + b', "' + field.encode() + b'":' + nested + b"}", dialect)
    assert refusal.reason in {Reason.INVALID_JSON, Reason.INVALID_BODY}
    assert refusal.reason.status == 400


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"1" + b"0" * 400, b"1" + b"0" * 5000, b"1e-999", b"-0"])
@pytest.mark.parametrize("options", [b"", b',"stream_options":null', b',"stream_options":{"x":1}'])
@pytest.mark.parametrize("stream", [b"true", b"false"])
def test_a_number_of_any_size_in_a_field_that_is_not_ours_does_not_raise(
    number: bytes, options: bytes, stream: bytes
) -> None:
    body = b'{"model":"m","input":"x","seed":' + number + b',"stream":' + stream + options + b"}"
    found = validate(body, Dialect.INFER)
    if isinstance(found, Refusal):
        assert found.reason.status == 400


# Texts near a request reach further than arbitrary bytes.
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
near_requests = st.dictionaries(
    st.sampled_from(
        [
            "model",
            "messages",
            "input",
            "prompt",
            "n",
            "best_of",
            "background",
            "conversation",
            "max_output_tokens",
            "stream",
            "stream_options",
            "max_tokens",
            "max_completion_tokens",
            "role",
            "system",
        ]
    ),
    json_values | st.dictionaries(st.sampled_from(["include_usage", "role"]), json_values),
).map(lambda found: json.dumps(found).encode())


@given(body=st.binary(max_size=300) | near_requests, dialect=st.sampled_from(list(BODIES)))
@example(body=NESTED["arrays"], dialect=Dialect.INFER)
@settings(deadline=None, max_examples=500)
def test_no_bytes_raise_and_every_refusal_can_be_told(body: bytes, dialect: Dialect) -> None:
    found = validate(body, dialect)
    if isinstance(found, Refusal):
        assert json.loads(error_body.render(found, request_id="r", now=0.0))["error"]["code"] == found.reason.code


@pytest.mark.parametrize(
    ("change", "reserved"),
    [
        ({}, None),
        ({"max_tokens": None}, None),
        ({"max_tokens": 1}, 1),
        ({"max_tokens": MOST}, MOST),
        ({"max_completion_tokens": 7}, 7),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ({"max_tokens": 9, "max_completion_tokens": 7}, 9),  # whichever the model heeds, there is room
        ({"max_tokens": None, "max_completion_tokens": 7}, 7),
    ],
)
def test_the_output_is_bounded_by_the_larger_maximum_named(change: dict[str, Any], reserved: int | None) -> None:
    assert _valid(_body(Dialect.OPENAI_CHAT, **change)).max_output_tokens == reserved


@pytest.mark.parametrize("value", ["x", [], ["x", {"a": 1}], {"text": "x"}, ""])
def test_an_input_is_a_text_a_list_or_an_object(value: Any) -> None:
    assert _valid(_body(Dialect.INFER, input=value), Dialect.INFER).model == "m"


@pytest.mark.parametrize("stream", [None, False, True])
@pytest.mark.parametrize("extra", [{}, {"system": "be brief"}, {"system": [{"type": "text", "text": "be brief"}]}])
def test_an_anthropic_body_is_forwarded_as_it_is(extra: dict[str, Any], *, stream: bool | None) -> None:
    # An option of OpenAI's is any unknown field here.
    body = _body(Dialect.ANTHROPIC_MESSAGES, stream=stream, max_tokens=77, stream_options={"include_usage": 0}, **extra)
    found = _valid(body, Dialect.ANTHROPIC_MESSAGES)
    assert (found.stream, found.max_output_tokens, found.size) == (bool(stream), 77, len(body))
    assert (found.body, found.strip_usage) == (None, False)


@pytest.mark.parametrize("stream", [None, False, True])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"input": [{"role": "user", "content": "hello"}]},
        {"input": []},
        {"input": GONE, "prompt": {"id": "pmpt_1"}},
        {"input": None, "previous_response_id": "resp_1"},
        {"input": GONE, "conversation": "conv_1"},
        {"input": GONE, "conversation": {"id": "conv_1"}},
        {"background": False},
        {"background": None, "stream_options": {"include_obfuscation": False}},
    ],
)
def test_a_body_of_the_responses_api_is_forwarded_as_it_is(change: dict[str, Any], *, stream: bool | None) -> None:
    # A maximum of another dialect is any unknown field here.
    body = _body(Dialect.OPENAI_RESPONSES, stream=stream, max_output_tokens=77, max_tokens=0, **change)
    found = _valid(body, Dialect.OPENAI_RESPONSES)
    assert (found.stream, found.max_output_tokens, found.size) == (bool(stream), 77, len(body))
    assert (found.body, found.strip_usage, found.choices) == (None, False, 1)


def test_a_request_that_would_outlive_its_connection_is_refused_in_plain_words() -> None:
    refusal = _refused(_body(Dialect.OPENAI_RESPONSES, background=True), Dialect.OPENAI_RESPONSES)
    _assert_named(refusal, "background")
    assert refusal.message is not None
    assert refusal.message.endswith("the gateway follows a request by its connection.")


@pytest.mark.parametrize(
    ("change", "choices"),
    [
        ({}, 1),
        ({"prompt": None}, 1),
        ({"prompt": ["a", "b", "c"]}, 3),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": [[1, 2], [3]]}, 2),
        ({"prompt": [1] * 5_000}, 1),
        ({"prompt": ["x"] * 2_048}, 2_048),
        ({"n": 4}, 4),
        ({"n": None, "best_of": 3}, 3),
        ({"n": 2, "best_of": 3}, 3),
        ({"prompt": ["a", "b"], "n": 4}, 8),
    ],
)
def test_room_is_taken_for_every_completion_that_will_be_written(change: dict[str, Any], choices: int) -> None:
    bounded = _valid(_body(Dialect.OPENAI_COMPLETIONS, max_tokens=5, **change), Dialect.OPENAI_COMPLETIONS)
    assert (bounded.choices, bounded.max_output_tokens) == (choices, 5 * choices)
    unbounded = _valid(_body(Dialect.OPENAI_COMPLETIONS, **change), Dialect.OPENAI_COMPLETIONS)
    assert (unbounded.choices, unbounded.max_output_tokens) == (choices, None)


@pytest.mark.parametrize(
    ("dialect", "change", "field"),
    [
        (Dialect.OPENAI_CHAT, {"max_tokens": 5}, "max_tokens"),
        (Dialect.OPENAI_CHAT, {"max_completion_tokens": 5}, "max_completion_tokens"),
        (Dialect.OPENAI_CHAT, {"max_tokens": 5, "max_completion_tokens": 7}, "max_completion_tokens"),
        (Dialect.OPENAI_CHAT, {"max_tokens": 9, "max_completion_tokens": 7}, "max_tokens"),
        (Dialect.OPENAI_COMPLETIONS, {"max_tokens": 5}, "max_tokens"),
        (Dialect.OPENAI_RESPONSES, {"max_output_tokens": 5}, "max_output_tokens"),
        (Dialect.OPENAI_RESPONSES, {}, "max_output_tokens"),
        (Dialect.ANTHROPIC_MESSAGES, {"max_tokens": 5}, "max_tokens"),
        (Dialect.INFER, {"max_tokens": 5}, "max_tokens"),
    ],
)
def test_the_field_that_names_the_maximum_is_known(dialect: Dialect, change: dict[str, Any], field: str) -> None:
    assert _valid(_body(dialect, **change), dialect).output_field == field


@pytest.mark.parametrize("value", ["x", "", ["x", "y"], [1, 2], [[1, 2], [3]]])
def test_embeddings_have_no_output_and_no_stream(value: Any) -> None:
    body = _body(Dialect.OPENAI_EMBEDDINGS, input=value, stream=True, max_tokens="any")
    found = _valid(body, Dialect.OPENAI_EMBEDDINGS)
    assert (found.stream, found.max_output_tokens, found.size) == (False, 0, len(body))
    assert (found.body, found.strip_usage) == (None, False)


def test_a_path_without_a_body_is_never_asked_about() -> None:
    with pytest.raises(KeyError):
        validate(b"{}", Dialect.PLAIN)


@pytest.mark.parametrize(
    "change", [{}, {"stream": False}, {"stream": None}, {"stream_options": {"include_usage": False}}]
)
def test_a_request_that_does_not_stream_is_passed_as_it_is(change: dict[str, Any]) -> None:
    body = _body(Dialect.OPENAI_CHAT, **change)
    found = _valid(body)
    assert (found.stream, found.body, found.strip_usage, found.size) == (False, None, False, len(body))


@pytest.mark.parametrize("options", [{"include_usage": True}, {"include_usage": True, "x": [1]}])
def test_a_stream_that_asks_for_usage_itself_keeps_it(options: dict[str, Any]) -> None:
    found = _valid(_body(Dialect.OPENAI_CHAT, stream=True, stream_options=options))
    assert (found.stream, found.body, found.strip_usage) == (True, None, False)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","input":"x","stream":true}',
        b'  {"model":"m","input":"x","stream":true , "z" : { } }  \r\n\t',
        b'{"model":"m","input":"x","stream":true,"stream_options":null}',
        b'{"model":"m","input":"x","stream":true,"stream_options":{}}',
        b'{"stream_options":{"include_usage":false},"model":"m","input":"x","stream":true}',
        b'{"model":"m","input":"x","stream":true,"stream_options":{"include_usage":null,"chunk":{"a":[1]}}}',
        b'{"model":"m","input":"say \\"stream_options\\"","stream":true}',
        b'{"model":"m","input":{"stream_options":{"include_usage":false}},"stream":true}',
        b'{"model":"m","input":"x","stream":true,"stream\\u005foptions":{"include_usage":false}}',
        b'{"model":"m","input":"x","stream":true,"stream\\u005foptions":null}',
        b'{"model":"m","input":"x","stream":true,"stream_options":{"include_usage":false},"stream_options":null}',
        b'{"model":"m","input":"x","stream":false,"stream":true}',
        b'{"model":"m","input":"x","stream":true,"stream_options":{},"seed":18446744073709551616,"t":0.1,"e":1e300}',
        b'{"model":"m","input":"x","stream":true,"stream_options":{},"id":123456789012345678901234567890,"n":-0.0}',
        '{"model":"m","input":"\N{SNOWMAN} \\ud83d\\ude00 \\u0000 }","stream":true,"stream_options":null}'.encode(),
    ],
)
def test_the_router_is_asked_for_usage_and_nothing_else_is_changed(body: bytes) -> None:
    found = _valid(body, Dialect.INFER)
    assert found.strip_usage
    assert found.size == len(body)
    assert found.body is not None
    sent, original = json.loads(found.body), json.loads(body)
    options = sent.pop("stream_options")
    assert options.pop("include_usage") is True
    asked = original.pop("stream_options", None) or {}
    asked.pop("include_usage", None)
    assert options == asked
    assert repr(sent) == repr(original), "in the same order, and of the same types"


@given(
    extra=st.dictionaries(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=8,
        ),
        max_size=4,
    ),
    options=st.sampled_from([GONE, None, {}, {"include_usage": False}, {"include_usage": None, "x": 1}]),
    dialect=st.sampled_from(ASKED),
    indent=st.sampled_from([None, 2]),
    ascii_only=st.booleans(),
)
@settings(deadline=None, max_examples=300)
def test_any_stream_asks_for_usage_and_keeps_everything_else(
    extra: dict[str, Any], options: Any, dialect: Dialect, indent: int | None, *, ascii_only: bool
) -> None:
    ours = {"stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "best_of"}
    whole = {name: value for name, value in extra.items() if name not in ours} | BODIES[dialect] | {"stream": True}
    if options is not GONE:
        whole["stream_options"] = options
    found = _valid(json.dumps(whole, indent=indent, ensure_ascii=ascii_only).encode(), dialect)
    assert found.body is not None
    sent = json.loads(found.body)
    assert sent.pop("stream_options") == {**(whole.pop("stream_options", None) or {}), "include_usage": True}
    assert sent == whole
    # What we send is a request of the same kind, which asks for usage itself.
    again = _valid(found.body, dialect)
    assert (again.model, again.body, again.strip_usage) == (found.model, None, False)


def test_of_a_field_that_comes_twice_the_last_counts_as_for_most_readers() -> None:
    found = _valid(b'{"model":"a","input":"x","model":"b","max_tokens":5,"max_tokens":9}', Dialect.INFER)
    assert (found.model, found.max_output_tokens) == ("b", 9)
    assert msgspec.json.decode(b'{"model":"a","model":"b"}') == json.loads(b'{"model":"a","model":"b"}')


@pytest.mark.parametrize(
    ("body", "twice"),
    [
        (b'{"model": "a", "x": {"model": "b", "Model": 1}}', False),
        (b'{"model": "a", "model": "a"}', True),
        (b'{"model": "a", "Model": "b"}', True),
        (b'{"MODEL": "a", "messages": [{"model": 1}], "mo\\u0064el": "b"}', True),
        (b'{"messages": [{"model": 1}], "model": "b"}', False),
        (b"[" * 100_000, True),
    ],
)
def test_a_name_that_stands_there_twice_is_seen_however_it_is_spelled(body: bytes, *, twice: bool) -> None:
    assert inference_request.says_twice(body, "model") is twice


@pytest.mark.parametrize(
    ("fields", "reserved"),
    [({"max_tokens": 5, "n": 4}, 20), ({"max_completion_tokens": 7, "n": 2}, 14), ({"max_tokens": 5, "n": None}, 5)],
)
def test_a_maximum_is_for_each_choice(fields: dict[str, int | None], reserved: int) -> None:
    found = _valid(json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}).encode())
    assert found.max_output_tokens == reserved


def test_no_model_has_a_control_character_in_its_name() -> None:
    found = validate(b'{"model":"a\\u0000b","messages":[{"role":"user","content":"x"}]}', Dialect.OPENAI_CHAT)
    assert isinstance(found, Refusal)
    assert found.param == "model"


@pytest.mark.parametrize(
    ("body", "suspect"),
    [
        (b'{"model":"a"}', False),
        (b'{"model":"a","Model":"b"}', True),
        (b'{"model":"a","mod\\u0065l":"b"}', True),
        (b'{"model":"a","x":"say \\"model\\" and \\u00e4"}', False),
    ],
)
def test_a_name_that_may_stand_twice_is_worth_a_closer_look(body: bytes, *, suspect: bool) -> None:
    assert may_say_twice(body, "model") is suspect
