"""A real Redis of one's own: the server of the wheel, in a short folder, in a loop that outlives each test's."""

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sidecar.embedded.redis import EmbeddedRedis
from sidecar.process import Child
from tests.sidecar.embedded.processes import launch
from tests.support.postgres import Loop, running_loop


@dataclass(slots=True)
class OwnRedis:
    """One redis-server, which may be frozen, killed and started again."""

    folder: Path
    loop: Loop
    children: list[Child] = field(default_factory=list)

    @property
    def server(self) -> EmbeddedRedis:
        return EmbeddedRedis(data=self.folder / "data", socket=self.socket)

    @property
    def socket(self) -> Path:
        return self.folder / "redis.sock"

    @property
    def url(self) -> str:
        return self.server.url

    def start(self) -> None:
        self.children.append(self.loop.run(self.server.start(launch)))

    def stop(self) -> None:
        if self.children:
            self.loop.run(self.children.pop().stop())

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It accepts connections and answers nothing, until the end of the block."""
        pid = self.children[-1].pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def running() -> Iterator[OwnRedis]:
    # Not pytest's folder: a socket's path holds 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="gw-redis-"))
    with running_loop() as loop:
        redis = OwnRedis(folder, loop)
        try:
            redis.start()
            yield redis
        finally:
            redis.stop()
            shutil.rmtree(folder, ignore_errors=True)
