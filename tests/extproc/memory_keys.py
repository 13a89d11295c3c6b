"""Idempotency keys in memory, which can be out, and whose clock a test turns by hand."""

from collections.abc import Callable
from dataclasses import dataclass, field

from extproc.idempotency import Answer, Earlier, IdempotencyOutage, KeyedRequest
from extproc.lifecycle import State

Name = tuple[str, str, str]


@dataclass(slots=True)
class _Row:
    request_id: str
    fingerprint: bytes
    claimed_ms: int
    admitted: bool = False
    answer: Answer | None = None


@dataclass(slots=True)
class MemoryKeys:
    """Keeps the promise of `IdempotencyKeys`. `out`: nothing is asked. `ledger` is what has ended.

    `before` is called before a method of this name does anything: what others do meanwhile.
    """

    now_ms: Callable[[], int]
    rows: dict[Name, _Row] = field(default_factory=dict)
    ledger: dict[str, State] = field(default_factory=dict)
    out: bool = False
    asked: list[str] = field(default_factory=list)
    before: dict[str, Callable[[], None]] = field(default_factory=dict)

    async def claim(self, request: KeyedRequest) -> Earlier | None:
        self._begin("claim")
        row = self.rows.setdefault(_name(request), self._row(request))
        if row.request_id == request.request_id:
            return None
        age_ms = self.now_ms() - row.claimed_ms
        return Earlier(
            request_id=row.request_id,
            fingerprint=row.fingerprint,
            age_ms=age_ms,
            admitted=row.admitted,
            answer=row.answer,
        )

    async def take_over(self, request: KeyedRequest, earlier: str) -> bool:
        self._begin("take_over")
        row = self.rows.get(_name(request))
        if row is None or row.request_id != earlier or row.answer is not None:
            return False
        self.rows[_name(request)] = self._row(request)
        return True

    async def admitted(self, request: KeyedRequest) -> None:
        self._begin("admitted")
        row = self.rows.get(_name(request))
        if row is not None and row.request_id == request.request_id:
            row.admitted = True

    async def free(self, request: KeyedRequest) -> None:
        self._begin("free")
        row = self.rows.get(_name(request))
        if row is not None and row.request_id == request.request_id and row.answer is None:
            del self.rows[_name(request)]

    async def record(self, request: KeyedRequest, answer: Answer) -> bool:
        self._begin("record")
        row = self.rows.get(_name(request))
        if row is None or row.request_id != request.request_id:
            return False
        row.answer = answer
        return True

    async def ended(self, request_id: str) -> State | None:
        self._begin("ended")
        return self.ledger.get(request_id)

    def holder(self) -> str | None:
        """The request that holds the only key."""
        return next((row.request_id for row in self.rows.values()), None)

    def _row(self, request: KeyedRequest) -> _Row:
        return _Row(request.request_id, request.fingerprint, self.now_ms())

    def _begin(self, name: str) -> None:
        self.asked.append(name)
        if name in self.before:
            self.before.pop(name)()
        if self.out:
            raise IdempotencyOutage("out")


def _name(request: KeyedRequest) -> Name:
    return request.tenant_id, request.principal_id, request.key
