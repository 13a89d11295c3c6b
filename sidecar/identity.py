"""How is one worker's knowledge of callers put together, kept true, and closed? The composition behind Check."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from authz.cached_directory import CachedDirectory
from authz.cached_sessions import CachedSessions
from authz.directory import Directory, DirectoryOutage
from authz.failures import FailureGuard
from authz.grant import Grant
from authz.identification import Identifier
from authz.identity_token import IdentityTokens
from authz.issuer import parse_issuers
from authz.key_ring import KeyRing
from authz.principal import Handle, Principal
from authz.refusal import Refusal
from authz.service import Authorization, RefusedCredential
from authz.token import TokenVerifier
from authz.wire import Passes
from quota.pipe import Pipe
from sidecar import metrics, signing_keys
from sidecar.jwks_client import JwksClient
from sidecar.logs import Logger
from sidecar.refused_credentials import RefusedCredentials
from sidecar.settings import Settings
from store.database import DatabaseOutage, Pool
from store.directory import PostgresDirectory
from store.failures import RedisFailureCounts
from store.identity_listener import IdentityListener
from store.key_uses import KeyUses
from store.sessions import RedisSessions

# Less than Envoy waits for Check (envoy/envoy.yaml), so that the caller is told which part is away.
_DIRECTORY_SECONDS = 1.0
_KEY_USES_SECONDS = 10.0


class Kept(Protocol):
    """Something that is kept true beside the callers, and told of every change."""

    def announce(self, change: str | None) -> None:
        """A row has changed: `table:id:version`; anything else means that every one may have."""

    async def run(self) -> None:
        """Keep it true until cancelled."""


class _CountedDirectory:
    """A directory whose answers are counted."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    async def find(self, handle: Handle) -> Principal | None:
        try:
            principal = await self._directory.find(handle)
        except DirectoryOutage:
            metrics.observe_directory_read("outage")
            raise
        metrics.observe_directory_read("unknown" if principal is None else "found")
        return principal


class _Observer:
    """Projects what Check decided onto metrics, the audit trail and the times of last use."""

    def __init__(self, refused: RefusedCredentials, uses: KeyUses) -> None:
        self._refused = refused
        self._uses = uses

    def granted(self, grant: Grant | None, now: float) -> None:
        metrics.observe_check(grant)
        if grant is not None and grant.key_id:
            self._uses.note(grant.key_id, now)

    def refused(self, refusal: Refusal, credential: RefusedCredential | None) -> None:
        metrics.observe_check(refusal)
        if credential is not None:
            self._refused.note(credential)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What answers Check, and what runs beside it until cancelled."""

    authorization: Authorization
    listener: IdentityListener
    tokens: TokenVerifier
    kept: tuple[Kept, ...]
    refused: RefusedCredentials
    guard: FailureGuard
    uses: KeyUses
    pool: Pool

    async def run(self) -> None:
        """Keep everything true until cancelled."""
        async with asyncio.TaskGroup() as group:
            for work in (self.listener.run(), self.tokens.run(), self.refused.run()):
                group.create_task(work)
            for each in self.kept:
                group.create_task(each.run())
            group.create_task(self._write_uses())

    async def finish(self) -> None:
        """Write what waits, if Postgres and Redis take it now."""
        with contextlib.suppress(DatabaseOutage):
            await self.refused.flush(everything=True)
            await self.uses.flush(self.pool)
        await self.guard.drain()

    async def _write_uses(self) -> None:
        while True:
            await asyncio.sleep(_KEY_USES_SECONDS)
            with contextlib.suppress(DatabaseOutage):
                await self.uses.flush(self.pool)


@contextlib.asynccontextmanager
async def opened(
    settings: Settings, pool: Pool, pipe: Pipe, logger: Logger, *, kept: tuple[Kept, ...] = ()
) -> AsyncIterator[Identity]:
    """Put it together; what it opens is closed at the end of the block. `kept` is refreshed along with its own."""
    pepper = settings.key_pepper.get_secret_value().encode()
    async with contextlib.aclosing(JwksClient(ca=settings.jwks_ca)) as jwks:
        directory = CachedDirectory(
            _CountedDirectory(PostgresDirectory(pool, deadline_seconds=_DIRECTORY_SECONDS)), now=time.monotonic
        )
        tokens = TokenVerifier.of(
            parse_issuers(settings.jwt_issuers),
            jwks,
            now=time.time,
            monotonic=time.monotonic,
            observe=metrics.observe_tokens,
        )
        identifier = Identifier(
            directory,
            CachedSessions(RedisSessions(pipe, pepper=pepper), now=time.monotonic),
            tokens,
            pepper=pepper,
            certificate_dns_names=settings.certificate_dns_names,
        )
        guard = FailureGuard(RedisFailureCounts(pipe), limit=settings.failure_limit, now=time.monotonic)
        yield _composed(settings, pool, logger, parts=_Parts(directory, tokens, identifier, guard, kept))


@dataclass(frozen=True, slots=True)
class _Parts:
    directory: CachedDirectory
    tokens: TokenVerifier
    identifier: Identifier
    guard: FailureGuard
    kept: tuple[Kept, ...]


def _composed(settings: Settings, pool: Pool, logger: Logger, *, parts: _Parts) -> Identity:
    pepper = settings.key_pepper.get_secret_value().encode()
    router_key = settings.router_api_key
    identity_tokens = IdentityTokens(now=time.time)
    passes = Passes(identity_tokens, router_api_key=None if router_key is None else router_key.get_secret_value())

    def use(ring: KeyRing) -> None:
        identity_tokens.use(ring)
        passes.clear()

    kept = (signing_keys.refresher(pool, pepper=pepper, use=use, logger=logger), *parts.kept)

    def on_change(change: str | None) -> None:
        parts.directory.announce(change)
        for each in kept:
            each.announce(change)

    refused = RefusedCredentials(
        pool, pepper=pepper, now=lambda: datetime.now(UTC), observe_dropped=metrics.AUDIT_DROPPED.inc
    )
    uses = KeyUses()
    return Identity(
        authorization=Authorization(
            parts.identifier, parts.guard, passes, observer=_Observer(refused, uses), now=time.time
        ),
        listener=IdentityListener(settings.database_url.get_secret_value(), on_change),
        tokens=parts.tokens,
        kept=kept,
        refused=refused,
        guard=parts.guard,
        uses=uses,
        pool=pool,
    )
