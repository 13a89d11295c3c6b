"""The text of an API key: one format, typos are seen, and nothing that is shown holds the secret."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.api_key import ApiKey, generate, keyed_hash, parse

ALPHABET = string.digits + string.ascii_letters
# Made once: what hypothesis draws must not depend on chance.
keys = st.sampled_from([generate().text for _ in range(20)])
tags = st.text(string.ascii_lowercase, min_size=1, max_size=12)
# Texts near a key reach further into the reader than arbitrary ones.
near_keys = st.from_regex(r"igw_[a-z]{1,12}_[0-9A-Za-z]{12}_[0-9A-Za-z]{43}_[0-9A-Za-z]{6}", fullmatch=True)


@given(tags)
def test_what_is_generated_is_read_back(tag: str) -> None:
    key = generate(tag)
    assert parse(key.text) == key
    prefix, read_tag, public_id, secret, checksum = key.text.split("_")
    assert (prefix, read_tag, public_id) == ("igw", tag, key.id)
    assert [len(part) for part in (public_id, secret, checksum)] == [12, 43, 6]


@given(st.text() | near_keys)
def test_any_text_can_be_read(text: str) -> None:
    assert parse(text) is None or parse(text) == ApiKey(tag=text.split("_")[1], id=text.split("_")[2], text=text)


@given(st.data())
def test_one_wrong_character_is_seen(data: st.DataObject) -> None:
    text = data.draw(keys)
    place = data.draw(st.integers(0, len(text) - 1))
    any_character = st.sampled_from(ALPHABET + "_- \n") | st.characters()  # half surrogate pairs included
    wrong = data.draw(any_character.filter(lambda char: char != text[place]))
    assert parse(text[:place] + wrong + text[place + 1 :]) is None


@given(st.data())
def test_one_character_too_few_or_too_many_is_seen(data: st.DataObject) -> None:
    text = data.draw(keys)
    place = data.draw(st.integers(0, len(text) - 1))
    more = data.draw(st.sampled_from(ALPHABET + "_"))
    assert parse(text[:place] + text[place + 1 :]) is None
    assert parse(text[:place] + more + text[place:]) is None


@given(tags)
def test_a_rotated_key_has_the_id_of_the_former_and_another_secret(tag: str) -> None:
    former = generate(tag)
    key = generate(tag, public_id=former.id)
    assert (key.tag, key.id) == (tag, former.id)
    assert key.text.split("_")[3] != former.text.split("_")[3]
    assert parse(key.text) == key


@pytest.mark.parametrize("public_id", ["short", "x" * 13, "with_a_score", "with-a-dash!", "x" * 11 + "\n"])
def test_a_public_id_is_twelve_letters_and_digits(public_id: str) -> None:
    with pytest.raises(ValueError, match="public id"):
        generate(public_id=public_id)


@given(st.data())
def test_two_neighbours_in_the_wrong_order_are_seen(data: st.DataObject) -> None:
    text = data.draw(keys)
    place = data.draw(st.integers(0, len(text) - 2).filter(lambda place: text[place] != text[place + 1]))
    assert parse(text[:place] + text[place + 1] + text[place] + text[place + 2 :]) is None


@pytest.mark.parametrize("around", [" {}", "{} ", "{}\n", "\n{}", "Bearer {}", "{}{}"])
def test_nothing_may_stand_around_a_key(around: str) -> None:
    text = generate().text
    assert parse(around.format(text, text)) is None


@pytest.mark.parametrize("tag", ["", "Live", "live1", "li_ve", "x" * 13, "ä"])
def test_a_tag_is_a_few_lower_case_letters(tag: str) -> None:
    with pytest.raises(ValueError, match="tag"):
        generate(tag)


def test_every_key_is_another() -> None:
    keys = [generate() for _ in range(1000)]
    assert len({key.id for key in keys}) == len({key.text for key in keys}) == 1000


def test_the_secret_does_not_show() -> None:
    key = generate()
    assert key.text not in repr(key)
    assert key.text.split("_")[3] not in repr(key)
    assert key.id in repr(key)


def test_the_hash_depends_on_the_key_and_on_the_pepper() -> None:
    one, other = generate().text, generate().text
    hashes = {keyed_hash(text, pepper) for text in (one, other) for pepper in (b"a" * 32, b"b" * 32)}
    assert len(hashes) == 4
    assert {len(found) for found in hashes} == {32}
    assert keyed_hash(one, b"a" * 32) == keyed_hash(one, b"a" * 32)
