"""What does a server answer to a client that may send anything? A raw connection.

It sends any bytes, in pieces if told to, and reads what comes with hyperframe and hpack, which share no code with the
server. Section numbers are those of RFC 9113.
"""

import asyncio
import fcntl
import socket
import struct
import termios
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Self

import hpack
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.transport.hostile_reply import Reply
from tests.transport.hostile_wire import (
    ACK,
    DEFAULT_FRAME,
    DEFAULT_WINDOW,
    LARGEST_WINDOW,
    PREFACE,
    Code,
    Kind,
    Setting,
    call,
    data,
    frame,
    settings,
    window_update,
)

# Against hanging; the largest floods take seconds.
BOUND_SECONDS = 60
_QUIET_ROUNDS = 3


async def turned(condition: Callable[[], object]) -> None:
    """Let the loop turn until it holds. The server lives in the same loop, and tells nobody what it has done."""
    async with asyncio.timeout(BOUND_SECONDS):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)


@dataclass(slots=True, repr=False)
class Client:
    """One connection, and all that came over it. Nothing is sent or answered that a test did not ask for."""

    sock: socket.socket
    open: bool = True
    settings: dict[int, int] = field(default_factory=dict)
    settings_frames: int = 0
    settings_acks: int = 0
    pongs: list[bytes] = field(default_factory=list)
    pings: list[bytes] = field(default_factory=list)
    granted: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    spent: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    streams: defaultdict[int, Reply] = field(default_factory=lambda: defaultdict(Reply))
    goaway: GoAwayFrame | None = None
    most_octets: int = DEFAULT_FRAME
    """Of a frame that the server may send."""
    _said: int = 0
    _raw: bytearray = field(default_factory=bytearray)
    _decoder: hpack.Decoder = field(default_factory=hpack.Decoder)
    _marks: int = 0

    @classmethod
    async def connect(cls, path: Path) -> Self:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(0)
        async with asyncio.timeout(BOUND_SECONDS):
            await asyncio.get_running_loop().sock_connect(sock, str(path))
        return cls(sock)

    def close(self) -> None:
        self.sock.close()

    def __repr__(self) -> str:
        end = f"{Code(self.goaway.error_code).name} {bytes(self.goaway.additional_data)!r}" if self.goaway else "none"
        streams = dict(list(self.streams.items())[:4])
        return f"open={self.open} GOAWAY={end} {self.settings=} {self.settings_acks=} {len(self.streams)=} {streams=}"

    async def send(self, *pieces: bytes) -> None:
        """Send; what a server that has closed does not take is told by what comes back, not here."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(BOUND_SECONDS):
            for piece in pieces:
                try:
                    await loop.sock_sendall(self.sock, piece)
                except (BrokenPipeError, ConnectionResetError):
                    return

    async def send_apart(self, whole: bytes, cuts: Iterable[int]) -> None:
        """Send it in pieces, each after the server has read the one before."""
        for start, end in pairwise([0, *cuts, len(whole)]):
            await self.send(whole[start:end])
            await turned(lambda: not self.unread())

    def unread(self) -> int:
        """How much of what was sent still lies in the kernel; 0 when the server has read it all."""
        answer = fcntl.ioctl(self.sock, termios.TIOCOUTQ, bytes(4))
        return int(struct.unpack("i", answer)[0])

    async def until(self, condition: Callable[[], object]) -> None:
        """Read until it holds."""
        if not await self.until_end_or(condition):
            raise AssertionError(f"the connection ended: {self}")

    async def until_end_or(self, condition: Callable[[], object] = lambda: False) -> bool:
        """Read until it holds or the connection ends; whether it held."""
        try:
            async with asyncio.timeout(BOUND_SECONDS):
                while not condition():
                    if not await self.read():
                        return bool(condition())
        except TimeoutError:
            raise AssertionError(f"nothing more came: {self}") from None
        return True

    async def read(self) -> bool:
        """Read once; False at the end of the connection."""
        try:
            came = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 18)
        except ConnectionResetError:
            came = b""
        self.open = bool(came)
        self._raw += came
        at = 0
        while len(self._raw) - at >= 9:
            head, length = Frame.parse_frame_header(memoryview(bytes(self._raw[at : at + 9])))
            if len(self._raw) - at < 9 + length:
                break
            assert length <= self.most_octets
            head.parse_body(memoryview(bytes(self._raw[at + 9 : at + 9 + length])))
            at += 9 + length
            self._take(head)
        del self._raw[:at]
        return self.open

    def _take(self, came: Frame) -> None:
        self._said += not isinstance(came, PingFrame)
        match came:
            case HeadersFrame() | DataFrame() | RstStreamFrame():
                self._take_of_stream(self.streams[came.stream_id], came)
            case SettingsFrame() if "ACK" in came.flags:
                self.settings_acks += 1
            case SettingsFrame():
                self.settings_frames += 1
                self.settings |= came.settings
            case PingFrame() if "ACK" in came.flags:
                self.pongs.append(came.opaque_data)
            case PingFrame():
                self.pings.append(came.opaque_data)
            case GoAwayFrame():
                self.goaway = came
            case WindowUpdateFrame():
                self.granted[came.stream_id] += came.window_increment
            case _:
                raise AssertionError(f"a server sends no such frame here: {came}")

    def _take_of_stream(self, reply: Reply, came: Frame) -> None:
        assert not reply.over or isinstance(came, RstStreamFrame), f"after the end of the stream: {came}"
        match came:
            case HeadersFrame():
                # Nothing that a server of gRPC says needs more than one frame.
                assert "END_HEADERS" in came.flags
                reply.heads.append(dict(self._decoder.decode(bytes(came.data), raw=True)))
            case DataFrame():
                reply.body += came.data
            case RstStreamFrame():
                reply.code = Code(came.error_code)
            case _:
                raise AssertionError(came)
        reply.ended |= "END_STREAM" in came.flags

    async def greet(self, values: Mapping[Setting, int] | None = None, *, window: int = LARGEST_WINDOW) -> None:
        """Shake hands: preface, settings, acknowledgements both ways; by default with windows that never fill."""
        given = {Setting.INITIAL_WINDOW_SIZE: LARGEST_WINDOW} if values is None else values
        self.most_octets = given.get(Setting.MAX_FRAME_SIZE, DEFAULT_FRAME)
        await self.send(PREFACE + settings(*given.items()))
        await self.until(lambda: self.settings_frames and self.settings_acks)
        more = window - DEFAULT_WINDOW
        await self.send(frame(Kind.SETTINGS, flags=ACK) + (window_update(0, more) if more > 0 else b""))

    async def is_good(self, stream_id: int) -> None:
        """A call on that new stream is answered."""
        await self.send(call(stream_id, b"good"))
        reply = self.streams[stream_id]
        await self.until(lambda: reply.over)
        assert (reply.messages, reply.grpc_status, reply.code) == ([b"good"], 0, None)

    async def echo(self, sent: bytes = b"") -> bool:
        """Send, however much it is, and wait until the server has taken it; whether the connection is open then."""
        self._marks += 1
        mark = self._marks.to_bytes(8, "big")
        sending = asyncio.ensure_future(self.send(sent + frame(Kind.PING, payload=mark)))
        try:
            return await self.until_end_or(lambda: mark in self.pongs)
        finally:
            sending.cancel()
            await asyncio.wait({sending})

    async def settle(self) -> None:
        """Read until the server has nothing more to say: not in several round trips."""
        quiet = 0
        while quiet < _QUIET_ROUNDS:
            before = self._said
            if not await self.echo():
                return
            quiet = quiet + 1 if self._said == before else 0

    def room(self, stream_id: int) -> int:
        """How much DATA may be sent now: of the stream's window and of the connection's."""
        first = self.settings.get(Setting.INITIAL_WINDOW_SIZE, DEFAULT_WINDOW)
        of_stream = first + self.granted[stream_id] - self.spent[stream_id]
        return min(of_stream, DEFAULT_WINDOW + self.granted[0] - self.spent[0])

    async def give(self, stream_id: int, payload: bytes, flags: int = 0) -> None:
        """Send DATA, whether there is room for it or not."""
        self.spent[0] += len(payload)
        self.spent[stream_id] += len(payload)
        await self.send(data(stream_id, payload, flags))

    async def pour(self, stream_id: int, payload: bytes, flags: int = 0) -> int:
        """Send as much as there is room for, and what the server makes room for; how much that was."""
        at = 0
        while at < len(payload):
            if self.room(stream_id) <= 0:
                await self.settle()
            piece = payload[at : at + max(self.room(stream_id), 0)]
            if not piece or not self.open:
                return at
            at += len(piece)
            await self.give(stream_id, piece, flags if at == len(payload) else 0)
        return at


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Client]:
    """A connection on which nothing has been said."""
    client = await Client.connect(path)
    try:
        yield client
    finally:
        client.close()


@asynccontextmanager
async def greeted(path: Path) -> AsyncIterator[Client]:
    """A connection after both sides' greetings."""
    async with connected(path) as client:
        await client.greet()
        yield client
