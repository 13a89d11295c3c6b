"""How does a caller trade an API key or a JWT for a session, see their sessions and end them? `/v1/sessions`."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response

from authz.identity_token import Caller
from authz.principal import PrincipalKind
from authz.refusal import Reason, Refusal
from authz.session import (
    MAX_SESSIONS_PER_PRINCIPAL,
    Session,
    Sessions,
    SessionToken,
    clear_cookie,
    csrf_token,
    generate,
    set_cookie,
)
from control.caller import Authenticated
from control.errors import Now, Refused
from control.journal import Journal, client_address
from control.session_body import (
    Exchange,
    LiveSession,
    NewSession,
    Revoked,
    SessionList,
    Transport,
    moment,
    transport_of,
)
from quota.redis import shard_of
from store.audit import Change

PATH = "/v1/sessions"
CURRENT = "current"
_EXCHANGED = frozenset({PrincipalKind.API_KEY, PrincipalKind.JWT})
_MS_PER_SECOND = 1000
# RFC 9111 section 5.2.2.5: the answers hold secrets, or who is logged in where.
_NO_STORE = ("cache-control", "no-store")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetimes:
    """How long a session may last, at most and when nothing is asked for."""

    idle_seconds: int
    lifetime_seconds: int


class SessionEndpoints:
    """Makes, lists and ends the sessions of the caller's own principal. `pepper` makes the CSRF tokens."""

    def __init__(self, sessions: Sessions, journal: Journal, lifetimes: Lifetimes, *, pepper: bytes, now: Now) -> None:
        self._sessions = sessions
        self._journal = journal
        self._lifetimes = lifetimes
        self._pepper = pepper
        self._now = now

    def router(self) -> APIRouter:
        """The endpoints."""
        router = APIRouter(tags=["sessions"])
        router.add_api_route(
            PATH, self.create, methods=["POST"], status_code=201, response_model_exclude_none=True, summary="Log in"
        )
        router.add_api_route(PATH, self.list_all, methods=["GET"], summary="List sessions")
        router.add_api_route(PATH, self.revoke_all, methods=["DELETE"], summary="End all sessions")
        router.add_api_route(
            f"{PATH}/{{session_id}}", self.revoke, methods=["DELETE"], status_code=204, summary="End a session"
        )
        return router

    async def create(
        self,
        request: Request,
        response: Response,
        caller: Authenticated,
        body: Annotated[Exchange | None, Body()] = None,
    ) -> NewSession:
        """Exchange the API key or JWT of this request for a session of the same principal."""
        if caller.principal_kind not in _EXCHANGED:
            raise Refused(Refusal(reason=Reason.SESSION_NOT_ALLOWED))
        asked = body or Exchange()
        token = generate(shard_of(caller.principal_id))
        session = self._session(token, caller, asked, source=client_address(request))
        await self._keep(request, caller, token, session)
        response.headers.append(*_NO_STORE)
        if session.cookie:
            lifetime_seconds = (session.expires_ms - session.created_ms) // _MS_PER_SECOND
            response.headers.append("set-cookie", set_cookie(token, lifetime_seconds))
        return self._shown(token, session)

    async def list_all(self, response: Response, caller: Authenticated) -> SessionList:
        """The live sessions of the caller's principal, however they were made; never their tokens."""
        response.headers.append(*_NO_STORE)
        found = await self._sessions.list_of(caller.principal_id)
        return SessionList(data=[LiveSession.of(session, current_id=caller.session_id) for session in found])

    async def revoke(self, request: Request, response: Response, caller: Authenticated, session_id: str) -> None:
        """End one session of the caller's principal; `current` is the one that this request came by."""
        wanted = caller.session_id if session_id == CURRENT else session_id
        found = await self._sessions.list_of(caller.principal_id)
        if wanted not in {session.id for session in found}:
            raise Refused(Refusal(reason=Reason.UNKNOWN_SESSION))
        await self._journal.write(request, caller, _change("session.revoke", caller, wanted))
        if not await self._sessions.revoke(caller.principal_id, wanted):  # it has just ended
            raise Refused(Refusal(reason=Reason.UNKNOWN_SESSION))
        _forget(response, caller, wanted)

    async def revoke_all(self, request: Request, response: Response, caller: Authenticated) -> Revoked:
        """End all sessions of the caller's principal, the current one too."""
        response.headers.append(*_NO_STORE)
        found = await self._sessions.list_of(caller.principal_id)
        if not found:
            return Revoked(revoked=0)
        before = {"sessions": [session.id for session in found]}
        subject = f"principal:{caller.principal_id}"
        change = Change(action="session.revoke_all", subject=subject, tenant_id=caller.tenant_id, before=before)
        await self._journal.write(request, caller, change)
        revoked = await self._sessions.revoke_all(caller.principal_id)
        _forget(response, caller, caller.session_id)
        return Revoked(revoked=revoked)

    async def _keep(self, request: Request, caller: Caller, token: SessionToken, session: Session) -> None:
        """Write it down and keep it.

        The store has the last word on how many there may be; it is asked first, to write down hardly any in vain.
        """
        if len(await self._sessions.list_of(caller.principal_id)) >= MAX_SESSIONS_PER_PRINCIPAL:
            raise Refused(Refusal(reason=Reason.TOO_MANY_SESSIONS))
        after = {
            "transport": transport_of(session),
            "name": session.name,
            "expires_at": moment(session.expires_ms),
            "idle_seconds": session.idle_ms // _MS_PER_SECOND,
        }
        await self._journal.write(request, caller, _change("session.create", caller, session.id, after=after))
        if not await self._sessions.create(token, session):
            raise Refused(Refusal(reason=Reason.TOO_MANY_SESSIONS))

    def _session(self, token: SessionToken, caller: Caller, asked: Exchange, *, source: str) -> Session:
        lifetime = _at_most(self._lifetimes.lifetime_seconds, asked.lifetime_seconds, "lifetime_seconds")
        idle = _at_most(self._lifetimes.idle_seconds, asked.idle_seconds, "idle_seconds")
        created_ms = int(self._now().timestamp() * _MS_PER_SECOND)
        return Session(
            id=token.id,
            handle=caller.handle,
            claimed_scopes=caller.claimed_scopes,
            principal_id=caller.principal_id,
            tenant_id=caller.tenant_id,
            created_ms=created_ms,
            expires_ms=created_ms + lifetime * _MS_PER_SECOND,
            idle_ms=min(idle, lifetime) * _MS_PER_SECOND,
            last_used_ms=created_ms,
            cookie=asked.transport is Transport.COOKIE,
            name=asked.name,
            source=source,
        )

    def _shown(self, token: SessionToken, session: Session) -> NewSession:
        """A token that a browser carries is not in the body: no script may have it."""
        return NewSession(
            id=session.id,
            transport=transport_of(session),
            name=session.name,
            principal_id=session.principal_id,
            tenant_id=session.tenant_id,
            created_at=moment(session.created_ms),
            expires_at=moment(session.expires_ms),
            idle_seconds=session.idle_ms // _MS_PER_SECOND,
            token=None if session.cookie else token.text,
            csrf_token=csrf_token(token, self._pepper) if session.cookie else None,
        )


def _at_most(ceiling: int, asked: int | None, field: str) -> int:
    if asked is None:
        return ceiling
    if asked > ceiling:
        message = f"'{field}': This gateway allows at most {ceiling}."
        raise Refused(Refusal(reason=Reason.INVALID_BODY, param=field, message=message))
    return asked


def _change(action: str, caller: Caller, session_id: str, *, after: dict[str, object] | None = None) -> Change:
    return Change(action=action, subject=f"session:{session_id}", tenant_id=caller.tenant_id, after=after)


def _forget(response: Response, caller: Caller, ended: str) -> None:
    """Have the browser drop the cookie of the session it came by; one that came otherwise has none to drop."""
    if ended and ended == caller.session_id:
        response.headers.append("set-cookie", clear_cookie())
