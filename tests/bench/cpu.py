"""How much CPU has a tree of processes used? The kernel's own account of each, in nanoseconds where it gives them."""

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import psutil

_CPUCLOCK_SCHED = 2  # linux/posix-timers.h; MAKE_PROCESS_CPUCLOCK is (~pid << 3) | clock


@dataclass(frozen=True, slots=True)
class Group:
    """Some process trees that are counted together, or those of their processes that run a module."""

    roots: tuple[int, ...]
    module: str | None = None


def read(groups: Mapping[str, Group]) -> dict[str, float]:
    """CPU seconds of each group since its processes began."""
    return {name: _seconds(group) for name, group in groups.items()}


def spent(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """CPU seconds between two readings."""
    return {name: after[name] - before[name] for name in after}


def _seconds(group: Group) -> float:
    return sum(_own_seconds(pid) for pid in processes(group)) + sum(_reaped_seconds(pid) for pid in group.roots)


def processes(group: Group) -> Iterable[int]:
    """The processes of a group, by pid."""
    for root in group.roots:
        process = psutil.Process(root)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                if group.module is None or group.module in one.cmdline():
                    yield one.pid


def _own_seconds(pid: int) -> float:
    if sys.platform == "linux":
        # The clock of another process: all its threads, the ended ones too; /proc/<pid>/stat counts 10 ms steps.
        with contextlib.suppress(OSError):  # it has ended since it was listed
            return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
        return 0.0
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _reaped_seconds(pid: int) -> float:
    """What the children of this process used that have ended: Postgres' helpers come and go."""
    if sys.platform != "linux":
        return 0.0
    with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123 - a Path costs more than the reading
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
