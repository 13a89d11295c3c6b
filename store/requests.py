"""What became of each request? Those that run are known to Redis, those that have ended to the ledger.

A settled request stays in Redis until its row is committed. So Redis is always asked first: what has left it by then is
in the ledger, and a request that exists is found in one of the two.
"""

from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol, Self
from uuid import UUID

from extproc import admission as admissions
from extproc import ending as endings
from extproc import lifecycle_events
from extproc.lifecycle import FINAL, LIVE, State
from extproc.lifecycle_events import RequestEvent
from extproc.record import Admission, Ending, UsageRecord
from quota.reservation import Known, QuotaOutage
from store import ledger
from store.database import Pool, outages_named
from store.request_cursor import Position

MOST_LIVE = 1000
"""How many requests of a tenant that Redis knows are listed: those for which room was taken last."""
ROW_STATES = LIVE | FINAL - {State.REJECTED}
"""In which states a request can be found; what is rejected is not kept."""
_BATCH = 500
_SORT_SECONDS = 600.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


class LiveRequests(Protocol):
    """Knows the requests that the ledger may not have; `quota.reservation.Reservations` does.

    Both raise `QuotaOutage`.
    """

    async def find(self, organization_id: str, request_id: str) -> Known | None:
        """The request; None when only the ledger may know it."""

    async def open_of(self, organization_id: str, tenant_id: str, *, limit: int) -> list[Known]:
        """Up to `limit` requests of the tenant, the latest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLife:
    """One request: what was known when it was admitted, where it is, and how it ended if it has.

    `events` are those of its answer, as last reported; `stopping` says why it is to be stopped, empty when it is not.
    `step` is what was last told of one that runs, None when that was its admission.
    """

    admission: Admission
    state: State
    events: int
    ending: Ending | None = None
    stopping: str = ""
    step: RequestEvent | None = None

    @classmethod
    def of_known(cls, known: Known) -> Self:
        """As Redis has it."""
        admission = admissions.decode(known.admission)
        if known.ending is not None:
            return cls.of_record(UsageRecord(admission=admission, ending=endings.decode(known.ending)))
        state = State(known.stage) if known.stage else State.ADMITTED
        step = lifecycle_events.decode(known.step) if known.step else None
        return cls(admission=admission, state=state, events=known.events, stopping=known.stopping, step=step)

    @classmethod
    def of_record(cls, record: UsageRecord) -> Self:
        """As the ledger has it."""
        ending = record.ending
        return cls(admission=record.admission, state=ending.state, events=ending.events, ending=ending)

    @property
    def position(self) -> Position:
        """Its place in lists."""
        return Position(self.admission.received_ms, self.admission.request_id)

    def told(self) -> list[RequestEvent]:
        """Its events until now, in order."""
        if self.ending is not None:
            return lifecycle_events.life(lifecycle_events.ended(self.admission, self.ending))
        return [lifecycle_events.admitted(self.admission), *([] if self.step is None else [self.step])]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFilter:
    """Which requests are meant: all that agree with everything that is said. Nothing said is all.

    They were received from `since` up to, not including, `until`.
    """

    tenant_id: str | None = None
    states: frozenset[State] = frozenset()
    model: str | None = None
    principal_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def takes(self, life: RequestLife) -> bool:
        """Whether a request is among them."""
        admission = life.admission
        return (
            self.tenant_id in {None, admission.tenant_id}
            and (not self.states or life.state in self.states)
            and self.model in {None, admission.model}
            and self.principal_id in {None, admission.principal_id}
            and (self.since is None or _time(admission.received_ms) >= self.since)
            and (self.until is None or _time(admission.received_ms) < self.until)
        )

    @property
    def may_have_ended(self) -> bool:
        """Whether the ledger can have any of them."""
        return not self.states or not self.states <= LIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some requests, newest first, and where to go on; None at the end.

    `complete` is False when Redis could not be asked: those that run are not among them then.
    """

    lives: tuple[RequestLife, ...]
    following: Position | None
    complete: bool = True


class Requests:
    """All requests, wherever they are known."""

    def __init__(self, live: LiveRequests, pool: Pool) -> None:
        self._live = live
        self._pool = pool

    async def find(self, organization_id: str, tenant_id: str, request_id: str) -> RequestLife | None:
        """The tenant's request of this id; None when it has none, or when that is not an id.

        Raises `DatabaseOutage` when it does not run and the ledger cannot be asked, and `QuotaOutage` when Redis cannot
        be asked and the ledger does not have it.
        """
        identity = _canonical(request_id)
        if identity is None:
            return None
        outage = None
        try:
            life = await self._find_live(organization_id, identity)
        except QuotaOutage as error:
            life, outage = None, error
        if life is None:
            record = await ledger.find(self._pool, identity)
            life = None if record is None else RequestLife.of_record(record)
        if life is None and outage is not None:
            raise outage
        return life if life is not None and life.admission.tenant_id == tenant_id else None

    async def page(self, organization_id: str, wanted: RequestFilter, *, limit: int, after: Position | None) -> Page:
        """Up to `limit` requests of one tenant after a place, newest first. Raises `DatabaseOutage`.

        Raises `QuotaOutage` when all that is wanted is in Redis, and Redis cannot be asked.
        """
        complete = True
        try:
            live = await self._live_of(organization_id, wanted)
        except QuotaOutage:
            if not wanted.may_have_ended:
                raise
            live, complete = [], False
        ended = await newest(self._pool, wanted, limit=limit + 1, after=after) if wanted.may_have_ended else []
        return merged([*live, *ended], limit=limit, after=after, complete=complete)

    async def _find_live(self, organization_id: str, request_id: str) -> RequestLife | None:
        known = await self._live.find(organization_id, request_id)
        return None if known is None else RequestLife.of_known(known)

    async def _live_of(self, organization_id: str, wanted: RequestFilter) -> list[RequestLife]:
        found = await self._live.open_of(organization_id, wanted.tenant_id or "", limit=MOST_LIVE)
        return [life for life in map(RequestLife.of_known, found) if wanted.takes(life)]


def merged(lives: Iterable[RequestLife], *, limit: int, after: Position | None = None, complete: bool = True) -> Page:
    """One page of what was found in several places; of two of the same request the later one is taken."""
    by_position = {life.position: life for life in lives if after is None or life.position < after}
    ordered = sorted(by_position, reverse=True)
    shown = tuple(by_position[position] for position in ordered[:limit])
    return Page(lives=shown, following=shown[-1].position if len(ordered) > limit else None, complete=complete)


async def newest(pool: Pool, wanted: RequestFilter, *, limit: int, after: Position | None = None) -> list[RequestLife]:
    """Up to `limit` requests that have ended, after a place, newest first. Raises `DatabaseOutage`."""
    return await _read(pool, _Statement(wanted).after(after, "<").text("DESC", limit))


async def oldest_first(pool: Pool, wanted: RequestFilter) -> AsyncGenerator[list[RequestLife], None]:
    """All requests that have ended, oldest first, some hundred at a time. Raises `DatabaseOutage`.

    Each batch is a statement of its own that begins where the one before ended: whoever takes them slowly holds no
    connection and no snapshot meanwhile.
    """
    position: Position | None = None
    while found := await _read(pool, _Statement(wanted).after(position, ">").text("ASC", _BATCH)):
        yield found
        position = found[-1].position
        if len(found) < _BATCH:
            return


async def snapshot(pool: Pool, wanted: RequestFilter) -> AsyncGenerator[list[RequestLife], None]:
    """The same of all tenants, as it is now. Raises `DatabaseOutage`.

    No index has the order of all tenants' requests, so that it is made once, and read by a cursor of the server: the
    connection is held for as long as that takes.
    """
    query, values = _Statement(wanted).text("ASC")
    with outages_named():
        async with pool.acquire() as connection, connection.transaction(readonly=True):
            cursor = await connection.cursor(query, *values, timeout=_SORT_SECONDS)
            while rows := await cursor.fetch(_BATCH):
                yield [RequestLife.of_record(ledger.record_of(row)) for row in rows]


class _Statement:
    """A SELECT of the ledger's rows, with what its parameters stand for."""

    def __init__(self, wanted: RequestFilter) -> None:
        self._conditions: list[str] = []
        self.values: list[object] = []
        self._where("tenant_id = {}", wanted.tenant_id)
        self._where("state = ANY ({}::text[])", sorted(wanted.states) or None)
        self._where("model = {}", wanted.model)
        self._where("principal_id = {}", wanted.principal_id)
        self._where("received_at >= {}", wanted.since)
        self._where("received_at < {}", wanted.until)

    def after(self, position: Position | None, sign: str) -> Self:
        if position is not None:
            self.values += [_time(position.received_ms), UUID(position.request_id)]
            last = len(self.values)
            self._conditions.append(f"(received_at, request_id) {sign} (${last - 1}, ${last})")
        return self

    def text(self, order: str, limit: int | None = None) -> tuple[str, list[object]]:
        where = f"WHERE {' AND '.join(self._conditions)}" if self._conditions else ""
        query = (
            f"SELECT * FROM inference_requests {where} "  # noqa: S608 - made of the constants above
            f"ORDER BY received_at {order}, request_id {order}"
        )
        return query if limit is None else f"{query} LIMIT {limit}", self.values

    def _where(self, condition: str, value: object) -> None:
        if value is not None:
            self.values.append(value)
            self._conditions.append(condition.format(f"${len(self.values)}"))


async def _read(pool: Pool, statement: tuple[str, list[object]]) -> list[RequestLife]:
    query, values = statement
    with outages_named():
        return [RequestLife.of_record(ledger.record_of(row)) for row in await pool.fetch(query, *values)]


def _canonical(request_id: str) -> str | None:
    """The id as it is kept; None for what cannot be one."""
    try:
        identity = str(UUID(request_id))
    except ValueError:
        return None
    return identity if identity == request_id.lower() else None


def _time(ms: int) -> datetime:
    return _EPOCH + ms * _MILLISECOND
