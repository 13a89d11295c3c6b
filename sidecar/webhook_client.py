"""How is one webhook sent? A POST, once, in bounded time, to a public address; no redirect is followed."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self

import httpcore

from sidecar.public_network import Forbidden, PublicNetwork
from sidecar.webhook_retries import Answer

CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"
DEADLINE_SECONDS = 10.0
_USER_AGENT = "inference-gateway"
_MOST_READ = 16 * 1024
_KEPT = 100
_KEPT_SECONDS = 20.0
# For each address of a name, so that one that is silent leaves time for the next.
_TIMES = {"timeout": {"connect": 3.0}}
_REFUSED = "the host has an address that is not public"
_UNUSABLE = "the URL cannot be used"
# By what httpcore raises; its own words may hold an address.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (httpcore.TimeoutException, "no answer in time"),
    (httpcore.ConnectError, "no connection"),
    (httpcore.ProtocolError, "the answer is no HTTP"),
    (httpcore.NetworkError, "the connection broke"),
    (httpcore.UnsupportedProtocol, _UNUSABLE),
    (ValueError, _UNUSABLE),  # one that httpcore cannot write
    (ssl.SSLError, "the connection broke"),  # after the handshake
)
_FAILURES = tuple(kind for kind, _ in _REASONS)


class WebhookClient:
    """Posts webhooks. The deadline counts from the name to the end of the answer."""

    def __init__(
        self,
        network: PublicNetwork,
        *,
        connections: int,
        tls: ssl.SSLContext | None = None,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        self._deadline = deadline_seconds
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls or ssl.create_default_context(),
            max_connections=connections,
            max_keepalive_connections=min(connections, _KEPT),
            keepalive_expiry=_KEPT_SECONDS,
            network_backend=network,
        )

    async def __call__(self, url: str, headers: Sequence[tuple[str, str]], body: bytes) -> Answer:
        """What came of it; raises nothing for what an endpoint can do."""
        try:
            async with asyncio.timeout(self._deadline):
                return await self._post(url, headers, body)
        except TimeoutError:
            return Answer(error="no answer in time")
        except Forbidden:
            return Answer(error=_REFUSED)
        except _FAILURES as error:
            return Answer(error=_reason(error))

    async def _post(self, url: str, headers: Sequence[tuple[str, str]], body: bytes) -> Answer:
        sent = [
            ("content-type", CONTENT_TYPE),
            ("user-agent", _USER_AGENT),
            # Not read, so it need not be packed.
            ("accept-encoding", "identity"),
            *headers,
        ]
        async with self._pool.stream("POST", url, headers=sent, content=body, extensions=_TIMES) as response:
            await _drain(response.aiter_stream())
            found = {name.lower(): value for name, value in response.headers}
            retry_after = found.get(b"retry-after", b"").decode("latin-1")
        status = response.status
        return Answer(status=status, error=f"status {status}", retry_after=retry_after)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.aclose()


async def _drain(stream: AsyncIterator[bytes]) -> None:
    """Read a short answer, so that its connection can be used again; a long one is cut off with its connection."""
    read = 0
    async for piece in stream:
        read += len(piece)
        if read > _MOST_READ:
            return


def _reason(error: Exception) -> str:
    certificate = error.__cause__ or error.__context__
    while certificate is not None and not isinstance(certificate, ssl.SSLCertVerificationError):
        certificate = certificate.__cause__ or certificate.__context__
    if certificate is not None:
        return f"the certificate is not valid: {certificate.verify_message}"
    return next(text for kind, text in _REASONS if isinstance(error, kind))
