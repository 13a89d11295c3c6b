"""Which key opens, and until when?"""

from datetime import UTC, datetime, timedelta

import pytest

from authz.principal import Principal, Secret
from authz.proof import lives, opens
from tests.support.values import principal

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
JUST = timedelta(microseconds=1)
RIGHT, FORMER, OTHER = b"r" * 32, b"f" * 32, b"o" * 32
STORED = Secret(hash=RIGHT)


def _rotated(until: datetime) -> Principal:
    return principal(secrets=(STORED, Secret(hash=FORMER, expires_at=until)))


@pytest.mark.parametrize(
    ("stored", "presented", "found"),
    [
        (principal(secrets=(STORED,)), RIGHT, True),
        (principal(secrets=(STORED,)), OTHER, False),
        (principal(secrets=(STORED,)), RIGHT[::-1] + b"x", False),
        (principal(secrets=(Secret(hash=b""),)), RIGHT, False),
        (None, RIGHT, False),
        (None, bytes(32), False),
        (principal(secrets=()), bytes(32), False),
        (_rotated(NOW + JUST), RIGHT, True),
        (_rotated(NOW + JUST), FORMER, True),
        (_rotated(NOW), FORMER, False),
        (_rotated(NOW), RIGHT, True),
        (principal(secrets=(STORED,), revoked_at=NOW - JUST), RIGHT, False),
        (principal(secrets=(STORED,), revoked_at=NOW + timedelta(days=1)), RIGHT, False),
        (principal(secrets=(STORED,), expires_at=NOW), RIGHT, False),
        (principal(secrets=(STORED,), expires_at=NOW + JUST), RIGHT, True),
        # Whether its owner is suspended is another question: who holds the key may be told.
        (principal(secrets=(STORED,), suspended=True), RIGHT, True),
    ],
)
def test_which_key_opens(stored: Principal | None, presented: bytes, *, found: bool) -> None:
    assert opens(stored, presented, now=NOW) is found


@pytest.mark.parametrize("secrets", [(), (STORED,), (STORED, Secret(hash=FORMER, expires_at=NOW))])
def test_every_answer_takes_as_many_comparisons(monkeypatch: pytest.MonkeyPatch, secrets: tuple[Secret, ...]) -> None:
    made: list[bytes] = []

    def counted(presented: bytes, stored: bytes) -> bool:
        made.append(stored)
        return presented == stored

    monkeypatch.setattr("authz.proof.hmac.compare_digest", counted)
    for presented in (RIGHT, OTHER, FORMER):
        for stored in (principal(secrets=secrets), None):
            opens(stored, presented, now=NOW)
            assert [len(one) for one in made] == [32, 32]
            made.clear()


def test_a_life_ends_at_its_end() -> None:
    assert lives(principal(), now=NOW)
    assert not lives(principal(revoked_at=NOW), now=NOW)
    assert not lives(principal(expires_at=NOW), now=NOW)
    assert lives(principal(expires_at=NOW + JUST), now=NOW)


def test_a_hash_is_not_shown() -> None:
    assert "rrr" not in repr(principal(secrets=(STORED,)))
