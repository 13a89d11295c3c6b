"""Do children live and end as promised? With real processes."""

import asyncio
import os
import signal
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.process import (
    Child,
    ChildExitedError,
    Command,
    Exit,
    RestartPolicy,
    StartError,
    keep_running,
    run_to_end,
    wait_until_ready,
)
from tests.sidecar.embedded.processes import alive, no_sink, until

FAST = RestartPolicy(first_seconds=0.01, longest_seconds=0.02)


def python(code: str, *, name: str = "child", stop_seconds: float = 5.0) -> Command:
    argv = (sys.executable, "-u", "-c", textwrap.dedent(code))
    return Command(name=name, argv=argv, stop_seconds=stop_seconds)


async def test_lines_reach_the_sink_with_the_name_and_the_last_are_kept() -> None:
    seen: list[tuple[str, str]] = []
    child = await Child.start(
        python("for n in range(30): print(n)\nprint('no newline', end='')"), lambda *said: seen.append(said)
    )
    ended = await child.wait()
    assert seen == [*(("child", str(n)) for n in range(30)), ("child", "no newline")]
    assert ended == Exit("child", 0, (*(str(n) for n in range(11, 30)), "no newline"))


async def test_a_line_without_end_is_cut() -> None:
    seen: list[str] = []
    child = await Child.start(python("print('x' * 1_000_000)"), lambda _, line: seen.append(line))
    await child.wait()
    assert "".join(seen) == "x" * 1_000_000
    assert len(seen) > 1


async def test_an_exit_tells_its_signal_and_its_last_lines() -> None:
    child = await Child.start(python("import os; print('why'); os.kill(os.getpid(), 9)"), no_sink)
    assert str(await child.wait()) == "child was killed by SIGKILL; its last lines:\n    why"


async def test_a_missing_binary_is_told_plainly() -> None:
    with pytest.raises(StartError, match=r"cannot start ghost: /no/such/file: No such file"):
        await Child.start(Command(name="ghost", argv=("/no/such/file",)), no_sink)


async def test_a_child_leads_its_own_session() -> None:
    child = await Child.start(python("import time; time.sleep(60)"), no_sink)
    assert os.getsid(child.pid) == child.pid != os.getsid(0)
    await child.stop()


async def test_stop_sends_the_chosen_signal() -> None:
    lines: list[str] = []
    code = """
        import signal, sys, time
        signal.signal(signal.SIGINT, lambda *_: (print("interrupted"), sys.exit(3)))
        print("up")
        time.sleep(60)
    """
    command = Command(name="child", argv=python(code).argv, stop_signal=signal.SIGINT)
    child = await Child.start(command, lambda _, line: lines.append(line))
    await until(lambda: lines == ["up"])
    assert (await child.stop()).code == 3
    assert lines == ["up", "interrupted"]
    assert (await child.stop()).code == 3


async def test_a_stubborn_child_and_its_group_are_killed() -> None:
    lines: list[str] = []
    code = """
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(os.fork())
        time.sleep(60)
    """
    child = await Child.start(python(code, stop_seconds=0.2), lambda _, line: lines.append(line))
    await until(lambda: len(lines) == 2)
    grandchild = int(next(line for line in lines if line != "0"))
    assert (await child.stop()).code == -signal.SIGKILL
    await until(lambda: not alive(grandchild))


async def test_a_grandchild_is_not_left_behind() -> None:
    lines: list[str] = []
    code = "import os, time; pid = os.fork(); pid and print(pid); pid or time.sleep(60)"
    child = await Child.start(python(code), lambda _, line: lines.append(line))
    assert (await child.wait()).code == 0
    await until(lambda: not alive(int(lines[0])))


async def test_an_exit_is_seen_while_a_runaway_grandchild_holds_the_output() -> None:
    lines: list[str] = []
    code = "import os, time; pid = os.fork(); pid and print(pid); pid or (os.setsid(), time.sleep(60))"
    child = await Child.start(python(code), lambda _, line: lines.append(line))
    try:
        async with asyncio.timeout(10):
            assert (await child.wait()).code == 0
    finally:
        with suppress(ProcessLookupError):
            os.kill(int(lines[0]), signal.SIGKILL)


async def test_children_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    code = f"""
        import asyncio
        from pathlib import Path
        from sidecar.process import Child, Command

        async def main():
            command = Command(name="sleeper", argv=("sleep", "60"))
            children = [await Child.start(command, print) for _ in range(3)]
            Path({str(tmp_path / "pids.new")!r}).write_text(" ".join(str(child.pid) for child in children))
            Path({str(tmp_path / "pids.new")!r}).rename({str(tmp_path / "pids")!r})
            await children[0].wait()

        asyncio.run(main())
    """
    supervisor = await Child.start(python(code), no_sink)
    await until((tmp_path / "pids").exists)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert all(alive(pid) for pid in pids)
    os.kill(supervisor.pid, signal.SIGKILL)
    await supervisor.wait()
    await until(lambda: not any(alive(pid) for pid in pids))


def test_restarts_back_off_and_forget() -> None:
    policy = RestartPolicy()
    delays, restarts = [], 0
    for _ in range(8):
        delay, restarts = policy.after(restarts=restarts, ran=0.1)
        delays.append(delay)
    assert delays == pytest.approx([0, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5])
    assert policy.after(restarts=restarts, ran=10.0) == (0.0, 1)


@given(st.integers(0, 10**9), st.floats(0, 1e9))
def test_no_delay_is_longer_than_the_longest(restarts: int, ran: float) -> None:
    delay, _ = RestartPolicy().after(restarts=restarts, ran=ran)
    assert 0 <= delay <= RestartPolicy().longest_seconds


async def test_a_kept_child_is_started_again_until_cancelled() -> None:
    started: list[Child] = []
    exits: list[Exit] = []
    keeping = asyncio.create_task(
        keep_running(
            python("import time; print('up'); time.sleep(60)"),
            sink=no_sink,
            on_start=started.append,
            on_exit=exits.append,
            policy=FAST,
        )
    )
    for count in (1, 2, 3):
        await until(lambda count=count: len(started) == count)  # type: ignore[misc]
        if count < 3:
            os.kill(started[-1].pid, signal.SIGKILL)
    keeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await keeping
    assert [ended.code for ended in exits] == [-signal.SIGKILL] * 2
    assert not any(alive(child.pid) for child in started)


async def test_a_command_that_cannot_start_counts_as_a_death() -> None:
    exits: list[Exit] = []
    ghost = Command(name="ghost", argv=("/no/such/file",))
    keeping = asyncio.create_task(keep_running(ghost, sink=no_sink, on_exit=exits.append, policy=FAST))
    await until(lambda: len(exits) >= 3)
    keeping.cancel()
    with suppress(asyncio.CancelledError):
        await keeping
    assert exits[0].code == 127


async def test_readiness_fails_at_once_when_the_child_ends() -> None:
    async def never() -> bool:
        return False

    child = await Child.start(python("print('no room'); raise SystemExit(4)"), no_sink)
    with pytest.raises(ChildExitedError, match=r"child ended with exit code 4; its last lines:\n    no room"):
        await wait_until_ready(child, never, seconds=60)


async def test_readiness_has_a_deadline() -> None:
    async def never() -> bool:
        return False

    child = await Child.start(python("import time; time.sleep(60)"), no_sink)
    with pytest.raises(StartError, match=r"child is not ready after 0.1 s"):
        await wait_until_ready(child, never, seconds=0.1)
    await child.stop()


async def test_a_run_that_fails_or_hangs_is_told() -> None:
    await run_to_end(python("pass"), sink=no_sink, seconds=30)
    with pytest.raises(ChildExitedError, match="exit code 2"):
        await run_to_end(python("raise SystemExit(2)"), sink=no_sink, seconds=30)
    with pytest.raises(StartError, match=r"did not end within 0.1 s"):
        await run_to_end(python("import time; time.sleep(60)"), sink=no_sink, seconds=0.1)


def test_secrets_of_the_environment_do_not_show() -> None:
    assert "hunter2" not in repr(Command(name="x", argv=("x",), env={"PEPPER": "hunter2"}))
