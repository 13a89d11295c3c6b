"""The keys of a real issuer: rotated, unknown, slow, down and back."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import pytest

from authz.issuer import Issuer
from authz.json_web_key import Key
from authz.key_set import FetchFailed, KeySet, KeySetStatus, KeysUnavailable, Pace, StaticKeySet
from sidecar.jwks_client import JwksClient
from tests.support.oidc import OidcIssuer, SigningKey, running_issuer

CALLERS = 100
AGED = 201.0


@dataclass(slots=True)
class Seconds:
    """A clock that a test turns by hand."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(slots=True)
class Watched:
    """A KeySet of an issuer, its clock, and what it told its observer."""

    oidc: OidcIssuer
    keys: KeySet
    clock: Seconds
    told: list[KeySetStatus] = field(default_factory=list)

    async def find(self) -> Key | None:
        """The key that the issuer signs with now."""
        key = self.oidc.key()
        return await self.keys.find(key.kid, key.alg)

    async def told_times(self, times: int) -> None:
        async with asyncio.timeout(20):
            while len(self.told) < times:  # noqa: ASYNC110 - the observer is a plain list
                await asyncio.sleep(0.005)


@pytest.fixture
def oidc() -> Iterator[OidcIssuer]:
    with running_issuer() as issuer:
        yield issuer


@pytest.fixture
async def client() -> AsyncIterator[JwksClient]:
    client = JwksClient(deadline_seconds=20)
    yield client
    await client.aclose()


@pytest.fixture
def watched(oidc: OidcIssuer, client: JwksClient) -> Watched:
    return _watched(oidc, client, Pace(patience=20))


def _watched(oidc: OidcIssuer, client: JwksClient, pace: Pace) -> Watched:
    clock = Seconds()
    told: list[KeySetStatus] = []
    issuer = Issuer(issuer=oidc.url, audiences=("a",), jwks_url=oidc.jwks_url)
    return Watched(oidc, KeySet(issuer, client, now=clock, observe=told.append, pace=pace), clock, told)


async def _nobody_knows(keys: KeySet, kid: str) -> bool:
    try:
        await keys.find(kid, "ES256")
    except KeysUnavailable:
        return True
    return False


async def test_the_first_callers_share_one_fetch(watched: Watched) -> None:
    found = await asyncio.gather(*(watched.find() for _ in range(CALLERS)))
    assert len({key.name for key in found if key is not None}) == 1
    assert None not in found
    assert watched.oidc.fetches == 1
    assert await watched.find() is found[0]
    assert watched.oidc.fetches == 1


async def test_a_caller_that_leaves_does_not_end_the_flight_of_the_others(watched: Watched) -> None:
    with watched.oidc.slow():
        leaver, stayer = asyncio.create_task(watched.find()), asyncio.create_task(watched.find())
        await watched.oidc.fetched(1)
        leaver.cancel()
    assert await stayer is not None
    assert watched.oidc.fetches == 1


async def test_an_ageing_set_is_read_anew_while_it_serves(watched: Watched) -> None:
    key = await watched.find()
    watched.oidc.add_key()
    watched.clock.now += AGED
    with watched.oidc.slow():
        assert key is not None
        assert watched.keys.holds(key)
        assert await watched.keys.find(key.kid, "ES256") is key
        await watched.oidc.fetched(2)
        assert watched.keys.status.age_seconds == AGED
    await watched.told_times(2)
    assert watched.keys.status == KeySetStatus(issuer=watched.oidc.url, keys=2, age_seconds=0.0)
    assert watched.oidc.fetches == 2


async def test_a_set_is_not_read_anew_before_its_time(watched: Watched) -> None:
    await watched.find()
    watched.clock.now += AGED - 1
    watched.keys.tend()
    await asyncio.sleep(0)
    assert watched.oidc.fetches == 1
    assert watched.told[-1].age_seconds == AGED - 1


async def test_a_new_key_is_found_at_once_and_an_old_one_is_gone(watched: Watched) -> None:
    old = await watched.find()
    watched.oidc.rotate()
    found = await asyncio.gather(*(watched.find() for _ in range(CALLERS)))
    assert {key.kid for key in found if key} == {watched.oidc.key().kid}
    assert watched.oidc.fetches == 2
    assert old is not None
    assert not watched.keys.holds(old)
    assert await watched.keys.find(old.kid, "ES256") is None


async def test_a_key_taken_out_is_gone_with_the_next_refresh(watched: Watched) -> None:
    old = await watched.find()
    assert old is not None
    assert old.kid is not None
    watched.oidc.add_key()
    watched.oidc.retire(old.kid)
    watched.clock.now += AGED
    watched.keys.tend()
    assert watched.keys.holds(old)
    await watched.told_times(3)
    assert not watched.keys.holds(old)


async def test_unknown_keys_make_for_one_fetch_an_interval_whoever_asks(watched: Watched) -> None:
    await watched.find()
    for _ in range(2):
        found = await asyncio.gather(*(watched.keys.find(f"unknown-{at}", "ES256") for at in range(CALLERS)))
        assert set(found) == {None}
        assert watched.oidc.fetches == 2
    watched.clock.now += 9
    assert await watched.keys.find("unknown", "ES256") is None
    assert watched.oidc.fetches == 2
    watched.clock.now += 1
    assert await watched.keys.find("unknown", "ES256") is None
    assert watched.oidc.fetches == 3


async def test_a_first_fetch_that_does_not_bring_the_key_is_not_repeated(watched: Watched) -> None:
    assert await watched.keys.find("unknown", "ES256") is None
    assert watched.oidc.fetches == 1


async def test_an_issuer_that_is_down_from_the_start_is_asked_again_later(watched: Watched) -> None:
    watched.oidc.down()
    kid = watched.oidc.key().kid
    assert await _nobody_knows(watched.keys, kid)
    assert await _nobody_knows(watched.keys, kid)
    [failure] = watched.told
    assert (failure.age_seconds, failure.failures) == (None, 1)
    assert failure.error
    watched.oidc.up()
    assert await _nobody_knows(watched.keys, kid), "it has just failed"
    watched.clock.now += 1
    assert await watched.find() is not None
    assert watched.told[-1] == KeySetStatus(issuer=watched.oidc.url, keys=1, age_seconds=0.0)


async def test_fetches_that_fail_come_ever_less_often(watched: Watched) -> None:
    watched.oidc.down()
    waits = []
    for _ in range(6):
        began = watched.clock.now
        attempts = watched.keys.status.failures
        while watched.keys.status.failures == attempts:
            assert await _nobody_knows(watched.keys, "k")
            if watched.keys.status.failures == attempts:
                watched.clock.now += 0.5
        waits.append(watched.clock.now - began)
    assert waits == [0, 1, 2, 4, 8, 10]


async def test_the_last_good_set_is_kept_for_ever(watched: Watched) -> None:
    key = await watched.find()
    assert key is not None
    watched.oidc.down()
    for _ in range(3):
        watched.clock.now += 1_000_000
        assert watched.keys.holds(key)
        assert await watched.keys.find(key.kid, "ES256") is key
        assert await _nobody_knows(watched.keys, "unknown"), "whether the issuer has it cannot be known"
        assert await _nobody_knows(watched.keys, "unknown")
    assert watched.keys.status.age_seconds == 3_000_000
    assert watched.keys.status.failures == 3
    watched.oidc.up()
    watched.clock.now += 10
    watched.oidc.add_key()
    assert await watched.find() is not None
    assert watched.keys.status.age_seconds == 0


async def test_a_slow_issuer_delays_nobody_whose_key_is_held_and_others_not_for_long(
    oidc: OidcIssuer, client: JwksClient
) -> None:
    watched = _watched(oidc, client, Pace(patience=0.05))
    with oidc.slow():
        assert await _nobody_knows(watched.keys, oidc.key().kid)
    await watched.told_times(1)
    key = await watched.find()
    assert key is not None
    with oidc.slow():
        assert await _nobody_knows(watched.keys, "unknown")
        await oidc.fetched(2)
        for _ in range(100):
            assert await watched.keys.find(key.kid, "ES256") is key
            assert watched.keys.holds(key)


class _Documents:
    """A Fetch that gives one document after the other."""

    def __init__(self, *documents: bytes | Exception) -> None:
        self._documents = list(documents)

    async def __call__(self, url: str, /) -> bytes:
        assert url == "https://id.example/jwks"
        document = self._documents.pop(0)
        if isinstance(document, Exception):
            raise document
        return document


@pytest.mark.parametrize("broken", [b"<html>sorry</html>", b"{}", b"x" * 300_000, FetchFailed("no")])
async def test_what_is_no_key_set_does_not_take_the_place_of_one(broken: bytes | Exception) -> None:
    key = SigningKey.generate()
    clock, told = Seconds(), list[KeySetStatus]()
    issuer = Issuer(issuer="i", audiences=("a",), jwks_url="https://id.example/jwks")
    good = json.dumps({"keys": [key.jwk]}).encode()
    keys = KeySet(issuer, _Documents(good, broken, good), now=clock, observe=told.append)
    found = await keys.find(key.kid, "ES256")
    assert found is not None
    assert await _nobody_knows(keys, "unknown")
    assert keys.holds(found)
    assert told[-1].failures == 1
    assert "sorry" not in told[-1].error
    clock.now += 10
    assert await keys.find("unknown", "ES256") is None
    assert await keys.find(key.kid, "ES256") is found, "an unchanged document is not read anew"


async def test_who_asks_in_the_moment_of_landing_is_not_taken_for_a_late_passenger() -> None:
    first, second = SigningKey.generate(), SigningKey.generate()
    issuer = Issuer(issuer="i", audiences=("a",), jwks_url="https://id.example/jwks")
    documents = (json.dumps({"keys": keys}).encode() for keys in ([first.jwk], [first.jwk, second.jwk]))
    landed = asyncio.Event()
    keys = KeySet(issuer, _Documents(*documents), now=Seconds(), observe=lambda _: landed.set())

    async def ask() -> Key | None:
        await landed.wait()
        return await keys.find(second.kid, "ES256")

    asked = asyncio.create_task(ask())
    assert await keys.find(first.kid, "ES256") is not None
    assert await asked is not None


async def test_a_bug_in_the_fetch_is_told_and_not_repeated_at_once() -> None:
    issuer = Issuer(issuer="i", audiences=("a",), jwks_url="https://id.example/jwks")
    keys = KeySet(issuer, _Documents(ZeroDivisionError()), now=Seconds())
    with pytest.raises(ZeroDivisionError):
        await keys.find("k", "ES256")
    assert await _nobody_knows(keys, "k")


async def test_static_keys_are_those_of_the_settings() -> None:
    key = SigningKey.generate()
    keys = StaticKeySet(Issuer(issuer="i", audiences=("a",), keys={"keys": [key.jwk]}))
    found = await keys.find(key.kid, "ES256")
    assert found is not None
    assert keys.holds(found)
    assert await keys.find("other", "ES256") is None
    keys.tend()
