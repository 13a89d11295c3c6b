"""Which models a key may name: whole names, and beginnings that end with a star."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.model_pattern import allows, parse

names = st.from_regex(r"[A-Za-z0-9._:/@-]{1,200}", fullmatch=True)


@pytest.mark.parametrize("text", ["gpt-5", "gpt-*", "a", "a*", "meta/llama-3:70b@eu", "x" * 200, "x" * 200 + "*"])
def test_patterns(text: str) -> None:
    assert parse(text) == text


@pytest.mark.parametrize(
    "text", ["", "*", "**", "gpt-**", "*-mini", "g*t", "a b", "a\n", "modèle", "a,b", "x" * 201, "x" * 201 + "*", "?"]
)
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(ValueError, match="model"):
        parse(text)


@pytest.mark.parametrize(
    ("model", "allowed"),
    [
        *(("gpt-5", True), ("gpt-5-mini", True), ("gpt-", True), ("claude", True)),
        *(("gpt", False), ("GPT-5", False), ("claude-3", False), ("my-gpt-5", False), ("", False), ("*", False)),
    ],
)
def test_a_model_matches_a_name_or_a_beginning(model: str, *, allowed: bool) -> None:
    assert allows(("gpt-*", "claude"), model) is allowed


@given(st.text())
def test_without_patterns_every_model_may_be_named(model: str) -> None:
    assert allows((), model)


@given(names, st.text())
def test_a_star_stands_for_any_ending(name: str, ending: str) -> None:
    assert allows((parse(f"{name}*"),), name + ending)
    assert allows((parse(name),), name + ending) is (ending == "")
