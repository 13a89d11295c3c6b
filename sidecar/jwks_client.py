"""How are an issuer's keys fetched? With GET, once, in bounded time and size; whatever goes wrong is `FetchFailed`."""

import asyncio
import ssl
from pathlib import Path

import httpx

from authz.json_web_key import MAX_DOCUMENT_BYTES
from authz.key_set import FetchFailed

# Compression is refused: a small answer could become a large one.
_HEADERS = {"accept": "application/jwk-set+json, application/json", "accept-encoding": "identity"}


class JwksClient:
    """The `Fetch` of `authz.key_set`. The deadline counts from connecting to the last byte."""

    def __init__(self, *, ca: Path | None = None, deadline_seconds: float = 2.0) -> None:
        """`ca`: PEM file of the certificates that vouch for the issuers' servers; the system's, when not given."""
        self._deadline = deadline_seconds
        self._http = httpx.AsyncClient(
            verify=ssl.create_default_context(cafile=ca),
            timeout=deadline_seconds,
            # The keys come from the address that was configured, or not at all.
            follow_redirects=False,
            # Only sidecar.settings reads the environment.
            trust_env=False,
            headers=_HEADERS,
        )

    async def __call__(self, url: str, /) -> bytes:
        """The body of the answer with status 200."""
        try:
            async with asyncio.timeout(self._deadline), self._http.stream("GET", url) as response:
                return await _body(response)
        except TimeoutError as error:
            raise FetchFailed(f"no whole answer within {self._deadline} s") from error
        # RuntimeError: the client has been closed, at the process's end.
        except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as error:
            raise FetchFailed(f"{type(error).__name__}: {error}") from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()


async def _body(response: httpx.Response) -> bytes:
    if response.status_code != httpx.codes.OK:
        raise FetchFailed(f"the answer's status is {response.status_code}")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise FetchFailed("the answer is compressed")
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > MAX_DOCUMENT_BYTES:
            raise FetchFailed(f"the answer is larger than {MAX_DOCUMENT_BYTES} bytes")
    return bytes(body)
