"""How is a Router asked as the gateway asks it? With the gateway's headers, and without `accept-encoding`."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import httpx

from sidecar.router_check.answer import Answer
from sidecar.router_check.evidence import Evidence
from sidecar.router_check.spoken import Spoken, Telling

# A field that no dialect has: it must pass.
_UNKNOWN = {"x_unknown_field": {"of": ["the", "gateway's", "conformance", "check"]}}
_OF_THE_GATEWAY = {
    "x-org-id": "org_check",
    "x-tenant-id": "ten_check",
    "x-principal-id": "key_check",
    "x-principal-kind": "api_key",
    "x-tenant-plan": "check",
    "x-scopes": "inference:text inference:embeddings models:read",
}
ROUTING_POLICY = {"x-routing-policy": '{"tenantId":"ten_check","defaultStrategy":"cheapest"}'}


# More than any answer to the short question; a stream without an end ends here.
_MOST_BYTES = 8 * 1024 * 1024


class RouterAwayError(Exception):
    """There is nobody at the address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Which Router, how long each request may take in seconds, and what it wants to see in the headers."""

    url: str
    seconds: float
    headers: Mapping[str, str] = field(default_factory=dict)


def new_request_id() -> str:
    """An id as the gateway makes it."""
    return str(uuid4())


class Probe:
    """Sends one request after the other; what goes wrong on the way is in the answer."""

    def __init__(self, target: Target) -> None:
        self._http = httpx.AsyncClient(
            base_url=target.url, timeout=target.seconds, trust_env=False, follow_redirects=False, headers=target.headers
        )
        self._seconds = target.seconds
        # The gateway passes none on.
        del self._http.headers["accept-encoding"]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def models(self) -> Answer:
        """The list of models; `RouterAwayError` when nobody listens."""
        try:
            answer = await self._http.get("/v1/models", headers=_OF_THE_GATEWAY)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol) as error:
            raise RouterAwayError(str(error) or "no connection") from None
        except httpx.HTTPError as error:
            return Answer(status=0, headers={}, failure=_failure(error))
        return Answer(status=answer.status_code, headers=dict(answer.headers), pieces=(answer.content,))

    async def evidence(self, spoken: Spoken, model: str) -> Evidence:
        """Ask all that is asked in a dialect; no more than once when there is nothing at its path."""
        request_id, body = new_request_id(), spoken.body(model)
        plain = await self.ask(spoken.path, body, request_id=request_id)
        if not plain.is_offered:
            return Evidence(spoken=spoken, request_id=request_id, plain=plain)
        streams = spoken.telling is not Telling.NEVER
        return Evidence(
            spoken=spoken,
            request_id=request_id,
            plain=plain,
            extended=await self.ask(spoken.path, body | _UNKNOWN),
            wrong=await self.ask(spoken.path, spoken.wrong_body(model)),
            stream=await self.ask(spoken.path, spoken.body(model, stream=True)) if streams else None,
        )

    async def ask(
        self, path: str, body: dict[str, Any], *, request_id: str = "", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a body with the gateway's headers, or with these alone, and read the answer to its end."""
        sent = _sent(request_id) if headers is None else dict(headers)
        pieces: list[bytes] = []
        status, told, size, failure = 0, dict[str, str](), 0, ""
        try:
            async with (
                asyncio.timeout(self._seconds),
                self._http.stream("POST", path, json=body, headers=sent) as answer,
            ):
                status, told = answer.status_code, dict(answer.headers)
                async for piece in answer.aiter_bytes():
                    pieces.append(piece)
                    size += len(piece)
                    if size > _MOST_BYTES:
                        failure = f"more than {_MOST_BYTES} bytes"
                        break
        except (httpx.HTTPError, TimeoutError) as error:
            failure = _failure(error)
        return Answer(status=status, headers=told, pieces=tuple(pieces), failure=failure)

    @asynccontextmanager
    async def opened(self, path: str, body: dict[str, Any], request_id: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a stream, and close its connection at the end of the block, wherever it is.

        What happens in the block may raise `HTTPError`, or `TimeoutError` when it takes longer than a request may.
        """
        async with (
            asyncio.timeout(self._seconds),
            self._http.stream("POST", path, json=body, headers=_sent(request_id)) as answer,
        ):
            yield answer.aiter_bytes()

    async def cancel(self, request_id: str) -> Answer:
        """Ask the Router to stop a request."""
        try:
            answer = await self._http.delete(f"/v1/infer/{request_id}")
        except httpx.HTTPError as error:
            return Answer(status=0, headers={}, failure=_failure(error))
        return Answer(status=answer.status_code, headers=dict(answer.headers), pieces=(answer.content,))


def _sent(request_id: str) -> dict[str, str]:
    return _OF_THE_GATEWAY | ROUTING_POLICY | {"x-request-id": request_id or new_request_id()}


def _failure(error: Exception) -> str:
    late = isinstance(error, httpx.TimeoutException | TimeoutError)
    return "no end in time" if late else f"broken off ({str(error) or type(error).__name__})"
