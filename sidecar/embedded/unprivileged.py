"""As whom does a server run that refuses root? As nobody when we are root, as ourselves otherwise.

Nobody keeps CAP_DAC_OVERRIDE, to read binaries and reach folders below a closed home such as /root. It is the
capability that containers have by default; CAP_DAC_READ_SEARCH would do too, but they drop that one.
"""

import os
import shutil
import subprocess
from pathlib import Path

from sidecar.process import StartError

NOBODY = 65534
CHECK_SECONDS = 10


def as_nobody(argv: tuple[str, ...]) -> tuple[str, ...]:
    """Return the command line that runs `argv` as nobody, or `argv` itself for an ordinary user."""
    if os.geteuid() != 0:
        return argv
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise StartError(
            "Postgres does not run as root, and setpriv, which would start it as nobody, is missing: "
            "install the package util-linux, or run as an ordinary user"
        )
    return (
        *(setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
        *("--inh-caps=+dac_override", "--ambient-caps=+dac_override"),
        # Changing the user clears the parent-death signal, so setpriv sets it again.
        *("--pdeathsig=KILL", "--"),
        *argv,
    )


def check_nobody(binary: Path) -> None:
    """Raise StartError when this machine does not let us run the binary as nobody."""
    if os.geteuid() != 0:
        return
    # Asked by doing it: containers withhold users and capabilities in too many ways to list.
    argv = as_nobody((str(binary), "--version"))
    ran = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=CHECK_SECONDS)  # noqa: S603 - our own argv
    if ran.returncode != 0:
        raise StartError(
            "Postgres does not run as root, and it cannot be started as nobody here "
            f"({ran.stderr.strip() or f'exit code {ran.returncode}'}): run as an ordinary user, "
            "or allow CAP_SETUID, CAP_SETGID and CAP_DAC_OVERRIDE"
        )


def give_to_nobody(folder: Path) -> None:
    """Make the folder if need be, closed to others; for root, all of it then belongs to nobody."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if os.geteuid() != 0 or folder.stat().st_uid == NOBODY:
        return
    # The folder itself comes last: its owner tells that all of it is done.
    for parent, _, files in os.walk(folder, topdown=False):
        for path in (*(os.path.join(parent, file) for file in files), parent):  # noqa: PTH118 - os.walk gives text
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
