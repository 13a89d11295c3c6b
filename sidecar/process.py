"""How does a child process live and end here? It is started, heard, awaited, stopped and started again.

Every child leads its own session, so that Ctrl-C at a terminal reaches only the supervisor, which then
decides the order of the end. It dies with its supervisor, even if that is killed with SIGKILL. Its last
lines are kept: mostly they say why it died. Which children there are: `sidecar/up.py`.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn, Self

REMEMBERED_LINES = 20
LONGEST_LINE = 64 * 1024
# An output pipe may be held open by a grandchild that outlives the child; its end is awaited this long only.
LAST_WORDS_SECONDS = 0.5
POLL_SECONDS = 0.02
NOT_STARTED = 127  # what a shell reports for a command it cannot run

_SIGNAL_NAMES = {number.value: number.name for number in signal.Signals}
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Resolved before any fork: a forked child must not take the dynamic loader's lock. PyDLL keeps the GIL.
_prctl = ctypes.PyDLL(None).prctl if sys.platform == "linux" else None

Sink = Callable[[str, str], None]
"""Takes a child's name and one line of its output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to run, and how it wants to be ended."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Added to the supervisor's environment. Not shown: it holds secrets."""
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 5.0
    """How long it may take to end after `stop_signal`; then its process group is killed."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a child ended. The code is minus the number of the signal, if one killed it."""

    name: str
    code: int
    last_lines: tuple[str, ...]

    def __str__(self) -> str:
        """One sentence, then the child's last lines."""
        how = f"ended with exit code {self.code}"
        if self.code < 0:
            how = f"was killed by {_SIGNAL_NAMES.get(-self.code, f'signal {-self.code}')}"
        return f"{self.name} {how}; its last lines:\n{_quoted(self.last_lines)}"


class StartError(Exception):
    """Something cannot run. The message is for the person at the terminal and says what to do."""


class ChildExitedError(StartError):
    """A child that should be running, or should have succeeded, has ended."""

    def __init__(self, ended: Exit) -> None:
        super().__init__(str(ended))
        self.exit = ended


class Child:
    """A started process. Made by `Child.start`; ended by `stop`, `kill` or itself."""

    def __init__(self, command: Command, process: asyncio.subprocess.Process, output: "_Output") -> None:
        self.command = command
        self.pid = process.pid
        self._output = output
        self._exited = asyncio.create_task(self._watch(process), name=f"watch {command.name}")

    @classmethod
    async def start(cls, command: Command, sink: Sink) -> Self:
        """Start the process; raises StartError when that is impossible."""
        output = _Output(command.name, sink)
        # Not asyncio's pipe: the exit must be seen even while a grandchild holds the output open.
        read, write = os.pipe()
        try:
            await asyncio.get_running_loop().connect_read_pipe(lambda: output, os.fdopen(read, "rb", 0))
            process = await _spawn(command, write)
        except BaseException:
            output.close()
            raise
        finally:
            os.close(write)
        return cls(command, process, output)

    @property
    def running(self) -> bool:
        """False as soon as its exit is known."""
        return not self._exited.done()

    @property
    def last_lines(self) -> tuple[str, ...]:
        """What it said last."""
        return tuple(self._output.last_lines)

    async def wait(self) -> Exit:
        """Wait for its end. Cancelling the wait leaves the child alone."""
        return await asyncio.shield(self._exited)

    async def stop(self) -> Exit:
        """End it with its stop signal, or by force after its deadline. May be called again."""
        # Not through Popen.send_signal: it reaps, and would steal the exit code from asyncio's watcher.
        with contextlib.suppress(ProcessLookupError):
            if self.running:
                os.kill(self.pid, self.command.stop_signal)
        try:
            return await asyncio.wait_for(self.wait(), self.command.stop_seconds)
        except TimeoutError:
            self.kill()
            return await self.wait()
        except asyncio.CancelledError:
            self.kill()
            raise

    def kill(self) -> None:
        """Kill its whole process group."""
        # macOS answers EPERM for a group of zombies.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.running:
                os.killpg(self.pid, signal.SIGKILL)

    async def _watch(self, process: asyncio.subprocess.Process) -> Exit:
        code = await process.wait()
        self.kill()  # what it left behind in its group
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._output.closed.wait(), LAST_WORDS_SECONDS)
        self._output.close()
        return Exit(self.command.name, code, self.last_lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """How long to wait before a child that died is started again: not at all at first, then doubling."""

    first_seconds: float = 0.2
    longest_seconds: float = 5.0
    steady_seconds: float = 10.0
    """A child that ran this long counts as healthy: its next death is a first one again."""

    def after(self, *, restarts: int, ran: float) -> tuple[float, int]:
        """Return the delay, and the number of restarts in a row once this one is done."""
        in_a_row = 0 if ran >= self.steady_seconds else restarts
        if in_a_row == 0:
            return 0.0, 1
        # The exponent is bounded, or a child that fails for an hour would overflow a float.
        return min(self.longest_seconds, self.first_seconds * 2.0 ** min(in_a_row - 1, 30)), in_a_row + 1


STEADY_RESTARTS = RestartPolicy()


async def keep_running(
    command: Command,
    *,
    sink: Sink,
    on_exit: Callable[[Exit], None],
    on_start: Callable[[Child], None] = lambda _: None,
    policy: RestartPolicy = STEADY_RESTARTS,
) -> NoReturn:
    """Run the command and start it again whenever it ends, until cancelled; then it is stopped first."""
    loop, restarts = asyncio.get_running_loop(), 0
    while True:
        began = loop.time()
        on_exit(await _one_life(command, sink=sink, on_start=on_start))
        delay, restarts = policy.after(restarts=restarts, ran=loop.time() - began)
        await asyncio.sleep(delay)


async def run_to_end(command: Command, *, sink: Sink, seconds: float) -> None:
    """Run a command that ends by itself; raises StartError when it fails or takes too long."""
    child = await Child.start(command, sink)
    try:
        ended = await asyncio.wait_for(child.wait(), seconds)
    except TimeoutError as error:
        raise StartError(f"{command.name} did not end within {seconds:g} s") from error
    finally:
        await child.stop()
    if ended.code != 0:
        raise ChildExitedError(ended)


async def wait_until_ready(child: Child, ready: Callable[[], Awaitable[bool]], *, seconds: float) -> None:
    """Ask `ready` until it says yes; raises StartError at once when the child ends, or after the deadline."""
    polling = asyncio.create_task(_poll(ready))
    ended = asyncio.create_task(child.wait())
    try:
        await asyncio.wait({polling, ended}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            raise ChildExitedError(ended.result())
        if not polling.done():
            late = f"{child.command.name} is not ready after {seconds:g} s; its last lines:"
            raise StartError(f"{late}\n{_quoted(child.last_lines)}")
        polling.result()
    finally:
        polling.cancel()
        ended.cancel()
        await asyncio.gather(polling, ended, return_exceptions=True)


class _Output(asyncio.Protocol):
    """The reading end of a child's output: lines to the sink, the last of them kept."""

    def __init__(self, name: str, sink: Sink) -> None:
        self.closed = asyncio.Event()
        self.last_lines: deque[str] = deque(maxlen=REMEMBERED_LINES)
        self._name = name
        self._sink = sink
        self._rest = b""
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST_LINE:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._take(line)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the name is the protocol's
        if self._rest:
            self._take(self._rest)
            self._rest = b""
        self.closed.set()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _take(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip("\r")
        self.last_lines.append(text)
        self._sink(self._name, text)


async def _spawn(command: Command, output: int) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *command.argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **command.env},
            start_new_session=True,
            preexec_fn=_die_with(os.getpid()),
        )
    except OSError as error:
        raise StartError(f"cannot start {command.name}: {command.argv[0]}: {error.strerror}") from error


def _die_with(parent: int) -> Callable[[], None] | None:
    """Make what runs between fork and exec: the kernel then kills the child when the forking thread ends."""
    if (prctl := _prctl) is None:
        return None

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:  # it died before prctl, which then waits for the death of another parent
            os.kill(os.getpid(), signal.SIGKILL)

    return in_child


async def _one_life(command: Command, *, sink: Sink, on_start: Callable[[Child], None]) -> Exit:
    try:
        child = await Child.start(command, sink)
    except StartError as error:  # too many processes, no memory: may pass, so it counts as a death
        return Exit(command.name, NOT_STARTED, (str(error),))
    try:
        on_start(child)
        return await child.wait()
    finally:
        await child.stop()


def _quoted(lines: Iterable[str]) -> str:
    return "\n".join(f"    {line}" for line in lines) or "    (none)"


async def _poll(ready: Callable[[], Awaitable[bool]]) -> None:
    while not await ready():  # noqa: ASYNC110 - what is asked is another process, which sets no Event
        await asyncio.sleep(POLL_SECONDS)
