"""Refused credentials on their way into the audit trail: each kind soon, again and again only in sums, none lost."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import msgspec
import pytest

from authz.refusal import Reason
from authz.service import RefusedCredential
from sidecar import refused_credentials
from sidecar.refused_credentials import RefusedCredentials
from store.database import DatabaseOutage, Pool, open_pool
from tests.support.identity_rows import NOON, PEPPER

REFUSED = RefusedCredential(
    reason=Reason.INSUFFICIENT_SCOPE,
    fingerprint="key:7Kq2mWZp4TsB",
    tenant_id="ten_a",
    address="192.0.2.7",
    request_id="r",
    method="POST",
    path="/v1/infer",
)


@dataclass(slots=True)
class Times:
    now: datetime = NOON
    dropped: list[None] = field(default_factory=list)

    def queue(self, pool: Pool) -> RefusedCredentials:
        return RefusedCredentials(
            pool, pepper=PEPPER, now=lambda: self.now, observe_dropped=lambda: self.dropped.append(None)
        )


@pytest.fixture
def times() -> Times:
    return Times()


async def _written(pool: Pool) -> list[tuple[str, int]]:
    rows = await pool.fetch("SELECT subject, after FROM audit ORDER BY number")
    return [(row["subject"], msgspec.json.decode(row["after"])["times"]) for row in rows]


async def test_the_first_is_written_at_once_and_what_follows_in_sums(pool: Pool, times: Times) -> None:
    queue = times.queue(pool)
    queue.note(REFUSED)
    await queue.flush()
    assert await _written(pool) == [(REFUSED.fingerprint, 1)]
    for _ in range(1000):
        queue.note(REFUSED)
        times.now += timedelta(milliseconds=5)
        await queue.flush()
    assert await _written(pool) == [(REFUSED.fingerprint, 1)]
    times.now += timedelta(seconds=10)
    await queue.flush()
    assert await _written(pool) == [(REFUSED.fingerprint, 1), (REFUSED.fingerprint, 1000)]


async def test_at_the_end_everything_is_written(pool: Pool, times: Times) -> None:
    queue = times.queue(pool)
    for _ in range(2):
        queue.note(REFUSED)
        await queue.flush()
    await queue.flush(everything=True)
    assert [count for _, count in await _written(pool)] == [1, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"reason": Reason.TENANT_SUSPENDED},
        {"fingerprint": "key:other"},
        {"address": "192.0.2.8"},
        {"method": "GET"},
        {"path": "/v1/models"},
    ],
)
async def test_what_differs_is_a_row_of_its_own(pool: Pool, times: Times, change: dict[str, object]) -> None:
    queue = times.queue(pool)
    queue.note(REFUSED)
    queue.note(replace(REFUSED, **change))  # type: ignore[arg-type]
    await queue.flush()
    assert len(await _written(pool)) == 2


async def test_an_outage_keeps_what_waits(pool: Pool, times: Times) -> None:
    out = await open_pool("postgresql://postgres@/gateway?host=/nowhere")
    queue = times.queue(out)
    for _ in range(3):
        queue.note(REFUSED)
        with pytest.raises(DatabaseOutage):
            await queue.flush()
    await out.close()
    queue._pool = pool  # the same database, healed
    await queue.flush()
    assert await _written(pool) == [(REFUSED.fingerprint, 3)]


async def test_beyond_its_room_it_counts_what_it_drops(
    pool: Pool, times: Times, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refused_credentials, "_CAPACITY", 2)
    queue = times.queue(pool)
    for number in range(5):
        queue.note(replace(REFUSED, fingerprint=f"key:{number}"))
    assert len(times.dropped) == 3
    await queue.flush()
    assert len(await _written(pool)) == 2
