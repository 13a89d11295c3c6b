"""Can a person read and copy what a command prints, however narrow the terminal is?"""

from datetime import UTC, datetime

import pytest

from sidecar.tables import print_table


def test_ids_and_times_stay_in_one_piece_in_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.tables.PIPE_WIDTH", 40)
    at = datetime(2026, 11, 21, 15, 45, 1, tzinfo=UTC)
    rows = [("ten_ba791fdb4ef104f34719", "a name of many words that may be folded", at)] * 2
    print_table(("ID", "NAME", "CREATED"), rows, empty="")
    text = capsys.readouterr().out
    assert text.count("ten_ba791fdb4ef104f34719") == text.count("2026-11-21 15:45:01Z") == 2
