"""What a cancel does and answers, by itself: who holds the stream is played by the test."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from control.cancel import Outcome, Stopping
from extproc.lifecycle import Cause, State
from extproc.record import UsageRecord
from quota.pipe import RedisPipe
from quota.redis import RedisReservations
from quota.redis_stops import FOLLOW_DEADLINE_SECONDS, RedisStops
from store import ledger
from tests.control.conftest import Api, pipe_to
from tests.control.test_requests import THEIRS, run, settle
from tests.quota.own_redis import OwnRedis, running
from tests.support.records import usage_record

CANCELLED = usage_record(state=State.CANCELLED, cause=Cause.CLIENT_CANCEL, cached_tokens=3, reasoning_tokens=2)
REQUEST_ID = CANCELLED.admission.request_id


@dataclass(slots=True)
class Cancels:
    """The API, and what it asked for."""

    api: Api
    pipe: RedisPipe
    router: list[str] = field(default_factory=list)
    observed: list[Outcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.api.stopping = Stopping(
            marks=RedisReservations(self.pipe),
            stops=RedisStops(self.pipe),
            ask_router=self.router.append,
            observe=lambda outcome, _: self.observed.append(outcome),
        )

    async def call(self, request_id: str = REQUEST_ID, **request: Any) -> httpx.Response:
        return await self.api.call("POST", f"/v1/requests/{request_id}/cancel", **request)


@pytest.fixture
def cancels(api: Api, pipe: RedisPipe) -> Cancels:
    return Cancels(api, pipe)


@pytest.fixture
async def worker(redis_server: OwnRedis, pipe: RedisPipe) -> AsyncIterator[list[tuple[str, str]]]:
    """Who holds the request CANCELLED: it settles what it is asked to stop. Gives what it was asked."""
    asked: list[tuple[str, str]] = []

    async def work() -> None:
        async with pipe_to(redis_server, deadline=FOLLOW_DEADLINE_SECONDS) as own:
            ready.set()
            async for request_id, why in RedisStops(own).follow():
                asked.append((request_id, why))
                if request_id == REQUEST_ID:
                    await settle(pipe, CANCELLED)

    ready = asyncio.Event()
    task = asyncio.create_task(work())
    await ready.wait()
    yield asked
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    return error


async def test_a_cancel_waits_for_the_end_and_shows_it(
    cancels: Cancels, pipe: RedisPipe, worker: list[tuple[str, str]]
) -> None:
    await run(pipe, CANCELLED)
    answer = await cancels.call()
    while answer.status_code == 202:  # the worker may have begun to follow after the first call
        answer = await cancels.call()
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["id"], told["object"], told["cancelling"]) == (REQUEST_ID, "request", False)
    assert (told["state"], told["cause"], told["tokens"]["output"]) == ("cancelled", "client_cancel", 30)
    assert answer.headers["cache-control"] == "no-store"
    assert worker[-1] == (REQUEST_ID, "client_cancel")
    assert set(cancels.router) == {REQUEST_ID}
    assert cancels.observed[-1] is Outcome.CANCELLED


async def test_a_request_that_does_not_end_in_time_is_about_to(cancels: Cancels, pipe: RedisPipe) -> None:
    await run(pipe, CANCELLED)
    answer = await cancels.call()
    told = answer.json()
    assert (answer.status_code, told["state"], told["cause"], told["cancelling"]) == (202, "admitted", None, True)
    assert told["stopping"] == "client_cancel"
    assert (cancels.router, cancels.observed) == ([REQUEST_ID], [Outcome.CANCELLING])


async def test_openais_clients_get_a_response(cancels: Cancels) -> None:
    await ledger.write(cancels.api.pool, [CANCELLED])
    answer = await cancels.api.call("POST", f"/v1/responses/resp_{REQUEST_ID}/cancel")
    told = answer.json()
    assert (told["id"], told["object"], told["status"]) == (f"resp_{REQUEST_ID}", "response", "cancelled")
    assert told["usage"] == {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 3},
        "output_tokens": 30,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 40,
    }


@pytest.mark.parametrize("where", ["redis", "ledger"])
@pytest.mark.parametrize(("state", "cause"), [(State.COMPLETED, Cause.FINISHED), (State.CANCELLED, Cause.ADMIN_CANCEL)])
async def test_what_ended_otherwise_is_a_conflict(
    cancels: Cancels, pipe: RedisPipe, where: str, state: State, cause: Cause
) -> None:
    record = usage_record(state=state, cause=cause)
    await _ended(cancels, pipe, record, where)
    answer = await cancels.call(record.admission.request_id)
    error = _refused(answer, 409, "request_ended")
    assert error["details"] == {"state": state.value, "cause": cause.value}
    assert answer.headers["x-should-retry"] == "false"
    assert (cancels.router, cancels.observed) == ([], [Outcome.ENDED])


@pytest.mark.parametrize("where", ["redis", "ledger"])
async def test_what_was_cancelled_before_is_told_again(cancels: Cancels, pipe: RedisPipe, where: str) -> None:
    await _ended(cancels, pipe, CANCELLED, where)
    answer = await cancels.call()
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    assert cancels.router == []


async def _ended(cancels: Cancels, pipe: RedisPipe, record: UsageRecord, where: str) -> None:
    if where == "ledger":
        await ledger.write(cancels.api.pool, [record])
        return
    await run(pipe, record)
    await settle(pipe, record)


@pytest.mark.parametrize("request_id", ["3f0d8a52-6a0c-4e57-9d2c-8a4f1f1f0a11", "x", "resp_x", "%00"])
async def test_what_nobody_knows_is_unknown(cancels: Cancels, request_id: str) -> None:
    _refused(await cancels.call(request_id), 404, "unknown_request")
    assert cancels.observed == [Outcome.UNKNOWN]


async def test_another_tenants_request_is_unknown_and_runs_on(cancels: Cancels, pipe: RedisPipe) -> None:
    await run(pipe, CANCELLED)
    _refused(await cancels.call(headers=cancels.api.as_(THEIRS)), 404, "unknown_request")
    known = await RedisReservations(pipe).find("org_a", REQUEST_ID)
    assert known is not None
    assert (known.ending, known.stopping) == (None, "")


async def test_without_redis_it_cannot_be_done(api: Api) -> None:
    with running() as server:
        async with pipe_to(server, deadline=1.0) as pipe:
            api.live = RedisReservations(pipe)
            cancels = Cancels(api, pipe)
            server.stop()
            _refused(await cancels.call(), 503, "limits_unavailable")
