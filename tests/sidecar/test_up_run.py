"""Does a whole run start, serve, end without a trace, and start again? With real servers and a stand-in gateway."""

import os
import shlex
import shutil
import signal
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sidecar.embedded.ports import free_port, http_status
from sidecar.process import Child, Command
from tests.sidecar.embedded.processes import alive, below, until
from tests.sidecar.embedded.stand_in import ITSELF


@dataclass
class Started:
    """One run of `up` in a process of its own, heard."""

    state: Path
    port: int = field(default_factory=free_port)
    ops_port: int = field(default_factory=free_port)
    env: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[Child]:
        env = {
            "GATEWAY_STATE": str(self.state),
            "GATEWAY_PORT": str(self.port),
            "GATEWAY_OPS_PORT": str(self.ops_port),
            **self.env,
        }
        command = Command(name="up", argv=(*ITSELF, "up"), env=env, stop_seconds=20)
        child = await Child.start(command, lambda _, line: self.lines.append(line))
        try:
            yield child
        finally:
            await child.stop()
            await until(lambda: not below(self.state))

    async def ready(self, child: Child) -> None:
        await until(lambda: "Ctrl-C ends it" in self.text or not child.running, seconds=60)
        assert child.running, self.text

    async def status(self) -> int | None:
        tls = ssl.create_default_context(cafile=self.state / "tls" / "ca.pem")
        return await http_status(self.port, "/healthz", tls=tls)


@pytest.fixture
def state() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="gw-up-"))
    yield path / "run"
    shutil.rmtree(path)


def redis_below(state: Path) -> int:
    return next(pid for pid in below(state) if b"redis-server" in Path(f"/proc/{pid}/cmdline").read_bytes())


async def test_it_starts_serves_ends_and_starts_again(state: Path) -> None:
    for stop_signal in (signal.SIGINT, signal.SIGTERM):
        started = Started(state)
        async with started.run() as child:
            await started.ready(child)
            assert await started.status() == 200
            assert len(below(state)) >= 3
            os.kill(child.pid, stop_signal)
            assert (await child.wait()).code == 0, started.text
            assert not below(state)
        assert await started.status() is None
    assert {path.name for path in (state / "log").glob("*.log")} >= {"postgres.log", "redis.log", "router.log"}


async def test_scripts_and_people_get_the_key(state: Path) -> None:
    started = Started(state)
    async with started.run() as child:
        await started.ready(child)
        demo_env = state / "demo.env"
        words = [word for word in shlex.split(demo_env.read_text()) if word != "export"]
        assignments = dict(word.split("=", 1) for word in words)
        assert assignments == {
            "GATEWAY_URL": f"https://127.0.0.1:{started.port}",
            "GATEWAY_CA": str(state / "tls" / "ca.pem"),
            "GATEWAY_API_KEY": "key-1",
            "GATEWAY_CLIENT_CERT": str(state / "tls" / "client.pem"),
            "GATEWAY_CLIENT_KEY": str(state / "tls" / "client.key"),
        }
        for secret in ("demo.env", "demo.key", "pepper", "tls/server.key", "tls/client.key"):
            assert (state / secret).stat().st_mode & 0o777 == 0o600
        assert "authorization: Bearer key-1" in started.text
        assert f"sidecar  | listening on {started.ops_port}" in started.lines
        assert "postgres |" not in started.text


async def test_a_long_state_path_gets_sockets_elsewhere(state: Path) -> None:
    started = Started(state / ("long" * 20) / "and with, a comma")
    async with started.run() as child:
        await started.ready(child)
        assert await started.status() == 200


async def test_a_child_that_dies_ends_the_run_with_its_last_lines(state: Path) -> None:
    started = Started(state)
    async with started.run() as child:
        await started.ready(child)
        redis = redis_below(state)
        os.kill(redis, signal.SIGKILL)
        assert (await child.wait()).code == 1
        assert "inference-gateway: redis was killed by SIGKILL; its last lines:" in started.text


async def test_a_sidecar_that_does_not_start_is_shown(state: Path) -> None:
    started = Started(state, env={"STAND_IN_FAILS": "1"})
    async with started.run() as child:
        assert (await child.wait()).code == 1
    assert "inference-gateway: sidecar ended with exit code 3; its last lines:\n    out of luck" in started.text


async def test_a_killed_run_leaves_nothing_and_the_next_one_starts(state: Path) -> None:
    started = Started(state)
    async with started.run() as child:
        await started.ready(child)
        children = below(state)
        os.kill(child.pid, signal.SIGKILL)
        await child.wait()
        again = Started(state)
        async with again.run() as second:  # at once, while the children of the first may still be dying
            await again.ready(second)
        await until(lambda: not any(alive(pid) for pid in children))


async def test_a_signal_while_starting_ends_it(state: Path) -> None:
    started = Started(state)
    async with started.run() as child:
        await until(lambda: "Starting in" in started.text)
        os.kill(child.pid, signal.SIGINT)
        assert (await child.wait()).code == 0, started.text


async def test_a_second_signal_kills_at_once(state: Path) -> None:
    started = Started(state)
    async with started.run() as child:
        await started.ready(child)
        stubborn = redis_below(state)
        os.kill(stubborn, signal.SIGSTOP)
        os.kill(child.pid, signal.SIGINT)
        await until(lambda: "Stopping" in started.text)
        before = time.monotonic()
        os.kill(child.pid, signal.SIGINT)
        assert (await child.wait()).code == 0
        assert time.monotonic() - before < 1.5


async def test_two_runs_do_not_share_a_state_folder(state: Path) -> None:
    first, second = Started(state), Started(state)
    async with first.run() as child:
        await first.ready(child)
        other = await Child.start(
            Command(name="up", argv=(*ITSELF, "up"), env={"GATEWAY_STATE": str(state)}),
            lambda _, line: second.lines.append(line),
        )
        assert (await other.wait()).code == 1
        assert f"the state folder {state} is in use by another run (process {child.pid})" in second.text
        assert "GATEWAY_STATE" in second.text
        assert await first.status() == 200
