"""Moments in parameters: dates and times of ISO 8601, and nothing else."""

import contextlib
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from control.moment import Moment

READ = TypeAdapter[datetime](Moment).validate_python


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T12:30", datetime(2026, 1, 31, 12, 30, tzinfo=UTC)),
        ("2026-01-31T12:30:00.5Z", datetime(2026, 1, 31, 12, 30, 0, 500_000, tzinfo=UTC)),
        ("2026-01-31T12:30:00+02:00", datetime(2026, 1, 31, 10, 30, tzinfo=UTC)),
    ],
)
def test_a_moment_is_read_in_utc(text: str, expected: datetime) -> None:
    found = READ(text)
    assert found == expected
    assert found.tzinfo is UTC


@given(
    st.integers(0, 253_402_000_000).map(lambda second: datetime.fromtimestamp(second, UTC)),
    st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)
def test_every_time_is_read_as_it_was_written(moment: datetime, zone: timezone) -> None:
    assert READ(moment.astimezone(zone).isoformat()) == moment


@given(st.text(max_size=40))
def test_any_text_is_a_moment_or_refused_as_none(text: str) -> None:
    with contextlib.suppress(ValidationError):
        assert READ(text) >= datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "1767268800", "now", "2026-02-30", "0001-01-01", "9999-12-31T23:59:59-01:00"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="2026-01-31T12:00:00Z"):
        READ(text)
