"""The header Idempotency-Key: which values name a key, and which are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz import idempotency_key
from authz.idempotency_key import HEADER, MAX_LENGTH
from authz.refusal import Reason, Refusal

VISIBLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=MAX_LENGTH)
UUID = "8e03978e-40d5-43dd-bc93-6894a57f9324"


def read(value: str) -> str | Refusal:
    return idempotency_key.read({HEADER: value})


def quoted(key: str) -> str:
    escaped = key.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def test_without_the_header_there_is_no_key() -> None:
    assert idempotency_key.read({"content-type": "application/json"}) == ""


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (f'"{UUID}"', UUID),
        (UUID, UUID),
        ('"a\\"b\\\\c"', 'a"b\\c'),
        ('"a,b"', "a,b"),
        ("x" * MAX_LENGTH, "x" * MAX_LENGTH),
        (quoted("\\" * MAX_LENGTH), "\\" * MAX_LENGTH),
        ("!", "!"),
        ("~", "~"),
        ("a;b=c", "a;b=c"),
    ],
)
def test_a_key_is_read_with_quotes_and_without(value: str, key: str) -> None:
    assert read(value) == key


@pytest.mark.parametrize(
    "value",
    [
        "",
        '""',
        '"',
        '"a',
        'a"',
        'a"b',
        '"a"b"',
        '"a\\b"',
        "a\\b",
        "a b",
        '"a b"',
        "ä",
        '"ä"',
        "\x7f",
        "a\tb",
        "x" * (MAX_LENGTH + 1),
        quoted("x" * (MAX_LENGTH + 1)),
        # The header, sent twice.
        "a,b",
        "a, b",
        '"a","b"',
        '"a", "b"',
        # Parameters have no meaning in the draft.
        '"a";b=1',
        '"a"\n',
    ],
)
def test_what_is_no_key_is_refused_and_the_header_named(value: str) -> None:
    refusal = read(value)
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.param) == (Reason.INVALID_IDEMPOTENCY_KEY, "idempotency-key")
    assert refusal.message is not None
    assert "1 to 255 visible" in refusal.message


@given(VISIBLE)
def test_every_key_comes_back_from_its_quotes(key: str) -> None:
    assert read(quoted(key)) == key


@given(st.text(max_size=300))
def test_whatever_is_read_as_a_key_is_visible_and_not_too_long(value: str) -> None:
    key = read(value)
    if isinstance(key, str):
        assert 1 <= len(key) <= MAX_LENGTH
        assert all("!" <= character <= "~" for character in key)
