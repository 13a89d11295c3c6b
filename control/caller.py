"""Who calls the gateway's own API? Whoever Check found, as its signed token says; nothing else is believed.

Envoy removes what a client sends under this header and Check sets it anew. The signature keeps out whoever reaches the
socket past Envoy.
"""

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends
from fastapi.requests import HTTPConnection

from authz.identity_token import IDENTITY_HEADER, Caller, read_caller
from authz.key_ring import KeyRing
from authz.refusal import Reason, Refusal
from control.errors import UNAVAILABLE, Now, Refused


class Callers:
    """Reads callers from their tokens. `ring` gives the public keys, None while they are not known."""

    def __init__(self, ring: Callable[[], KeyRing | None], *, now: Now) -> None:
        self._ring = ring
        self._now = now

    def read(self, tokens: list[str]) -> Caller | Refusal:
        """The caller of the one token that came; a Refusal for none, for several, and for one that does not hold."""
        ring = self._ring()
        if ring is None:
            return UNAVAILABLE
        caller = read_caller(tokens[0], ring, self._now()) if len(tokens) == 1 else None
        return caller or Refusal(reason=Reason.MISSING_CREDENTIALS)


async def _authenticated(request: HTTPConnection) -> Caller:
    callers: Callers = request.app.state.callers
    found = callers.read(request.headers.getlist(IDENTITY_HEADER))
    if isinstance(found, Refusal):
        raise Refused(found)
    return found


Authenticated = Annotated[Caller, Depends(_authenticated)]
"""The parameter by which an endpoint asks for its caller; who is none gets 401 before the endpoint runs."""
