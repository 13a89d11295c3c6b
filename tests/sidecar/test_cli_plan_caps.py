"""What one request of a plan may come to, on the command line: typed, read, and refused by the option's name."""

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from authz.caps import Caps
from sidecar.commands import cap_options, plan
from sidecar.commands.cap_options import CapOptions
from sidecar.commands.session import PlainErrors
from store import plans
from store.database import Pool
from tests.support.shell import PEPPER, Shell, row

app = typer.Typer(cls=PlainErrors)
app.add_typer(plan.app, name="plan")
MADE = "plan create gold --limit requests_per_minute=5"


@pytest.fixture
def shell(database: str, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("GATEWAY_KEY_PEPPER", PEPPER)
    return Shell(app, database)


def caps(shell: Shell) -> Caps:
    async def work(pool: Pool) -> Caps:
        return (await plans.find_plan(pool, "gold")).caps

    return shell.within(work)


def test_they_are_set_shown_changed_and_removed_and_it_is_audited(shell: Shell) -> None:
    made = shell.json(f"{MADE} --max-stream 10m --max-output-tokens 4096 --max-response-bytes 2000000")
    assert (made["max_stream_seconds"], made["max_output_tokens"], made["max_response_bytes"]) == (600, 4096, 2_000_000)
    assert shell.json("plan show gold") == made
    assert made in shell.json("plan list")
    assert caps(shell) == Caps(stream_seconds=600, output_tokens=4096, response_bytes=2_000_000)
    shown = shell.says("plan show gold")
    assert (row(shown, "max_stream"), row(shown, "max_output_tokens")) == ("10m", "4,096")
    assert "stream=10m output_tokens=4096 bytes=2000000" in shell.says("plan list")

    changed = shell.says("plan update gold --max-stream none --max-response-bytes 0")
    assert "max_stream" not in changed
    assert "max_response_bytes" not in changed
    assert caps(shell) == Caps(output_tokens=4096)
    assert shell.json("plan update gold --metering inline")["max_output_tokens"] == 4096
    assert shell.actions() == ["plan.create", "plan.update", "plan.update"]
    assert shell.trail()[1]["after"] == {"max_stream_seconds": 0, "max_response_bytes": 0}
    assert shell.json("plan delete gold")["max_output_tokens"] == 4096


def test_a_plan_has_none_when_nothing_is_said(shell: Shell) -> None:
    made = shell.json(MADE)
    assert (made["max_stream_seconds"], made["max_output_tokens"], made["max_response_bytes"]) == (0, 0, 0)
    assert "max_" not in shell.says("plan show gold")


@pytest.mark.parametrize(
    ("option", "field"),
    [
        ("--max-stream 10", "--max-stream: '10'"),
        ("--max-stream 1.5h", "--max-stream"),
        ("--max-stream=-1s", "--max-stream"),
        ("--max-stream 32d", "max_stream_seconds"),
        ("--max-output-tokens many", "--max-output-tokens"),
        ("--max-output-tokens 1000000001", "max_output_tokens"),
        ("--max-response-bytes 1k", "--max-response-bytes"),
        ("--max-response-bytes 9999999999999999", "max_response_bytes"),
    ],
)
def test_what_is_no_cap_is_refused_and_nothing_is_changed(shell: Shell, option: str, field: str) -> None:
    shell.says(MADE)
    shell.refuses(f"plan update gold {option}", field)
    shell.refuses(f"plan create silver --limit requests_per_minute=5 {option}", field)
    assert caps(shell) == Caps()


@given(st.integers(0, 31 * 86_400))
def test_a_length_is_read_as_it_is_written(seconds: int) -> None:
    assert CapOptions(max_stream=cap_options.span(seconds)).stream_seconds() == seconds
