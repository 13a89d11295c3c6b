"""With which public keys can a Router verify the gateway's identity tokens? `/.well-known/jwks.json`, for anybody."""

from collections.abc import Callable

import msgspec
from fastapi import APIRouter, Response

from authz.key_ring import JWKS_MAX_AGE_SECONDS, KeyRing
from control.errors import UNAVAILABLE, Now, Refused

PATH = "/.well-known/jwks.json"
MEDIA_TYPE = "application/jwk-set+json"  # RFC 7517 section 8.5
_CACHED = {"cache-control": f"public, max-age={JWKS_MAX_AGE_SECONDS}"}


def router(ring: Callable[[], KeyRing | None], *, now: Now) -> APIRouter:
    """The endpoint. `ring` gives the keys, None while they are not known: it answers 503 until then."""
    endpoints = APIRouter(tags=["identity"])

    @endpoints.get(PATH, response_class=Response, summary="Public keys of the identity tokens")
    async def jwks() -> Response:
        """A JSON Web Key Set (RFC 7517) of the Ed25519 keys (RFC 8037) that sign `x-gateway-identity`."""
        known = ring()
        if known is None:
            raise Refused(UNAVAILABLE)
        return Response(msgspec.json.encode(known.jwks(now())), media_type=MEDIA_TYPE, headers=_CACHED)

    return endpoints
