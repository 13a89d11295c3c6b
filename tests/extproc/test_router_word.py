"""What of the Router's words can stand on a request's row."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.router_word import json_object


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('{"model": "small", "why": ["cheap", 1, null, true]}', '{"model":"small","why":["cheap",1,null,true]}'),
        ("{}", "{}"),
        (' {"a" : 1e300} ', '{"a":1e300}'),
        ('{"a": "\\u00e9"}', '{"a":"é"}'),
        # A backslash and letters, no NUL.
        ('{"a": "\\\\u0000"}', '{"a":"\\\\u0000"}'),
        ('{"a": "' + "x" * 8183 + '"}', '{"a":"' + "x" * 8183 + '"}'),
    ],
)
def test_an_object_is_kept(text: str, kept: str) -> None:
    assert json_object(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        *("", "null", "1", '"x"', "[{}]", "{", "{}{}", "no json", '{"a": NaN}', "\udcff"),
        # What PostgreSQL cannot keep.
        *('{"a": "\\u0000"}', '{"\\u0000": 1}', '{"a": "\\ud800"}', '{"a": 1e400}'),
        '{"a": "' + "x" * 8184 + '"}',
        '{"a": ' + "[" * 3000 + "]" * 3000 + "}",
    ],
)
def test_all_else_is_dropped(text: str) -> None:
    assert json_object(text) == ""


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(value=st.dictionaries(st.text(max_size=5), json_values, max_size=5))
def test_what_is_kept_says_the_same(value: dict[str, object]) -> None:
    said = json.dumps(value)
    kept = json_object(said)
    if kept:
        assert json.loads(kept) == value
    else:
        # NUL, half of a surrogate pair, or too much.
        assert "\\u0000" in said or "\\ud" in said or len(said) > 8192
