"""Does the lean server stay as it is for an hour? A storm of calls, each checked, and its memory from end to end.

`python -m tests.bench.storm [--minutes 60] [--callers 24]`. grpcio's client calls a server in a process of its own:
unary calls and streams of all sizes, cancelled, late, refused, left with their connection. No answer may be wrong, none
may be missing, and what the server holds at the end must be what it held when it was warm. It says so, and exits with 1
otherwise. Loopback only; it ends by itself.
"""

import argparse
import asyncio
import contextlib
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil
import uvloop

from sidecar.lifetime import settle_in, termination
from transport.address import UnixAddress
from transport.lean_server import LeanServer
from transport.service import Service, Stream

NAME = "bench.Storm"
MIB = 1024 * 1024
MOST_GROWTH = 0.1
_WARM_SHARE = 0.1
_DEADLINE_SECONDS = 60.0
_PAUSE_SECONDS = 0.1
_SIZES = (0, 1, 100, 1_000, 16_384, 70_000, 300_000)
_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]


class Wrong(Exception):
    """An answer that is not the one."""


@dataclass(slots=True)
class Storm:
    """What callers share."""

    path: Path
    ends_at: float
    done: Counter[str] = field(default_factory=Counter)

    def channel(self) -> Any:
        return grpc.aio.insecure_channel(f"unix:{self.path}", options=_OPTIONS)

    async def call(self, seed: int) -> None:
        """One caller: on one connection for a while, then on the next."""
        dice = random.Random(seed)  # noqa: S311 - a storm that can be made again
        kinds = (self._unary, self._unary, self._stream, self._stream, self._cancelled, self._late, self._unknown)
        while time.monotonic() < self.ends_at:
            async with self.channel() as channel:
                for _ in range(dice.randrange(1, 200)):
                    kind = dice.choice(kinds)
                    await kind(channel, dice)
                    self.done[kind.__name__.strip("_")] += 1
                    await asyncio.sleep(dice.random() * 2 * _PAUSE_SECONDS)
                    if time.monotonic() >= self.ends_at:
                        return
                await self._left(channel, dice)
                self.done["left"] += 1

    async def _unary(self, channel: Any, dice: random.Random) -> None:
        message = dice.randbytes(dice.choice(_SIZES))
        if await channel.unary_unary(f"/{NAME}/Unary")(message, timeout=_DEADLINE_SECONDS) != message:
            raise Wrong("unary")

    async def _stream(self, channel: Any, dice: random.Random) -> None:
        call = channel.stream_stream(f"/{NAME}/Stream")(timeout=_DEADLINE_SECONDS)
        for _ in range(dice.randrange(1, 20)):
            message = dice.randbytes(dice.choice(_SIZES))
            await call.write(message)
            if await call.read() != message:
                raise Wrong("stream")
        await call.done_writing()
        if await call.read() is not grpc.aio.EOF or await call.code() is not grpc.StatusCode.OK:
            raise Wrong("the end of a stream")

    async def _cancelled(self, channel: Any, dice: random.Random) -> None:
        call = channel.stream_stream(f"/{NAME}/Stream")(timeout=_DEADLINE_SECONDS)
        message = dice.randbytes(dice.choice(_SIZES))
        await call.write(message)
        if dice.random() < 0.5 and await call.read() != message:
            raise Wrong("a stream that is cancelled")
        call.cancel()

    async def _late(self, channel: Any, _: random.Random) -> None:
        try:
            await channel.unary_unary(f"/{NAME}/Never")(b"", timeout=0.05)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
        else:
            raise Wrong("an answer to what has none")

    async def _unknown(self, channel: Any, dice: random.Random) -> None:
        try:
            await channel.unary_unary(f"/{NAME}/Nothing{dice.random()}")(b"x", timeout=_DEADLINE_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
        else:
            raise Wrong("an answer of nobody")

    async def _left(self, channel: Any, dice: random.Random) -> None:
        """Streams in the midst of something, whose connection then goes."""
        for _ in range(dice.randrange(1, 20)):
            call = channel.stream_stream(f"/{NAME}/Stream")()
            await call.write(dice.randbytes(dice.choice(_SIZES)))


async def _echo(message: bytes) -> bytes:
    return message


async def _never(_: bytes) -> bytes:
    await asyncio.Event().wait()
    return b""


async def _serve(path: Path) -> None:
    running = 0

    async def echo_all(stream: Stream) -> None:
        nonlocal running
        running += 1
        try:
            while (message := await stream.read()) is not None:
                stream.write(message)
        finally:
            running -= 1

    service = Service(name=NAME, unary={"Unary": _echo, "Never": _never}, streams={"Stream": echo_all})
    errors: list[Exception] = []
    server = LeanServer([service], address=UnixAddress(path=path), max_body_bytes=MIB, observe_error=errors.append)
    terminated = termination()
    await server.start()
    settle_in()
    await terminated.wait()
    await server.stop(5)
    sys.exit(f"{running} handlers run still, errors: {errors}" if running or errors else 0)


@contextlib.asynccontextmanager
async def _served() -> AsyncIterator[tuple[Path, asyncio.subprocess.Process]]:
    with tempfile.TemporaryDirectory(prefix="gw-storm-") as folder:
        path = Path(folder) / "s.sock"
        server = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.bench.storm", "--serve", str(path))
        try:
            async with asyncio.timeout(30):
                while not path.exists():  # noqa: ASYNC110 - made by another process
                    await asyncio.sleep(0.02)
            yield path, server
        finally:
            with contextlib.suppress(ProcessLookupError):
                server.send_signal(signal.SIGTERM)
            if await server.wait():
                raise Wrong("the server did not end well")


async def _watched(process: psutil.Process, storm: Storm, seconds: float) -> list[float]:
    """Resident memory in MiB, a hundred times."""
    found = []
    while time.monotonic() < storm.ends_at:
        await asyncio.sleep(min(seconds / 100, max(0.1, storm.ends_at - time.monotonic())))
        found.append(process.memory_info().rss / MIB)
    return found


async def run(minutes: float, callers: int) -> int:
    seconds = minutes * 60
    async with _served() as (path, server):
        storm = Storm(path, time.monotonic() + seconds)
        process = psutil.Process(server.pid)
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(_watched(process, storm, seconds))
            for seed in range(callers):
                tasks.create_task(storm.call(seed))
        used = process.cpu_times()
    rss = watching.result()
    warm, last = max(rss[: max(1, int(len(rss) * _WARM_SHARE))]), rss[-1]
    calls = storm.done.total()
    sys.stdout.write(
        f"{calls:,} calls in {minutes:g} minutes, none wrong: {dict(storm.done)}\n"
        f"resident memory: {warm:.1f} MiB when warm, {max(rss):.1f} at most, {last:.1f} at the end\n"
        f"CPU of the server: {(used.user + used.system) / calls * 1e6:.0f} µs a call\n"
    )
    return int(last > warm * (1 + MOST_GROWTH))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.storm", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--callers", type=int, default=24)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(_serve(options.serve))
        return 0
    return asyncio.run(run(options.minutes, options.callers))


if __name__ == "__main__":
    sys.exit(main())
