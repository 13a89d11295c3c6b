"""Which keys does an issuer sign with now? Its JWK Set, remembered, and read anew ahead of time.

Nobody waits for an issuer whose keys are held. While it is down, its last good set is used for ever: an outage of the
identity provider refuses no one who holds a token, and the set's age is told to `observe`.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from authz import json_web_key
from authz.issuer import Issuer
from authz.json_web_key import Key

_MAX_DOUBLINGS = 16  # of the backoff: a float has an end


class FetchFailed(Exception):
    """The document could not be had; the text says why."""


class Fetch(Protocol):
    """Gets a document over the network, without blocking the event loop, in bounded time and size."""

    async def __call__(self, url: str, /) -> bytes:
        """The body of a successful answer; raises `FetchFailed` for everything else."""


class KeysUnavailable(Exception):
    """The issuer cannot be asked now, and without it nobody knows whether it has such a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySetStatus:
    """How things stand with one issuer's keys. `age_seconds` is None while they have never been had.

    `failures` counts the fetches that have failed since the last good one; `error` says how the last one did.
    """

    issuer: str
    keys: int = 0
    age_seconds: float | None = None
    failures: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often an issuer is asked, in seconds.

    A set older than `refresh` is read anew in the background. An unknown key makes for one more fetch an interval of
    `unknown`, whoever asks. After failures the next fetch waits for `backoff`, doubled with each up to `longest`.
    A caller waits for a fetch for `patience` at most: less than Envoy waits for Check.
    """

    refresh: float = 200.0  # two thirds of the age of 300 that a set may have while its issuer answers
    unknown: float = 10.0
    backoff: float = 1.0
    longest: float = 10.0
    patience: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    document: bytes
    keys: dict[str, Key]  # by name
    fetched_at: float


def _ignore(_: KeySetStatus) -> None:
    pass


class KeySet:
    """The keys of one issuer with a `jwks_url`. `now` is a monotonic clock in seconds."""

    def __init__(
        self,
        issuer: Issuer,
        fetch: Fetch,
        *,
        now: Callable[[], float],
        observe: Callable[[KeySetStatus], None] = _ignore,
        pace: Pace | None = None,
    ) -> None:
        self._issuer = issuer
        self._fetch = fetch
        self._now = now
        self._observe = observe
        self._pace = pace or Pace()
        self._held: _Held | None = None
        self._flight: asyncio.Task[None] | None = None
        self._failures = 0
        self._error = ""
        self._not_before = float("-inf")
        self._asked_again_at = float("-inf")

    @property
    def status(self) -> KeySetStatus:
        """How things stand now."""
        held = self._held
        return KeySetStatus(
            issuer=self._issuer.issuer,
            keys=0 if held is None else len(held.keys),
            age_seconds=None if held is None else self._now() - held.fetched_at,
            failures=self._failures,
            error=self._error,
        )

    @property
    def _flying(self) -> bool:
        return self._flight is not None and not self._flight.done()

    def holds(self, key: Key) -> bool:
        """Whether the key is in the set as it is known now."""
        self._refresh_when_due()
        return self._held is not None and key.name in self._held.keys

    async def find(self, kid: str | None, algorithm: str) -> Key | None:
        """The key as `json_web_key.fitting`, asking the issuer again for one that is not held.

        Raises `KeysUnavailable` when it is not held and the issuer does not answer.
        """
        self._refresh_when_due()
        before = self._held
        found = self._fitting(kid, algorithm)
        if found is not None:
            return found
        if not self._flying:
            if not self._may_ask_again():
                return None
            self._asked_again_at = self._now()
            self._fly()
        await self._landing()
        found = self._fitting(kid, algorithm)
        if found is None and self._held is before:
            raise KeysUnavailable(self._issuer.issuer)
        return found

    def tend(self) -> None:
        """Read the set anew if it is time to, and tell how things stand."""
        self._refresh_when_due()
        self._observe(self.status)

    def _fitting(self, kid: str | None, algorithm: str) -> Key | None:
        return None if self._held is None else json_web_key.fitting(self._held.keys.values(), kid, algorithm)

    def _refresh_when_due(self) -> None:
        now = self._now()
        if self._flying or now < self._not_before:
            return
        if self._held is None or now - self._held.fetched_at > self._pace.refresh:
            self._fly()

    def _may_ask_again(self) -> bool:
        """Whether an unknown key is a reason to ask; raises `KeysUnavailable` when not, and the last fetch failed."""
        now = self._now()
        if now < self._not_before:
            raise KeysUnavailable(self._issuer.issuer)
        due = now - self._asked_again_at >= self._pace.unknown
        if self._failures and not due:
            raise KeysUnavailable(self._issuer.issuer)
        return due

    async def _landing(self) -> None:
        """Wait for the flight, which goes on when the wait is over or its caller leaves."""
        if self._flight is None:
            return
        done, _ = await asyncio.wait({self._flight}, timeout=self._pace.patience)
        for landed in done:
            landed.result()  # raises what only a bug can raise

    def _fly(self) -> None:
        self._back_off()  # until it has landed well: whatever ends it, the next one waits
        self._flight = asyncio.get_running_loop().create_task(self._fetch_and_keep())

    def _back_off(self) -> None:
        wait = self._pace.backoff * 2.0 ** min(self._failures, _MAX_DOUBLINGS)
        self._not_before = self._now() + min(wait, self._pace.longest)

    async def _fetch_and_keep(self) -> None:
        asked_at = self._now()
        try:
            document = await self._fetch(self._issuer.jwks_url or "")
            keys = await self._read(document)
        except FetchFailed as error:
            self._back_off()
            self._failures += 1
            self._error = str(error)
        else:
            # The age counts from before the question: what changed meanwhile may not be in the answer.
            self._held = _Held(document=document, keys=keys, fetched_at=asked_at)
            self._failures = 0
            self._error = ""
            self._not_before = float("-inf")
        self._observe(self.status)

    async def _read(self, document: bytes) -> dict[str, Key]:
        if self._held is not None and self._held.document == document:
            return self._held.keys
        try:
            # A hundred keys take milliseconds to read, which others on the loop would wait for.
            keys = await asyncio.to_thread(json_web_key.read, document)
        except ValueError as error:
            raise FetchFailed(f"the document {error}") from error
        return {key.name: key for key in keys}


class StaticKeySet:
    """The keys of an issuer that are part of the settings: nothing is fetched, and nothing changes."""

    def __init__(self, issuer: Issuer) -> None:
        self._keys = json_web_key.read_object(issuer.keys or {"keys": []})

    def holds(self, key: Key) -> bool:
        """Whether the key is one of the settings'."""
        return key in self._keys

    async def find(self, kid: str | None, algorithm: str) -> Key | None:
        """The key as `json_web_key.fitting`."""
        return json_web_key.fitting(self._keys, kid, algorithm)

    def tend(self) -> None:
        """Do nothing: there is nothing to read anew."""
