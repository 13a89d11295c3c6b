"""An HTTP/2 client that resets a stream: httpx lets a stream it leaves run on, so it cannot show what a reset does."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events

from tests.support.gateway import Gateway, Tenant


class Http2Stream:
    """One POST on one connection; follows its answer, event by event. `EOFError` where it has ended before."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self._text = b""
        self._is_over = False
        self.headers: dict[str, str] = {}

    async def post(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> None:
        content = json.dumps(body).encode()
        self._connection.initiate_connection()
        head = {":method": "POST", ":path": path, ":scheme": "https", ":authority": "localhost"}
        fields = {**head, "content-type": "application/json", "content-length": str(len(content)), **headers}
        self._connection.send_headers(1, list(fields.items()))
        self._connection.send_data(1, content, end_stream=True)
        await self._flush()

    async def read_headers(self) -> None:
        """Wait until the answer has begun."""
        while not self.headers:
            await self._read()

    async def read_events(self, count: int) -> None:
        """Wait until so many events have come."""
        while self._text.count(b"\n\n") < count:
            await self._read()

    async def reset(self) -> None:
        """Leave the stream, and stay connected."""
        self._connection.reset_stream(1, h2.errors.ErrorCodes.CANCEL)
        await self._flush()

    async def _read(self) -> None:
        data = b"" if self._is_over else await self._reader.read(65536)
        if not data:
            raise EOFError
        for event in self._connection.receive_data(data):
            self._take(event)
        await self._flush()

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            self.headers = {bytes(name).decode(): bytes(value).decode() for name, value in event.headers or []}
        elif isinstance(event, h2.events.DataReceived):
            self._text += event.data or b""
            self._connection.acknowledge_received_data(event.flow_controlled_length or 0, 1)
        elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
            self._is_over = True

    async def _flush(self) -> None:
        self._writer.write(self._connection.data_to_send())
        await self._writer.drain()


@contextlib.asynccontextmanager
async def http2_post(
    gateway: Gateway, tenant: Tenant, path: str, body: dict[str, Any], **headers: str
) -> AsyncIterator[Http2Stream]:
    """A POST over a connection of its own, which is closed at the end of the block."""
    tls = gateway.tls
    tls.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, ssl=tls, server_hostname="127.0.0.1")
    stream = Http2Stream(reader, writer)
    renamed = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        await stream.post(path, body, {**tenant.headers, **renamed})
        yield stream
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
