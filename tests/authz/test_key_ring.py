"""The signing keys: which one signs when, what a Router must know, and a roll-over that nobody notices."""

import base64
import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import jwt
from hypothesis import given
from hypothesis import strategies as st

from authz.identity_token import ROUTER_AUDIENCE, IdentityTokens, verified
from authz.key_ring import JWKS_MAX_AGE_SECONDS, PUBLISH_AFTER, PUBLISH_AHEAD, KeyRing, SigningKey, generate, roll_over
from tests.support.values import grant

START = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def key(active_from: datetime = START, retired_at: datetime | None = None) -> SigningKey:
    return replace(generate(created_at=START, active_from=active_from), retired_at=retired_at)


def test_the_newest_active_key_signs() -> None:
    first, second, third = key(), key(START + 5 * MINUTE), key(START + 9 * MINUTE)
    ring = KeyRing((second, third, first))
    signers = [ring.signer(START + minutes * MINUTE) for minutes in (-1, 0, 4, 5, 8, 9, 99)]
    assert signers == [None, first, first, second, second, third, third]


def test_a_retired_key_neither_signs_nor_is_published() -> None:
    first, second = key(), key(START + MINUTE, retired_at=START + 5 * MINUTE)
    ring = KeyRing((first, second))
    before, after = START + 4 * MINUTE, START + 5 * MINUTE
    assert (ring.signer(before), ring.signer(after)) == (second, first)
    assert (ring.find(second.id, before), ring.find(second.id, after)) == (second, None)
    assert [found["kid"] for found in ring.jwks(before)["keys"]] == [second.id, first.id]
    assert [found["kid"] for found in ring.jwks(after)["keys"]] == [first.id]


def test_an_empty_ring_signs_and_publishes_nothing() -> None:
    assert KeyRing().signer(START) is None
    assert KeyRing().jwks(START) == {"keys": []}


def test_the_key_set_holds_public_keys_only_by_their_thumbprints() -> None:
    made = key()
    [published] = KeyRing((made,)).jwks(START)["keys"]
    assert set(published) == {"kty", "crv", "x", "kid", "use", "alg"}
    assert (published["kty"], published["crv"], published["use"], published["alg"]) == (
        "OKP",
        "Ed25519",
        "sig",
        "EdDSA",
    )
    public = made.public.public_bytes_raw()
    assert base64.urlsafe_b64decode(published["x"] + "=") == public
    thumbprint = hashlib.sha256(f'{{"crv":"Ed25519","kty":"OKP","x":"{published["x"]}"}}'.encode()).digest()
    assert base64.urlsafe_b64decode(published["kid"] + "=") == thumbprint
    secret = made.private.private_bytes_raw()
    for form in (base64.urlsafe_b64encode(secret).decode().rstrip("="), secret.hex(), repr(secret)):
        assert form not in json.dumps(published)
        assert form not in repr(made)
    assert "private" not in repr(made)


SECONDS = st.integers


class Delays(NamedTuple):
    """In seconds: how old the keys are of who signs, the token, its way, the Router's copy, the keys of who gave it."""

    signer: int
    token: int
    way: int
    copy: int
    publisher: int


DELAYS = st.builds(
    Delays,
    signer=SECONDS(0, 60),
    token=SECONDS(0, 29),
    way=SECONDS(0, 29),
    copy=SECONDS(0, JWKS_MAX_AGE_SECONDS),
    publisher=SECONDS(0, 60),
)


@given(rotations=st.lists(SECONDS(0, 3600), max_size=4).map(sorted), at=SECONDS(600, 7200), delays=DELAYS)
def test_no_roll_over_makes_a_router_refuse(rotations: list[int], at: int, delays: Delays) -> None:
    history = _history(rotations)
    made_at = START + timedelta(seconds=at)
    tokens = IdentityTokens(now=made_at.timestamp)
    tokens.use(_ring(history, made_at - timedelta(seconds=delays.signer)))
    token = tokens.for_router(grant())
    assert token is not None
    arrives = made_at + timedelta(seconds=delays.token + delays.way)
    fetched = arrives - timedelta(seconds=delays.copy)
    keys = _ring(history, fetched - timedelta(seconds=delays.publisher)).jwks(fetched)
    assert jwt.get_unverified_header(token.text)["kid"] in {published["kid"] for published in keys["keys"]}
    # Nor does the gateway itself.
    ring = _ring(history, arrives - timedelta(seconds=delays.publisher))
    assert verified(token.text, ring, audience=ROUTER_AUDIENCE, now=arrives) is not None


def _history(rotations: list[int]) -> list[tuple[datetime, KeyRing]]:
    """The ring from each moment on, as `store.signing_keys` would have it."""
    keys = [key()]
    history = [(START, KeyRing(tuple(keys)))]
    for seconds in rotations:
        now = START + timedelta(seconds=seconds)
        times = roll_over(now, at_once=False)
        keys = [
            replace(k, retired_at=min(k.retired_at or times.former_retire_at, times.former_retire_at)) for k in keys
        ]
        keys.append(generate(created_at=now, active_from=times.active_from))
        history.append((now, KeyRing(tuple(keys))))
    return history


def _ring(history: list[tuple[datetime, KeyRing]], at: datetime) -> KeyRing:
    return [ring for since, ring in history if since <= at][-1]


def test_the_times_of_a_roll_over_leave_room_for_every_delay() -> None:
    workers, skew = timedelta(seconds=60), timedelta(seconds=60)
    assert timedelta(seconds=JWKS_MAX_AGE_SECONDS) + 2 * workers + skew < PUBLISH_AHEAD
    assert timedelta(seconds=60) + workers + skew < PUBLISH_AFTER


def test_a_stolen_key_ends_at_once() -> None:
    times = roll_over(START, at_once=True)
    assert (times.active_from, times.former_retire_at) == (START, START)
