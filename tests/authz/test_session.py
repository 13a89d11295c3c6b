"""A session's token: one format, typos are seen, nothing shown holds the secret; and how a browser carries it."""

import string
from http.cookies import SimpleCookie
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz import api_key
from authz.session import (
    COOKIE_NAME,
    SessionToken,
    clear_cookie,
    csrf_matches,
    csrf_token,
    from_cookie,
    generate,
    keyed_hash,
    parse,
    set_cookie,
)

PEPPER, OTHER_PEPPER = b"a" * 32, b"b" * 32
TOKEN = generate(7)
shards = st.integers(0, 99)
# Texts near a token, or near its cookie, reach further into the reader than arbitrary ones.
near_tokens = st.from_regex(r"igs_[0-9]{2}[0-9A-Za-z]{10}_[0-9A-Za-z]{43}_[0-9A-Za-z]{6}", fullmatch=True)
near_cookies = st.lists(
    st.one_of(st.just(COOKIE_NAME), st.sampled_from(["=", ";", "; ", " ", '"', ",", "a", "\t"]), st.text(max_size=3))
).map("".join)


@given(shards)
def test_what_is_generated_is_read_back(shard: int) -> None:
    token = generate(shard)
    assert parse(token.text) == token
    prefix, public, secret, checksum = token.text.split("_")
    assert (prefix, f"ses_{public}", token.shard) == ("igs", token.id, shard)
    assert [len(part) for part in (public, secret, checksum)] == [12, 43, 6]
    assert public.startswith(f"{shard:02}")


@given(st.text() | near_tokens)
def test_any_text_can_be_read(text: str) -> None:
    found = parse(text)
    assert found is None or found == SessionToken(id=f"ses_{text[4:16]}", shard=int(text[4:6]), text=text)


@given(place=st.integers(0, len(TOKEN.text) - 1), wrong=st.sampled_from(string.digits + string.ascii_letters + "_- \n"))
def test_one_wrong_character_is_seen(place: int, wrong: str) -> None:
    text = TOKEN.text[:place] + wrong + TOKEN.text[place + 1 :]
    assert parse(text) == (TOKEN if text == TOKEN.text else None)


@pytest.mark.parametrize("around", [" {}", "{} ", "{}\n", "Bearer {}", "{}{}"])
def test_nothing_may_stand_around_a_token(around: str) -> None:
    text = generate(7).text
    assert parse(around.format(text, text)) is None


@pytest.mark.parametrize("shard", [-1, 100, -10])
def test_a_shard_has_two_digits(shard: int) -> None:
    with pytest.raises(ValueError, match="shard"):
        generate(shard)


def test_a_key_is_no_token_and_a_token_no_key() -> None:
    assert parse(api_key.generate().text) is None
    assert api_key.parse(generate(0).text) is None


def test_every_token_is_another() -> None:
    tokens = [generate(3) for _ in range(1000)]
    assert len({token.id for token in tokens}) == len({token.text for token in tokens}) == 1000


def test_the_secret_does_not_show() -> None:
    token = generate(7)
    assert token.text.split("_")[2] not in repr(token)
    assert token.id in repr(token)


def test_what_is_made_of_a_token_depends_on_token_pepper_and_purpose() -> None:
    tokens, peppers = (generate(7), generate(7)), (PEPPER, OTHER_PEPPER)
    made = {keyed_hash(token, pepper).hex() for token in tokens for pepper in peppers}
    made |= {csrf_token(token, pepper) for token in tokens for pepper in peppers}
    made |= {api_key.keyed_hash(token.text, pepper).hex() for token in tokens for pepper in peppers}
    assert len(made) == 12
    assert keyed_hash(tokens[0], PEPPER) == keyed_hash(tokens[0], PEPPER)


def test_the_csrf_token_can_stand_in_a_header_and_does_not_hold_the_secret() -> None:
    token = generate(7)
    csrf = csrf_token(token, PEPPER)
    assert set(csrf) <= set(string.ascii_letters + string.digits + "-_")
    assert len(csrf) == 43
    assert token.text.split("_")[2] not in csrf


@given(st.text(st.characters()))
def test_only_the_right_csrf_token_matches(shown: str) -> None:
    csrf = csrf_token(generate(7), PEPPER)
    assert csrf_matches(csrf, csrf)
    assert not csrf_matches(csrf, shown)
    assert not csrf_matches(csrf, csrf + shown + "x")


@given(st.text() | near_cookies)
def test_any_cookie_header_can_be_read(header: str) -> None:
    found = from_cookie(header)
    assert found is None or (found and found in header and ";" not in found)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("", None),
        ("other=1", None),
        ("{}=x", "x"),
        ("a=b; {}=x; c=d", "x"),
        ("a=b;{}=x;c=d", "x"),
        ("a=b; {} = x ; c", "x"),
        ("{}=x=y==", "x=y=="),
        ("{}=x; {}=x", "x"),
        # Which of the two is the browser's, and which somebody planted, cannot be told.
        ("{}=x; {}=y", None),
        ("{}=x; {}=", None),
        ("{}=", None),
        ("{}", None),
        ("x{}=x", None),
        ("{}x=x", None),
        ("a={}", None),
        ("a={}=x", None),
    ],
)
def test_the_token_is_picked_out_of_the_cookies(header: str, value: str | None) -> None:
    assert from_cookie(header.replace("{}", COOKIE_NAME)) == value


@pytest.mark.parametrize("spelled", [COOKIE_NAME.lower(), COOKIE_NAME.upper()])
def test_the_name_of_a_cookie_is_spelled_one_way(spelled: str) -> None:
    assert from_cookie(f"{spelled}=x") is None


def test_a_cookie_is_set_so_that_a_browser_keeps_it_to_itself() -> None:
    token = generate(7)
    header = set_cookie(token, 3600)
    morsel = SimpleCookie(header)[COOKIE_NAME]
    assert morsel.value == token.text
    assert (morsel["path"], morsel["domain"], morsel["max-age"], morsel["samesite"]) == ("/", "", "3600", "Strict")
    assert morsel["secure"]
    assert morsel["httponly"]
    assert from_cookie(header.partition(";")[0]) == token.text


def test_a_cleared_cookie_is_gone_and_is_the_same_cookie() -> None:
    morsel = SimpleCookie(clear_cookie())[COOKIE_NAME]
    assert (morsel.value, morsel["max-age"], morsel["path"]) == ("", "0", "/")
    # Browsers refuse to touch a __Host- cookie without these.
    attributes = [
        header.partition("; ")[2].partition("; ")[2] for header in (clear_cookie(), set_cookie(generate(7), 1))
    ]
    assert all(one == other for one, other in pairwise(attributes))
