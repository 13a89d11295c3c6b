"""Who did what through the gateway's own API? Each change is written into the audit trail before it is made.

What is not in Postgres cannot be changed in the transaction of its audit row. The row comes first: an outage of the
trail refuses the change, and a crash in between leaves a row of a change that never came to be. The other order could
leave a change that nobody wrote down.
"""

from fastapi import Request

from authz.identity_token import ADDRESS_HEADER, Caller
from control.errors import REQUEST_ID_HEADER, Now
from store.audit import Actor, Change, append_all
from store.database import Pool, within

_UNKNOWN = "unknown"
# Envoy waits 10 s for the whole answer: nothing may be changed for a client that has been told of a timeout.
_PATIENCE_SECONDS = 5.0


class Journal:
    """Writes what callers are about to change."""

    def __init__(self, pool: Pool, *, pepper: bytes, now: Now) -> None:
        self._pool = pool
        self._pepper = pepper
        self._now = now

    async def write(self, request: Request, caller: Caller, change: Change) -> None:
        """Write one change; raises `DatabaseOutage`, and then nothing may be changed."""
        entry = (actor(request, caller), self._now(), change)
        await within(_PATIENCE_SECONDS, append_all(self._pool, [entry], pepper=self._pepper))


def actor(request: Request, caller: Caller) -> Actor:
    """The caller, as the audit trail names who acts."""
    return Actor(
        name=caller.principal_id,
        source=client_address(request),
        request_id=request.headers.get(REQUEST_ID_HEADER),
    )


def client_address(request: Request) -> str:
    """The address that Check saw and hands on; a client's own header of this name never comes so far."""
    return request.headers.get(ADDRESS_HEADER, "") or _UNKNOWN
