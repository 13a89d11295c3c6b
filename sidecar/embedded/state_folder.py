"""What does `up` keep between its runs? One folder, which one run at a time may use."""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sidecar.process import StartError

# A Unix socket's path holds 107 bytes (sun_path); this leaves room for "/pg/.s.PGSQL.5432.lock".
MAX_SOCKETS_LENGTH = 80
# Postgres splits its list of socket folders at commas, and URLs give other characters a meaning.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+-]+")


@dataclass(frozen=True, slots=True)
class StateFolder:
    """The folder of one installation. `opened` makes it, locks it and gives it sockets."""

    path: Path
    sockets: Path
    """Emptied at each start: nothing in it outlives a run."""

    @property
    def postgres(self) -> Path:
        """Postgres' data."""
        return self.path / "postgres"

    @property
    def redis(self) -> Path:
        """Redis' data."""
        return self.path / "redis"

    @property
    def tls(self) -> Path:
        """The CA and the listener's certificate."""
        return self.path / "tls"

    @property
    def log(self) -> Path:
        """One file per child."""
        return self.path / "log"

    @property
    def envoy_config(self) -> Path:
        """What Envoy was started with."""
        return self.path / "envoy.yaml"

    @property
    def demo_env(self) -> Path:
        """Shell assignments for scripts that call the gateway."""
        return self.path / "demo.env"

    def recall(self, name: str) -> str | None:
        """Return what `remember` wrote."""
        try:
            return (self.path / name).read_text().strip() or None
        except FileNotFoundError:
            return None

    def remember(self, name: str, text: str) -> None:
        """Write a file that only its owner may read; whole, or not at all."""
        fresh = self.path / f"{name}.new"
        fresh.unlink(missing_ok=True)
        fresh.touch(mode=0o600)
        fresh.write_text(text)
        fresh.replace(self.path / name)

    def secret(self, name: str, make: Callable[[], str]) -> str:
        """Return what is remembered under the name, made at the first start."""
        if (known := self.recall(name)) is not None:
            return known
        made = make()
        self.remember(name, made + "\n")
        return made


@contextlib.contextmanager
def opened(path: Path) -> Iterator[StateFolder]:
    """Hold the folder for one run; raises StartError when another run holds it or it is not ours."""
    path = path.absolute()
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StartError(
            f"cannot make the state folder {path} ({error.strerror}): set GATEWAY_STATE to another one"
        ) from error
    try:
        with _locked(path), _sockets(path) as sockets:
            yield StateFolder(path, sockets)
    except PermissionError as error:
        if not str(error.filename).startswith(str(path)):
            raise
        raise StartError(
            f"no permission for {error.filename}: was {path} made by another user? "
            "Set GATEWAY_STATE to a folder of your own, or give this one to yourself with chown -R"
        ) from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    # The kernel drops the lock with the process, however that ends. Children do not inherit it (O_CLOEXEC).
    with (path / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise StartError(
                f"the state folder {path} is in use by another run (process {holder}): "
                "end that one, or set GATEWAY_STATE to another folder"
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


@contextlib.contextmanager
def _sockets(path: Path) -> Iterator[Path]:
    inside = path / "sock"
    try:
        shutil.rmtree(inside)
    except FileNotFoundError:
        pass
    except PermissionError as error:  # it names only the last part of the path
        raise PermissionError(error.errno, error.strerror, str(inside)) from error
    if _fits(inside):
        inside.mkdir(mode=0o700)
        yield inside
        return
    outside = _short_folder()
    try:
        yield outside
    finally:
        shutil.rmtree(outside, ignore_errors=True)


def _fits(path: Path) -> bool:
    return len(str(path)) <= MAX_SOCKETS_LENGTH and _PLAIN_PATH.fullmatch(str(path)) is not None


def _short_folder() -> Path:
    # macOS and some shells set a long TMPDIR.
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - mkdtemp makes a closed folder in it
        if _fits(Path(parent) / "gw-12345678"):
            return Path(tempfile.mkdtemp(prefix="gw-", dir=parent))
    raise StartError("the path of the temporary folder is too long for sockets: set TMPDIR to a shorter one")
