"""What passes in a stream of Server-Sent Events, however its bytes are cut."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.sse import StreamMeter
from tests.extproc.streams import IN_EITHER, Known


def _event(value: object, end: str = "\n\n") -> bytes:
    return f"data: {json.dumps(value)}{end}".encode()


TOKEN = {"choices": [{"delta": {"content": "x"}}], "usage": None}
USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
ZEROS = {"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}}
DONE = b"data: [DONE]\n\n"
STREAM = _event(TOKEN) * 3 + _event(USAGE) + DONE


def _fed(meter: StreamMeter, *chunks: bytes) -> bytes:
    """All that the client gets."""
    return b"".join([*(meter.feed(chunk) for chunk in chunks), meter.rest()])


@pytest.mark.parametrize("strips", [True, False], ids=["strips", "keeps"])
@pytest.mark.parametrize("known", IN_EITHER, ids=lambda known: known.name)
def test_every_dialect_is_read_alike_however_it_is_cut(known: Known, *, strips: bool) -> None:
    whole = known.whole
    expected = (known.client(strips=strips), known.events(strips=strips), known.done, known.failed, known.words)

    def found(*chunks: bytes) -> tuple[bytes, int, bool, bool, dict[str, str]]:
        meter = StreamMeter(strip_usage=strips)
        return (_fed(meter, *chunks), meter.events, meter.done, meter.failed, meter.words)

    assert found(whole) == expected
    assert found(*(whole[at : at + 1] for at in range(len(whole)))) == expected
    for cut in range(1, len(whole)):
        assert found(whole[:cut], whole[cut:]) == expected, cut


@pytest.mark.parametrize(
    ("whole", "client_gets", "events"),
    [
        (STREAM, _event(TOKEN) * 3 + DONE, 4),
        (STREAM.replace(b"\n", b"\r\n"), (_event(TOKEN) * 3 + DONE).replace(b"\n", b"\r\n"), 4),
        (_event(TOKEN, "\n\r\n") + _event(USAGE, "\r\n\n") + DONE, _event(TOKEN, "\n\r\n") + DONE, 2),
        # Usage with the last token, as some Routers send it, is the client's.
        (_event({**TOKEN, "usage": USAGE["usage"]}) + DONE, _event({**TOKEN, "usage": USAGE["usage"]}) + DONE, 2),
        # Several usage events, and zeros.
        (_event(ZEROS) + _event(TOKEN) + _event(USAGE) + DONE, _event(TOKEN) + DONE, 2),
        (_event({"choices": [], "usage": None}) + DONE, _event({"choices": [], "usage": None}) + DONE, 2),
        (_event({"usage": USAGE["usage"]}), _event({"usage": USAGE["usage"]}), 1),
        (_event({"choices": []}), _event({"choices": []}), 1),
        # Named events, data over several lines, no space after the colon.
        (b"event: x\nid: 1\n" + _event(USAGE) + DONE, DONE, 1),
        (b'data: {"choices":[],\ndata: "usage":{"prompt_tokens":1}}\n\n' + DONE, DONE, 1),
        (b"data:" + json.dumps(USAGE).encode() + b"\n\n" + DONE, DONE, 1),
        # A text that only speaks of usage.
        (_event({"choices": [{"delta": {"content": '"usage": {} "choices": []'}}]}), None, 1),
        # What is no JSON passes.
        (b'data: "usage" {{{\n\n', None, 1),
        (b'data: [{"choices": [], "usage": {}}]\n\n', None, 1),
        (b"\xff\xfe\0\n\n", None, 1),
        (b'data: "usage" \xff\n\n', None, 1),
        (b"", b"", 0),
    ],
)
def test_the_usage_event_is_removed_and_the_rest_passes_cut_at_every_byte(
    whole: bytes, client_gets: bytes | None, events: int
) -> None:
    expected = whole if client_gets is None else client_gets
    for cut in range(len(whole) + 1):
        meter = StreamMeter(strip_usage=True)
        assert _fed(meter, whole[:cut], whole[cut:]) == expected, cut
        assert meter.events == events, cut
    byte_by_byte = StreamMeter(strip_usage=True)
    assert _fed(byte_by_byte, *(whole[at : at + 1] for at in range(len(whole)))) == expected
    assert byte_by_byte.events == events


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_without_stripping_all_passes_as_it_came(ending: bytes) -> None:
    whole = STREAM.replace(b"\n", ending)
    for cut in range(len(whole) + 1):
        meter = StreamMeter(strip_usage=False)
        assert _fed(meter, whole[:cut], whole[cut:]) == whole
        assert meter.events == 5


@pytest.mark.parametrize(
    ("partial", "passes"),
    [
        (b"data: {", b"data: {"),
        (b"data: x\n", b"data: x\n"),
        (b"data: x\n\r", b"data: x\n\r"),
        (b": x-rout", b""),
        (b"data: x\n: x-router-co", b"data: x\n"),
        (b"data: x\n: x-router-cost {}", b"data: x\n"),
        (b": x-router-cost {}\n", b""),
        (b": x-ray", b": x-ray"),
    ],
)
def test_without_stripping_an_incomplete_end_passes_but_for_what_may_be_the_routers(
    partial: bytes, passes: bytes
) -> None:
    meter = StreamMeter(strip_usage=False)
    assert _fed(meter, _event(TOKEN), partial) == _event(TOKEN) + passes
    assert (meter.events, meter.words) == (1, {})


@pytest.mark.parametrize(
    "word",
    [b'{"a": "\xff"}', '{"a": "é"}'.encode(), b'{"a": "' + b"x" * 8185 + b'"}', b'{"a": "\0"}'],
    ids=["no utf-8", "no ascii", "too long", "nul"],
)
def test_a_word_that_the_log_cannot_carry_is_dropped(word: bytes) -> None:
    meter = StreamMeter(strip_usage=False)
    assert _fed(meter, b": x-router-cost %b\n\n" % word, DONE) == DONE
    assert meter.words == {}


def test_a_word_as_long_as_can_be_is_kept() -> None:
    meter, word = StreamMeter(strip_usage=False), b'{"a": "' + b"x" * 8183 + b'"}'
    assert _fed(meter, b": x-router-cost %b\n\n" % word) == b""
    assert meter.words == {"cost": word.decode()}


@pytest.mark.parametrize("strips", [True, False])
def test_in_an_event_that_is_too_long_nothing_is_believed(*, strips: bool) -> None:
    # It has passed in parts: whatever stands at a part's beginning is in the midst of a line.
    meter = StreamMeter(strip_usage=strips)
    parts = (b"data: ", *[b"x" * 65_536] * 17, b"data: [DONE]\n: x-router-cost {}\n", b"event: ping\n\n")
    assert _fed(meter, *parts, _event(TOKEN), DONE) == b"".join(parts) + _event(TOKEN) + DONE
    assert (meter.events, meter.words, meter.done) == (3, {}, True)
    assert not StreamMeter(strip_usage=strips).done


def test_an_event_that_is_incomplete_at_the_end_is_void() -> None:
    # WHATWG HTML, 9.2.6: "the incomplete event is not dispatched".
    meter = StreamMeter(strip_usage=True)
    assert _fed(meter, _event(TOKEN), b"data: {") == _event(TOKEN)
    assert meter.events == 1


def test_whole_events_are_not_held_back_for_a_partial_one() -> None:
    meter = StreamMeter(strip_usage=True)
    assert meter.feed(_event(TOKEN) + b"data: {") == _event(TOKEN)
    assert meter.feed(b'"a": 1}\n') == b""
    assert meter.feed(b"\n") == b'data: {"a": 1}\n\n'


@pytest.mark.parametrize("strip", [True, False])
def test_a_body_without_an_end_is_not_kept_for_ever(*, strip: bool) -> None:
    meter, chunk = StreamMeter(strip_usage=strip), b"x" * 65_536
    passed = _fed(meter, *[chunk] * 40)
    assert len(passed) >= 40 * 65_536 - 1_048_576
    assert meter.events == 0
    rest = meter.feed(b"\n\n" + _event(TOKEN))
    assert (passed + rest).startswith(b"x" * 65_536 * 40)
    assert rest.endswith(_event(TOKEN))


pieces = st.lists(
    st.sampled_from(
        [
            *(b": x-router-cost ", b"event: ping", b"data: [DONE]", b"event: response.failed", b"{}"),
            *(b"data: ", b"\n", b"\r\n", b"\n\n", b"\r", b"usage", b'"usage"', b"[DONE]", b":", b" ", b"{", b"\xff"),
            *(_event(TOKEN), _event(USAGE), _event(ZEROS), DONE, _event(TOKEN, "\r\n\r\n"), _event(USAGE, "\r\n\r\n")),
        ]
    )
    | st.binary(max_size=10),
    max_size=20,
)


@given(parts=pieces, seed=st.integers(), strip=st.booleans())
@settings(deadline=None, max_examples=300)
def test_how_bytes_are_cut_makes_no_difference(parts: list[bytes], seed: int, *, strip: bool) -> None:
    whole = b"".join(parts)
    at_once, cut = StreamMeter(strip_usage=strip), StreamMeter(strip_usage=strip)
    order = random.Random(seed)  # noqa: S311 - no secret
    places = sorted(order.randrange(len(whole) + 1) for _ in range(order.randrange(8)))
    chunks = [whole[start:end] for start, end in zip([0, *places], [*places, len(whole)], strict=True)]
    assert _fed(cut, *chunks) == _fed(at_once, whole)
    assert (cut.events, cut.done, cut.words) == (at_once.events, at_once.done, at_once.words)
