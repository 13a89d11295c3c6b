"""Sessions in memory, for tests of those who ask for one. `tests/store/test_sessions.py` holds them to the contract."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from authz.session import MAX_SESSIONS_PER_PRINCIPAL, Session, SessionOutage, SessionToken
from tests.support.values import Clock


@dataclass(slots=True)
class MemorySessions:
    """Keeps sessions by the text of their tokens; `out` makes it fail, `asked` counts the questions."""

    now_ms: Callable[[], int] = field(default_factory=lambda: Clock().now_ms)
    sessions: dict[str, Session] = field(default_factory=dict)
    out: bool = False
    asked: int = 0

    async def create(self, token: SessionToken, session: Session) -> bool:
        if token.id != session.id:
            raise ValueError("the token is of another session")
        if len(self._living(session.principal_id)) >= MAX_SESSIONS_PER_PRINCIPAL:
            return False
        now = self.now_ms()
        lifetime_ms = session.expires_ms - session.created_ms
        self.sessions[token.text] = replace(session, created_ms=now, expires_ms=now + lifetime_ms, last_used_ms=now)
        return True

    async def find(self, token: SessionToken) -> Session | None:
        self.asked += 1
        self._end()
        found = self.sessions.get(token.text)
        if found is None:
            return None
        self.sessions[token.text] = replace(found, last_used_ms=self.now_ms())
        return self.sessions[token.text]

    async def list_of(self, principal_id: str) -> list[Session]:
        living = self._living(principal_id).values()
        return sorted(living, key=lambda session: (-session.created_ms, session.id))

    async def revoke(self, principal_id: str, session_id: str) -> bool:
        found = [text for text, session in self._living(principal_id).items() if session.id == session_id]
        for text in found:
            del self.sessions[text]
        return bool(found)

    async def revoke_all(self, principal_id: str) -> int:
        living = self._living(principal_id)
        for text in living:
            del self.sessions[text]
        return len(living)

    def _living(self, principal_id: str) -> dict[str, Session]:
        self._end()
        return {text: session for text, session in self.sessions.items() if session.principal_id == principal_id}

    def _end(self) -> None:
        if self.out:
            raise SessionOutage("the sessions in memory are out")
        now = self.now_ms()
        self.sessions = {text: session for text, session in self.sessions.items() if now < session.ends_ms}
