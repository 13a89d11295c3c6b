"""Which keys of a JWK Set are taken, and which are left out."""

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import RSAAlgorithm

from authz.json_web_key import ALGORITHMS, MAX_DOCUMENT_BYTES, MAX_KEYS, Key, fitting, read, read_object
from tests.support.oidc import SigningKey

ES, RS, ED = (SigningKey.generate(alg, alg) for alg in ("ES256", "RS256", "EdDSA"))


def _read(*keys: Any) -> tuple[Key, ...]:
    return read(json.dumps({"keys": keys}).encode())


def _small() -> dict[str, Any]:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - it is to be refused
    return RSAAlgorithm.to_jwk(weak.public_key(), as_dict=True)


def test_public_keys_of_every_type_are_taken() -> None:
    found = _read(*(key.jwk for key in (ES, RS, ED)))
    assert [(key.kid, *key.algorithms) for key in found] == [(name, name) for name in ("ES256", "RS256", "EdDSA")]


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_key_without_an_algorithm_fits_what_its_type_can(alg: str) -> None:
    [key] = _read({**SigningKey.generate(alg).jwk, "alg": None, "use": None})
    assert alg in key.algorithms
    assert key.algorithms <= set(ALGORITHMS)
    assert all(name.startswith(("RS", "PS")) for name in key.algorithms) or key.algorithms == {alg}


@pytest.mark.parametrize(
    "jwk",
    [
        {**ES.jwk, "use": "enc"},
        {**ES.jwk, "key_ops": ["encrypt"]},
        {**ES.jwk, "d": "a"},
        {**ES.jwk, "kid": 7},
        {**ES.jwk, "alg": "HS256"},
        {**ES.jwk, "alg": "ES384"},
        {**ES.jwk, "crv": "secp256k1"},
        {**ES.jwk, "x": "AAAA"},
        {**ES.jwk, "x": "?"},
        {**ES.jwk, "y": ES.jwk["x"]},
        {**RS.jwk, "alg": "HS256"},
        {**RS.jwk, "alg": "RSA-OAEP"},
        {**RS.jwk, "n": ""},
        {**RS.jwk, "e": "AA"},
        {**ED.jwk, "crv": "X25519"},
        {**ED.jwk, "x": "AAAA"},
        {"kty": "RSA"},
        {"kty": "EC", "crv": "P-256"},
        {"kty": "OKP", "crv": "Ed25519"},
        {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"},
        {"kty": "oct", "k": "c2VjcmV0", "alg": "RS256"},
        {"kid": "x"},
        _small(),
        None,
        "key",
    ],
)
def test_a_key_that_is_something_else_or_broken_is_left_out(jwk: Any) -> None:
    assert [key.kid for key in _read(jwk, ED.jwk)] == [ED.kid]


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{}",
        b"[]",
        b'{"keys": {}}',
        b"<html>",
        b'{"keys":' + b"[" * 20_000,
        json.dumps({"keys": [{}] * (MAX_KEYS + 1)}).encode(),
        json.dumps({"keys": [ES.jwk], "x": "x" * MAX_DOCUMENT_BYTES}).encode(),
    ],
)
def test_what_is_no_set_or_too_large_is_refused(document: bytes) -> None:
    with pytest.raises(ValueError, match=r"^(is|holds) "):
        read(document)


def test_an_empty_set_is_one() -> None:
    assert _read() == ()
    assert read_object({"keys": []}) == ()


def test_doubles_count_once_and_a_name_says_everything() -> None:
    assert len(_read(ES.jwk, ES.jwk)) == 1
    names = {key.name for key in _read(ES.jwk, {**ES.jwk, "kid": "other"}, SigningKey.generate("ES256", "ES256").jwk)}
    assert len(names) == 3


def test_the_one_key_that_fits_is_found() -> None:
    keys = _read(ES.jwk, RS.jwk, {**ED.jwk, "kid": "ES256"})
    assert [fitting(keys, "ES256", alg) for alg in ("ES256", "EdDSA", "RS256")] == [keys[0], keys[2], None]
    assert fitting(keys, None, "RS256") is keys[1]
    assert fitting(keys, "other", "RS256") is None


def test_one_of_several_is_not_guessed() -> None:
    keys = _read(ES.jwk, SigningKey.generate("ES256", "b").jwk)
    assert fitting(keys, None, "ES256") is None
    assert fitting(_read(ES.jwk, SigningKey.generate("ES256", "ES256").jwk), "ES256", "ES256") is None


_JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x, max_size=3))
_MEMBERS = st.sampled_from(["kty", "crv", "x", "y", "n", "e", "alg", "use", "kid", "key_ops"])


@given(st.sampled_from([ES, RS, ED]), st.dictionaries(_MEMBERS, _JSON, max_size=3))
def test_any_key_can_be_read(key: SigningKey, changes: dict[str, Any]) -> None:
    assert len(read_object({"keys": [{**key.jwk, **changes}]})) <= 1


@given(st.binary())
def test_any_document_is_a_set_or_refused(document: bytes) -> None:
    try:
        read(document)
    except ValueError:
        return
