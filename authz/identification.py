"""Whose are these credentials? Looks each of them up, from copies where they are held, and checks that it is right."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from authz import api_key, credential, session
from authz.api_key import ApiKey
from authz.cached_directory import CachedDirectory
from authz.cached_sessions import CachedSessions
from authz.credential import Credentials
from authz.directory import DirectoryOutage
from authz.principal import Handle, Principal, PrincipalKind
from authz.proof import Proof, Proofs, lives, opens
from authz.recognition import Recognised, Recognition
from authz.refusal import Reason, Refusal
from authz.session import SessionOutage, SessionToken
from authz.token import TokenVerifier

_RETRY_AFTER_MS = 1000


class _NotHeld(Exception):
    """It is about somebody who was not known here before, and nobody may be asked."""


class Identifier:
    """Proves credentials. Nothing is asked of anybody while all that is needed is held."""

    def __init__(
        self,
        directory: CachedDirectory,
        sessions: CachedSessions,
        tokens: TokenVerifier,
        *,
        pepper: bytes,
        certificate_dns_names: bool = False,
    ) -> None:
        self._directory = directory
        self._sessions = sessions
        self._tokens = tokens
        self._pepper = pepper
        self._certificate_dns_names = certificate_dns_names
        self._recognition = Recognition()

    def shown(self, headers: Mapping[str, str], certificate: str, *, now: datetime) -> Credentials | Refusal:
        """What the request shows; `certificate` is a URL-encoded PEM, or empty."""
        return credential.read(headers, certificate, dns_names=self._certificate_dns_names, now=now)

    def recognised(self, shown: Credentials, *, now: datetime) -> Proofs | None:
        """What an API key proves that stands alone, was right before, and is held; None says nothing. Never waits."""
        if shown.token is None or shown.cookie is not None or shown.certificate_shown:
            return None
        known = self._recognition.find(shown.token)
        if known is None:
            return None
        acting = known.proofs.acting
        held, principal = self._directory.held(acting.handle)
        if not held or principal is None or not opens(principal, known.hash, now=now):
            return None
        if principal is acting.principal:
            return known.proofs
        proofs = Proofs(acting=replace(acting, principal=principal))
        self._recognition.remember(shown.token, Recognised(known.hash, proofs))
        return proofs

    async def identify(self, shown: Credentials, *, now: datetime, may_ask: bool) -> Proofs | Refusal:
        """All that the credentials prove, or what is wrong with them.

        With `may_ask` false nobody is asked about what was not right here before: TOO_MANY_FAILURES.
        """
        try:
            return await self._identify(shown, now, may_ask=may_ask)
        except _NotHeld:
            return Refusal(reason=Reason.TOO_MANY_FAILURES)
        except (DirectoryOutage, SessionOutage):
            return Refusal(reason=Reason.IDENTITY_UNAVAILABLE, retry_after_ms=_RETRY_AFTER_MS)

    async def _identify(self, shown: Credentials, now: datetime, *, may_ask: bool) -> Proofs | Refusal:
        token = None if shown.token is None else await self._token(shown.token, now, may_ask=may_ask)
        if isinstance(token, Refusal):
            return token
        cookie = None if shown.cookie is None else await self._cookie(shown.cookie, now, may_ask=may_ask)
        if isinstance(cookie, Refusal):
            if token is None:
                return cookie
            cookie = None  # a browser goes on sending the cookie of a session that has ended; it proves nothing
        certificate = (
            await self._workload(shown.certificate_names, may_ask=may_ask) if shown.certificate_shown else None
        )
        acting = token or cookie or certificate
        if acting is None:
            return Refusal(reason=Reason.UNKNOWN_CERTIFICATE)
        return Proofs(acting=acting, certificate=certificate, cookie=cookie)

    async def _token(self, text: str, now: datetime, *, may_ask: bool) -> Proof | Refusal:
        key = api_key.parse(text)
        if key is not None:
            return await self._key(key, now, may_ask=may_ask)
        shown = session.parse(text)
        if shown is not None:
            return await self._session(shown, now, may_ask=may_ask)
        if self._tokens.looks_like(text):
            return await self._jwt(text, may_ask=may_ask)
        return Refusal(reason=Reason.INVALID_API_KEY)

    async def _key(self, key: ApiKey, now: datetime, *, may_ask: bool) -> Proof | Refusal:
        handle = Handle(PrincipalKind.API_KEY, key.id)
        principal = await self._find(handle, may_ask=may_ask)
        presented = api_key.keyed_hash(key.text, self._pepper)
        if not opens(principal, presented, now=now) or principal is None:
            return Refusal(reason=Reason.INVALID_API_KEY)
        proof = Proof(principal=principal, kind=PrincipalKind.API_KEY, handle=handle)
        self._recognition.remember(key.text, Recognised(presented, Proofs(acting=proof)))
        return proof

    async def _jwt(self, text: str, *, may_ask: bool) -> Proof | Refusal:
        verified = self._tokens.held(text)
        if verified is None:
            if not may_ask:
                raise _NotHeld
            outcome = await self._tokens.verify(text)
            if isinstance(outcome, Refusal):
                return outcome
            verified = outcome
        principal = await self._find(verified.handle, may_ask=may_ask)
        if principal is None:
            return Refusal(reason=Reason.UNKNOWN_TENANT)
        return Proof(
            principal=principal,
            kind=PrincipalKind.JWT,
            handle=verified.handle,
            claimed_scopes=verified.scopes,
        )

    async def _cookie(self, text: str, now: datetime, *, may_ask: bool) -> Proof | Refusal:
        token = session.parse(text)
        if token is None:
            return Refusal(reason=Reason.INVALID_SESSION)
        csrf_token = session.csrf_token(token, self._pepper)
        return await self._session(token, now, may_ask=may_ask, csrf_token=csrf_token)

    async def _session(
        self, token: SessionToken, now: datetime, *, may_ask: bool, csrf_token: str = ""
    ) -> Proof | Refusal:
        held, found = self._sessions.held(token.text)
        if not held:
            if not may_ask and not self._recognition.knows(token.text):
                raise _NotHeld
            found = await self._sessions.find(token)
        if found is None or found.cookie is not bool(csrf_token):
            return Refusal(reason=Reason.INVALID_SESSION)
        principal = await self._find(found.handle, may_ask=may_ask)
        if principal is None or not lives(principal, now=now):
            return Refusal(reason=Reason.INVALID_SESSION)
        self._recognition.note(token.text)
        return Proof(
            principal=principal,
            kind=PrincipalKind.SESSION,
            handle=found.handle,
            claimed_scopes=found.claimed_scopes,
            session_id=found.id,
            csrf_token=csrf_token,
        )

    async def _workload(self, names: tuple[str, ...], *, may_ask: bool) -> Proof | None:
        for name in names:
            handle = Handle(PrincipalKind.WORKLOAD, name)
            principal = await self._find(handle, may_ask=may_ask)
            if principal is not None:
                return Proof(principal=principal, kind=PrincipalKind.WORKLOAD, handle=handle)
        return None

    async def _find(self, handle: Handle, *, may_ask: bool) -> Principal | None:
        held, principal = self._directory.held(handle)
        if held:
            return principal
        if not may_ask and not self._directory.knows(handle):
            raise _NotHeld
        return await self._directory.find(handle)
