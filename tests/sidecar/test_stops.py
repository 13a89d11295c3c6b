"""Stops through a real Redis: what a worker does with them, and what the recorder asks for again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import pytest
from redis.asyncio import Redis

from authz.caps import Caps
from extproc.inline import InlineResponse
from extproc.lifecycle import Cause
from extproc.live import LiveRequest, LiveRequests
from quota.pipe import RedisPipe
from quota.redis_stops import FOLLOW_DEADLINE_SECONDS, RedisStops
from quota.reservation import QuotaOutage
from sidecar.stops import AskedStops, Watch
from tests.extproc import envoy_messages as envoy
from tests.extproc.memory_stream import MemoryStream
from tests.quota.own_redis import OwnRedis, running
from tests.support.gateway import until
from tests.support.values import NOON_MS, admission, arrival


@pytest.fixture(scope="module")
def redis_server() -> Iterator[OwnRedis]:
    with running() as server:
        yield server


@contextlib.asynccontextmanager
async def _stops(server: OwnRedis) -> AsyncIterator[RedisStops]:
    async with (
        Redis.from_url(server.url) as redis,
        contextlib.aclosing(RedisPipe(redis.connection_pool.make_connection, deadline=FOLLOW_DEADLINE_SECONDS)) as pipe,
    ):
        yield RedisStops(pipe)


@contextlib.asynccontextmanager
async def _following(
    server: OwnRedis, asked: AskedStops, live: LiveRequests | None = None
) -> AsyncIterator[RedisStops]:
    """Somebody follows, and has heard something; who asks is given."""
    async with _stops(server) as following, _stops(server) as asking:
        task = asyncio.create_task(asked.follow(following, live))

        async def hears() -> bool:
            await asking.ask("a probe", Cause.REVOKED)
            return asked("a probe") is not None

        await until(hears)
        try:
            yield asking
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _running(requests: LiveRequests, request_id: str) -> MemoryStream:
    stream = MemoryStream()
    live = LiveRequest(stream, arrival(request_id=request_id), now=lambda: NOON_MS / 1000)
    requests.add(live)
    live.let_pass(b"", admission(request_id=request_id), InlineResponse(strip_usage=False))
    stream.written.clear()
    return stream


def _holds(condition: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        return condition()

    return holds


async def test_a_worker_stops_what_it_holds_and_leaves_the_rest(redis_server: OwnRedis) -> None:
    requests, asked = LiveRequests(observe=lambda _: None), AskedStops()
    mine, other = _running(requests, "mine"), _running(requests, "other")
    async with _following(redis_server, asked, requests) as asking:
        await asking.ask("elsewhere", Cause.CLIENT_CANCEL)
        await asking.ask("mine", Cause.ADMIN_CANCEL)
        await until(_holds(lambda: bool(mine.written)))
    assert envoy.read(mine.written[0]).immediate_response.details == "sidecar_admin_cancel"
    assert (len(mine.written), len(other.written)) == (1, 0)
    assert asked("elsewhere") is Cause.CLIENT_CANCEL


async def test_the_first_cause_stays_and_what_is_no_cause_is_nothing(redis_server: OwnRedis) -> None:
    asked = AskedStops()
    async with _following(redis_server, asked) as asking:
        await asking.ask("a", "for a reason of tomorrow")
        await asking.ask("a", Cause.FINISHED)  # no request is stopped for that
        await asking.ask("b", Cause.CLIENT_CANCEL)
        await asking.ask("b", Cause.REVOKED)
        await asking.ask("last", Cause.REVOKED)
        await until(_holds(lambda: asked("last") is not None))
    assert (asked("a"), asked("b")) == (None, Cause.CLIENT_CANCEL)


@dataclass(slots=True)
class _Recorded:
    """What a watch did; Redis is away while `out`."""

    open: bool = True
    out: bool = False
    marked: list[tuple[str, str, str]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    router: list[str] = field(default_factory=list)

    async def stop(self, organization_id: str, request_id: str, *, why: str) -> bool:
        self._require()
        self.marked.append((organization_id, request_id, why))
        return self.open

    async def ask(self, request_id: str, why: str) -> None:
        self._require()
        self.asked.append((request_id, why))

    async def follow(self) -> AsyncIterator[tuple[str, str]]:
        raise AssertionError("the recorder's watch does not follow")
        yield  # pragma: no cover

    def _require(self) -> None:
        if self.out:
            raise QuotaOutage("the test says so")


@pytest.fixture
def recorded() -> _Recorded:
    return _Recorded()


@pytest.fixture
def watch(recorded: _Recorded) -> Watch:
    return Watch(recorded, recorded, recorded.router.append)


async def _settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_runs_on_though_it_was_to_stop_is_asked_for_again(recorded: _Recorded, watch: Watch) -> None:
    watch.observe_stopping(admission(request_id="a"), "client_cancel")
    await _settled()
    assert (recorded.asked, recorded.router, recorded.marked) == ([("a", "client_cancel")], ["a"], [])


CAPS = Caps(output_tokens=100, response_bytes=5000)


@pytest.mark.parametrize(
    ("caps", "events", "size", "stops"),
    [
        (Caps(), 10**6, 10**9, False),
        (CAPS, 100, 5000, False),
        (CAPS, 1000, 10, True),
        (CAPS, 10, 5001, True),
        (Caps(output_tokens=100), 10, 10**9, False),
        (Caps(response_bytes=5000), 10**6, 10, False),
    ],
)
async def test_what_has_come_to_too_much_is_marked_and_stopped(
    recorded: _Recorded, watch: Watch, *, caps: Caps, events: int, size: int, stops: bool
) -> None:
    watch.observe_progress(admission(request_id="a", caps=caps), events=events, response_bytes=size)
    await _settled()
    assert recorded.marked == ([("org_a", "a", "output_limit")] if stops else [])
    assert recorded.asked == ([("a", "output_limit")] if stops else [])


async def test_what_has_ended_meanwhile_is_not_asked_for(recorded: _Recorded, watch: Watch) -> None:
    recorded.open = False
    watch.observe_progress(admission(caps=CAPS), events=1000, response_bytes=0)
    await _settled()
    assert (len(recorded.marked), recorded.asked) == (1, [])


async def test_an_outage_is_waited_out_until_the_next_sign_of_life(recorded: _Recorded, watch: Watch) -> None:
    recorded.out = True
    watch.observe_stopping(admission(request_id="a"), "revoked")
    await _settled()
    recorded.out = False
    watch.observe_stopping(admission(request_id="a"), "revoked")
    await _settled()
    assert recorded.asked == [("a", "revoked")]
