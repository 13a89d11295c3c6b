"""Does the state folder keep what it is told, privately, and say plainly when it is not ours?"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.embedded.state_folder import MAX_SOCKETS_LENGTH, opened
from sidecar.process import StartError
from tests.sidecar.embedded.test_postgres import as_root


@contextmanager
def ordinary_user() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_secret_is_made_once_and_private(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        assert state.recall("pepper") is None
        assert state.secret("pepper", lambda: "first") == "first"
        assert state.secret("pepper", lambda: "second") == "first"
    assert (tmp_path / "pepper").stat().st_mode & 0o777 == 0o600


def test_a_file_left_half_written_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "pepper.new").write_text("ha")
    with opened(tmp_path) as state:
        assert state.secret("pepper", lambda: "whole") == "whole"


def test_sockets_are_new_and_short_whatever_the_path(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    with opened(long) as state:
        assert len(str(state.sockets)) <= MAX_SOCKETS_LENGTH
        assert state.sockets.stat().st_mode & 0o777 == 0o700
        assert list(state.sockets.iterdir()) == []
    assert not state.sockets.exists()


def test_a_second_holder_is_told_who_holds_it(tmp_path: Path) -> None:
    with (
        opened(tmp_path),
        pytest.raises(StartError, match=rf"in use by another run \(process {os.getpid()}\).*GATEWAY_STATE"),
        opened(tmp_path),
    ):
        pass
    with opened(tmp_path):
        pass


def test_a_file_in_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(StartError, match=r"cannot make the state folder .*file \(File exists\)"),
        opened(tmp_path / "file"),
    ):
        pass


@as_root
def test_the_folder_of_another_user_is_told(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    # pytest closes its folders to others.
    for folder in (tmp_path, *tmp_path.parents):
        if Path(tempfile.gettempdir()) in folder.parents:
            folder.chmod(0o755)
    with (
        ordinary_user(),
        pytest.raises(StartError, match=r"no permission for .*lock: was .* made by another user\?"),
        opened(tmp_path),
    ):
        pass
    (tmp_path / "lock").chmod(0o666)
    (tmp_path / "sock" / "left").touch()
    with ordinary_user(), pytest.raises(StartError, match=r"no permission for .*sock: was"), opened(tmp_path):
        pass
