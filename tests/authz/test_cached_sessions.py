"""The copy of sessions: bounded, filled once at a time, and never so old that a revocation would come late."""

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from authz import cached_sessions
from authz.cached_sessions import CachedSessions
from authz.principal import Handle, PrincipalKind
from authz.session import Session, SessionOutage, SessionToken, generate
from tests.sidecar.embedded.processes import until
from tests.support.memory_sessions import MemorySessions
from tests.support.values import Clock

TTL = 0.5
TOKEN = generate(7)


def _session(token: SessionToken = TOKEN, *, idle_ms: int = 60_000, lifetime_ms: int = 600_000) -> Session:
    return Session(
        id=token.id,
        handle=Handle(PrincipalKind.API_KEY, "k"),
        claimed_scopes=frozenset(),
        principal_id="key_k",
        tenant_id="ten_a",
        created_ms=0,
        expires_ms=lifetime_ms,
        idle_ms=idle_ms,
        last_used_ms=0,
        cookie=False,
    )


@dataclass(slots=True)
class SlowSessions(MemorySessions):
    """Answers when the test says so, with what the test says."""

    questions: list["asyncio.Future[Session | None]"] = field(default_factory=list)

    async def find(self, token: SessionToken) -> Session | None:
        del token
        self.questions.append(asyncio.get_running_loop().create_future())
        return await self.questions[-1]


@pytest.fixture
def clock() -> Clock:
    return Clock(ms=1_000_000)


@pytest.fixture
def sessions(clock: Clock) -> MemorySessions:
    return MemorySessions(clock.now_ms)


@pytest.fixture
def slow(clock: Clock) -> SlowSessions:
    return SlowSessions(clock.now_ms)


@pytest.fixture
def cached(sessions: MemorySessions, clock: Clock) -> CachedSessions:
    return CachedSessions(sessions, now=clock.now, ttl_seconds=TTL, capacity=3)


@pytest.fixture
def cached_slow(slow: SlowSessions, clock: Clock) -> CachedSessions:
    return CachedSessions(slow, now=clock.now, ttl_seconds=TTL)


async def _asked(cached: CachedSessions, slow: SlowSessions) -> "asyncio.Task[Session | None]":
    """A caller whose question has reached the store."""
    before = len(slow.questions)
    task = asyncio.create_task(cached.find(TOKEN))
    await until(lambda: len(slow.questions) > before)
    return task


@pytest.mark.parametrize(("age_ms", "asked"), [(0, 1), (499, 1), (500, 2)])
async def test_a_copy_is_used_for_its_ttl(
    cached: CachedSessions, sessions: MemorySessions, clock: Clock, age_ms: int, asked: int
) -> None:
    await sessions.create(TOKEN, _session())
    assert cached.held(TOKEN.text) == (False, None)
    found = await cached.find(TOKEN)
    assert found is not None
    clock.ms += age_ms
    assert cached.held(TOKEN.text) == ((True, found) if asked == 1 else (False, None))
    again = await cached.find(TOKEN)
    assert again is not None
    assert again.id == TOKEN.id
    assert sessions.asked == asked


@pytest.mark.parametrize("age_ms", [0, 499, 500, 5000])
async def test_a_revocation_is_in_force_within_the_ttl(
    cached: CachedSessions, sessions: MemorySessions, clock: Clock, age_ms: int
) -> None:
    await sessions.create(TOKEN, _session())
    await cached.find(TOKEN)
    clock.ms += age_ms
    await cached.find(TOKEN)
    await sessions.revoke("key_k", TOKEN.id)
    clock.ms += 500
    assert cached.held(TOKEN.text) == (False, None)
    assert await cached.find(TOKEN) is None
    assert cached.held(TOKEN.text) == (True, None)


async def test_an_unknown_token_is_remembered_as_unknown(
    cached: CachedSessions, sessions: MemorySessions, clock: Clock
) -> None:
    assert await cached.find(TOKEN) is None
    assert cached.held(TOKEN.text) == (True, None)
    assert await cached.find(TOKEN) is None
    assert sessions.asked == 1
    await sessions.create(TOKEN, _session())
    clock.ms += 500
    assert await cached.find(TOKEN) is not None


@pytest.mark.parametrize(("idle_ms", "lifetime_ms"), [(200, 60_000), (60_000, 200)])
async def test_a_copy_ends_with_its_session(
    cached: CachedSessions, sessions: MemorySessions, clock: Clock, idle_ms: int, lifetime_ms: int
) -> None:
    await sessions.create(TOKEN, _session(idle_ms=idle_ms, lifetime_ms=lifetime_ms))
    assert await cached.find(TOKEN) is not None
    clock.ms += 199
    assert cached.held(TOKEN.text)[0]
    clock.ms += 1
    assert cached.held(TOKEN.text) == (False, None)
    assert await cached.find(TOKEN) is None


async def test_a_session_that_another_worker_saw_used_goes_on(
    cached: CachedSessions, sessions: MemorySessions, clock: Clock
) -> None:
    await sessions.create(TOKEN, _session(idle_ms=200))
    await cached.find(TOKEN)
    clock.ms += 150
    await sessions.find(TOKEN)
    clock.ms += 100
    assert await cached.find(TOKEN) is not None


async def test_in_an_outage_a_known_session_goes_on_for_the_ttl(
    cached: CachedSessions, sessions: MemorySessions, clock: Clock
) -> None:
    await sessions.create(TOKEN, _session())
    await cached.find(TOKEN)
    sessions.out = True
    clock.ms += 499
    assert await cached.find(TOKEN) is not None
    clock.ms += 1
    with pytest.raises(SessionOutage):
        await cached.find(TOKEN)
    with pytest.raises(SessionOutage):
        await cached.find(generate(7))
    sessions.out = False
    assert await cached.find(TOKEN) is not None


async def test_callers_of_the_same_token_share_one_flight(cached_slow: CachedSessions, slow: SlowSessions) -> None:
    callers = [asyncio.create_task(cached_slow.find(TOKEN)) for _ in range(50)]
    await until(lambda: bool(slow.questions))
    slow.questions[0].set_result(_session())
    assert await asyncio.gather(*callers) == [_session()] * 50
    assert len(slow.questions) == 1


async def test_callers_of_the_same_token_share_an_outage_and_the_next_asks_again(
    cached_slow: CachedSessions, slow: SlowSessions
) -> None:
    callers = [asyncio.create_task(cached_slow.find(TOKEN)) for _ in range(3)]
    await until(lambda: bool(slow.questions))
    slow.questions[0].set_exception(SessionOutage("out"))
    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert {type(answer) for answer in answers} == {SessionOutage}
    again = await _asked(cached_slow, slow)
    slow.questions[1].set_result(_session())
    assert await again == _session()


async def test_a_caller_that_leaves_does_not_end_the_flight_of_the_others(
    cached_slow: CachedSessions, slow: SlowSessions
) -> None:
    leaving = await _asked(cached_slow, slow)
    staying = asyncio.create_task(cached_slow.find(TOKEN))
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    slow.questions[0].set_result(_session())
    assert await staying == _session()


async def test_a_slower_older_answer_never_overwrites_a_newer_one(
    cached_slow: CachedSessions, slow: SlowSessions, clock: Clock
) -> None:
    early = await _asked(cached_slow, slow)
    clock.ms += 500
    late = await _asked(cached_slow, slow)
    slow.questions[1].set_result(None)
    assert await late is None
    slow.questions[0].set_result(_session())
    assert await early is None
    assert cached_slow.held(TOKEN.text) == (True, None)


async def test_an_answer_that_comes_too_late_is_not_believed(
    cached_slow: CachedSessions, slow: SlowSessions, clock: Clock
) -> None:
    caller = await _asked(cached_slow, slow)
    clock.ms += 500
    slow.questions[0].set_result(_session())
    with pytest.raises(SessionOutage, match="too late"):
        await caller
    assert cached_slow.held(TOKEN.text) == (False, None)


async def test_the_age_counts_from_before_the_question(
    cached_slow: CachedSessions, slow: SlowSessions, clock: Clock
) -> None:
    caller = await _asked(cached_slow, slow)
    clock.ms += 400
    slow.questions[0].set_result(_session())
    assert await caller == _session()
    clock.ms += 99
    assert cached_slow.held(TOKEN.text)[0]
    clock.ms += 1
    assert not cached_slow.held(TOKEN.text)[0]


async def test_no_more_is_remembered_than_allowed(cached: CachedSessions, sessions: MemorySessions) -> None:
    tokens = [generate(7) for _ in range(4)]
    for token in tokens:
        await sessions.create(token, _session(token))
        await cached.find(token)
    assert [cached.held(token.text)[0] for token in tokens] == [False, True, True, True]


async def test_guessing_does_not_push_out_who_is_known(
    cached: CachedSessions, sessions: MemorySessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_sessions, "_UNKNOWN_CAPACITY", 5)
    await sessions.create(TOKEN, _session())
    await cached.find(TOKEN)
    guesses = [generate(7) for _ in range(20)]
    for guess in guesses:
        assert await cached.find(guess) is None
    assert cached.held(TOKEN.text)[0]
    assert [cached.held(guess.text)[0] for guess in guesses] == [False] * 15 + [True] * 5


async def test_what_can_no_longer_be_used_is_let_go(
    cached: CachedSessions, sessions: MemorySessions, clock: Clock
) -> None:
    for token in (TOKEN, generate(7)):
        await sessions.create(token, _session(token))
        await cached.find(token)
        clock.ms += 500
    assert list(cached._known) != [TOKEN.text]
    assert len(cached._known) == 1


async def test_a_session_may_change_between_two_looks(
    cached_slow: CachedSessions, slow: SlowSessions, clock: Clock
) -> None:
    for name in ("before", "after"):
        caller = await _asked(cached_slow, slow)
        slow.questions[-1].set_result(replace(_session(), name=name))
        assert await caller == replace(_session(), name=name)
        clock.ms += 500
