"""A Router that breaks the contract in one way: the stand-in, with something changed on its way out."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import httpx
from aiohttp import web

from demo.router import running

PACE = 0.01
Change = Callable[["Said"], "Said"]


@dataclass(frozen=True, slots=True)
class Said:
    """One request, and what the stand-in answered to it; `after_a_break` when a connection was closed before."""

    method: str
    path: str
    headers: dict[str, str]
    sent: bytes
    status: int
    content_type: str
    body: bytes
    after_a_break: bool

    def answering(self, status: int, body: bytes = b"{}") -> "Said":
        return replace(self, status=status, content_type="application/json", body=body)


class _BrokenRouter:
    def __init__(self, behind: httpx.AsyncClient, change: Change) -> None:
        self._behind = behind
        self._change = change
        self._broken = False

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        sent, headers = await request.read(), {name.lower(): value for name, value in request.headers.items()}
        answer = await self._behind.request(request.method, request.raw_path, content=sent, headers=headers)
        said = self._change(
            Said(
                method=request.method,
                path=request.path,
                headers=headers,
                sent=sent,
                status=answer.status_code,
                content_type=answer.headers["content-type"],
                body=answer.content,
                after_a_break=self._broken,
            )
        )
        response = web.StreamResponse(status=said.status, headers={"content-type": said.content_type})
        await response.prepare(request)
        try:
            await self._write(response, said)
        except (ConnectionError, asyncio.CancelledError):
            self._broken = True
            raise
        return response

    @staticmethod
    async def _write(response: web.StreamResponse, said: Said) -> None:
        if "event-stream" not in said.content_type:
            await response.write(said.body)
            return
        for event in said.body.split(b"\n\n")[:-1]:
            await response.write(event + b"\n\n")
            await asyncio.sleep(PACE)
        await response.write(said.body.split(b"\n\n")[-1])


@asynccontextmanager
async def broken(change: Change) -> AsyncIterator[str]:
    """Run such a Router and give its URL."""
    async with running(interval_ms=0) as url, httpx.AsyncClient(base_url=url) as behind:
        server = web.Server(_BrokenRouter(behind, change), handler_cancellation=True)
        listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        finally:
            listener.close()
            await server.shutdown(0.1)
