"""A real OIDC issuer: an HTTP server of its own, in its own thread, that signs tokens, rotates its keys, goes down and
comes back on the same port."""

import asyncio
import json
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from tests.support.postgres import Loop, running_loop

AUDIENCE = "inference-gateway"
WAIT_SECONDS = 20
_CURVES: dict[str, ec.EllipticCurve] = {
    "ES256": ec.SECP256R1(),
    "ES384": ec.SECP384R1(),
    "ES512": ec.SECP521R1(),
}

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key pair of an issuer."""

    kid: str
    alg: str
    private: PrivateKey

    @classmethod
    def generate(cls, alg: str = "ES256", kid: str | None = None) -> "SigningKey":
        return cls(kid or secrets.token_hex(4), alg, _private(alg))

    @property
    def jwk(self) -> dict[str, Any]:
        """The public key as JWK."""
        public = self.private.public_key()
        members: dict[str, Any]
        if isinstance(public, rsa.RSAPublicKey):
            members = RSAAlgorithm.to_jwk(public, as_dict=True)
        elif isinstance(public, ec.EllipticCurvePublicKey):
            members = ECAlgorithm.to_jwk(public, as_dict=True)
        else:
            members = OKPAlgorithm.to_jwk(public, as_dict=True)
        members.pop("key_ops", None)
        return {**members, "kid": self.kid, "use": "sig", "alg": self.alg}

    def sign(self, claims: dict[str, Any], headers: dict[str, Any] | None = None) -> str:
        """A JWT of these claims; a header of None is left out."""
        whole = {"kid": self.kid, **(headers or {})}
        headers = {name: value for name, value in whole.items() if value is not None}
        return jwt.encode(claims, self.private, algorithm=self.alg, headers=headers)


def _private(alg: str) -> PrivateKey:
    if alg == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    if alg in _CURVES:
        return ec.generate_private_key(_CURVES[alg])
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@dataclass(slots=True)
class OidcIssuer:
    """One issuer. The newest key signs; `published` are the keys in its JWK Set."""

    loop: Loop
    now: Callable[[], float] = time.time
    audience: str = AUDIENCE
    published: list[SigningKey] = field(default_factory=list)
    retired: list[SigningKey] = field(default_factory=list)
    fetches: int = 0
    port: int = 0
    _socket: socket.socket | None = None
    _runner: web.AppRunner | None = None
    _open: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        """The issuer's name and address, the `iss` of its tokens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def jwks_url(self) -> str:
        return f"{self.url}/jwks.json"

    @property
    def jwks(self) -> dict[str, Any]:
        return {"keys": [key.jwk for key in self.published]}

    def configuration(self, **changes: Any) -> dict[str, Any]:
        """One entry of GATEWAY_JWT_ISSUERS that trusts this issuer."""
        return {"issuer": self.url, "audiences": [self.audience], "jwks_url": self.jwks_url, **changes}

    def setting(self, **changes: Any) -> str:
        """The whole value of GATEWAY_JWT_ISSUERS."""
        return json.dumps([self.configuration(**changes)])

    def token(self, *, tenant: str | None = "ten_a", scope: str | None = "inference:text", **claims: Any) -> str:
        """A token of the newest key that is right in everything, but for what is given; None leaves a claim out."""
        return self.issue(tenant=tenant, scope=scope, **claims)

    def issue(self, *, kid: str | None = None, alg: str | None = None, **claims: Any) -> str:
        """As `token`, with the key of this id or, failing that, the newest one of this algorithm."""
        now = int(self.now())
        usual = {"iss": self.url, "aud": self.audience, "sub": "user-1", "iat": now, "nbf": now, "exp": now + 300}
        whole = {name: value for name, value in {**usual, **claims}.items() if value is not None}
        return self.key(kid=kid, alg=alg).sign(whole)

    def key(self, *, kid: str | None = None, alg: str | None = None) -> SigningKey:
        """The newest key of this id and algorithm, retired ones last."""
        return next(
            key
            for key in (*reversed(self.published), *reversed(self.retired))
            if kid in {None, key.kid} and alg in {None, key.alg}
        )

    def add_key(self, alg: str = "ES256", kid: str | None = None) -> str:
        """Publish one more key, which signs from now on; its id."""
        self.published.append(SigningKey.generate(alg, kid))
        return self.published[-1].kid

    def retire(self, kid: str) -> None:
        """Take a key out of the JWK Set. It still signs when asked for by its id."""
        key = self.key(kid=kid)
        self.published.remove(key)
        self.retired.append(key)

    def rotate(self, alg: str = "ES256") -> str:
        """Publish a new key in place of all others; its id."""
        for key in tuple(self.published):
            self.retire(key.kid)
        return self.add_key(alg)

    def up(self) -> None:
        """Listen; again on the same port, after `down`."""
        self.loop.run(self._start())

    def down(self) -> None:
        """Stop listening and drop all connections."""
        self.loop.run(self._stop())

    @contextmanager
    def slow(self) -> Iterator[None]:
        """Until the end of the block the JWK Set is asked for and not answered."""
        self.loop.loop.call_soon_threadsafe(self._open.clear)
        try:
            yield
        finally:
            self.loop.loop.call_soon_threadsafe(self._open.set)

    async def fetched(self, times: int) -> None:
        """Wait until the JWK Set has been asked for so many times in all."""
        async with asyncio.timeout(WAIT_SECONDS):
            while self.fetches < times:  # noqa: ASYNC110 - it is counted in another thread's loop
                await asyncio.sleep(0.005)

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_get("/jwks.json", self._answer_jwks)
        app.router.add_get("/.well-known/openid-configuration", self._answer_configuration)
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        await self._runner.setup()
        self._open.set()
        await web.SockSite(self._runner, self._socket or self._bound()).start()

    async def _stop(self) -> None:
        self._open.set()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
            self._socket = self._bound()  # not listening: connections are refused, and nobody else takes the port

    def _bound(self) -> socket.socket:
        bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", self.port))
        self.port = bound.getsockname()[1]
        return bound

    async def _answer_jwks(self, _: web.Request) -> web.Response:
        self.fetches += 1
        await self._open.wait()
        return web.json_response(self.jwks)

    async def _answer_configuration(self, _: web.Request) -> web.Response:
        return web.json_response({"issuer": self.url, "jwks_uri": self.jwks_url})

    def close(self) -> None:
        """Stop for good."""
        self.down()
        if self._socket is not None:
            self._socket.close()


@contextmanager
def running_issuer(*, alg: str = "ES256", now: Callable[[], float] = time.time) -> Iterator[OidcIssuer]:
    """An issuer with one key, on a free port of the loopback address. `now`: seconds since the epoch."""
    with running_loop() as loop:
        issuer = OidcIssuer(loop, now=now)
        issuer.add_key(alg)
        issuer.up()
        try:
            yield issuer
        finally:
            issuer.close()
