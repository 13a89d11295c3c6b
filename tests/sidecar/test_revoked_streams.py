"""Which of a worker's requests end when something changes: those of who may not go on, when that is known."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from extproc.holder import Holder, holder_of
from extproc.inline import InlineResponse
from extproc.lifecycle import Cause
from extproc.live import LiveRequest, LiveRequests
from sidecar.revoked_streams import RevokedStreams
from store.database import DatabaseOutage
from tests.extproc.memory_stream import MemoryStream
from tests.support.gateway import until
from tests.support.values import NOON_MS, admission, arrival


@dataclass(slots=True)
class _Worker:
    """A worker that holds requests; `fallen` are the keys of those who may not go on."""

    fallen: set[str] = field(default_factory=set)
    out: bool = False
    looks: int = 0
    live: LiveRequests = field(default_factory=lambda: LiveRequests(observe=lambda _: None))
    requests: dict[str, LiveRequest] = field(default_factory=dict)

    def run(self, key_id: str) -> None:
        request = LiveRequest(MemoryStream(), arrival(request_id=key_id), now=lambda: NOON_MS / 1000)
        self.live.add(request)
        admitted = admission(request_id=key_id, key_id=key_id, principal_id=f"key_{key_id}")
        request.let_pass(b"", admitted, InlineResponse(strip_usage=False))
        self.requests[key_id] = request

    @property
    def stopped(self) -> set[str]:
        return {key_id for key_id, request in self.requests.items() if request.stopped is Cause.REVOKED}

    async def find(self, holders: set[Holder]) -> set[Holder]:
        self.looks += 1
        if self.out:
            raise DatabaseOutage("the test says so")
        assert holders == {holder_of(each.admission) for each in self.requests.values() if each.admission}
        return {holder for holder in holders if holder.key_id in self.fallen}


@asynccontextmanager
async def _watching(worker: _Worker) -> AsyncIterator[RevokedStreams]:
    streams = RevokedStreams(worker.live, worker.find)
    task = asyncio.create_task(streams.run())
    try:
        yield streams
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    "change", ["api_keys:a:7", "tenants:ten_a:7", "organizations:org_a:7", "workloads:spiffe://x/y:7", "*", None]
)
async def test_a_change_that_concerns_a_request_is_looked_into(change: str | None) -> None:
    worker = _Worker(fallen={"a"})
    worker.run("a")
    worker.run("b")
    async with _watching(worker) as streams:
        streams.announce(change)

        async def ended() -> bool:
            return worker.stopped == {"a"}

        await until(ended, seconds=2)


@pytest.mark.parametrize("change", ["api_keys:other:7", "tenants:ten_b:7", "roles:admin:7", "signing_keys:k:7"])
async def test_other_changes_are_not(change: str) -> None:
    worker = _Worker(fallen={"a"})
    worker.run("a")
    async with _watching(worker) as streams:
        streams.announce(change)
        await asyncio.sleep(0.05)  # nothing is to happen
    assert worker.looks == 0


async def test_what_was_being_admitted_at_the_change_is_found_by_a_second_look() -> None:
    worker = _Worker(fallen={"late"})
    worker.run("a")
    async with _watching(worker) as streams:
        streams.announce("api_keys:a:7")

        async def looked() -> bool:
            return worker.looks == 1

        await until(looked)
        worker.run("late")

        async def ended() -> bool:
            return worker.stopped == {"late"}

        await until(ended, seconds=3)


async def test_nobody_is_ended_while_it_is_not_known() -> None:
    worker = _Worker(fallen={"a"}, out=True)
    worker.run("a")
    async with _watching(worker) as streams:
        streams.announce("api_keys:a:7")

        async def looked_twice() -> bool:
            return worker.looks == 2

        await until(looked_twice)
        assert worker.stopped == set()
        worker.out = False
        streams.announce("api_keys:a:7")

        async def ended() -> bool:
            return worker.stopped == {"a"}

        await until(ended)
