"""When an answer has passed what its plan lets one request write."""

import pytest

from authz.caps import NO_CAPS, Caps
from extproc.output_cap import exceeds


@pytest.mark.parametrize(
    ("caps", "events", "response_bytes", "over"),
    [
        (NO_CAPS, 10**9, 10**12, False),
        # What opens and closes a stream is no token.
        (Caps(output_tokens=100), 108, 0, False),
        (Caps(output_tokens=100), 109, 0, True),
        (Caps(response_bytes=1000), 10**6, 1000, False),
        (Caps(response_bytes=1000), 0, 1001, True),
        (Caps(output_tokens=100, response_bytes=1000), 0, 1001, True),
        (Caps(stream_seconds=1), 10**6, 10**6, False),
    ],
)
def test_a_cap_is_passed_when_more_has_come(caps: Caps, events: int, response_bytes: int, *, over: bool) -> None:
    assert exceeds(caps, events=events, response_bytes=response_bytes) is over
