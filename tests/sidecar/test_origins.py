"""Is an origin that a browser sends taken, and every other text refused before it can never match?"""

import pytest

from sidecar.origins import require_origin


@pytest.mark.parametrize(
    "origin",
    [
        *("https://app.example", "http://localhost:3000", "https://a.b-c.example:8443", "http://127.0.0.1:1"),
        *("http://[::1]:65535", "https://x", "https://443.example", "http://app.example:443", "https://app.example:80"),
    ],
)
def test_what_a_browser_sends_is_taken(origin: str) -> None:
    assert require_origin(origin) == origin


@pytest.mark.parametrize(
    "origin",
    [
        *("", "*", "null", "app.example", "https://", "//app.example", "ftp://app.example", "https://app.example/"),
        *("https://app.example/x", "https://app.example?", "https://App.example", "HTTPS://app.example"),
        *("https://*.example", "https://me@app.example", "https://app.example:", "https://app.example:65536"),
        *("https://app.example:0443", "https://app example", " https://app.example", "https://app.example\n"),
        *("https://app.example:443", "http://app.example:80", "https://.example", "https://example."),
    ],
)
def test_anything_else_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match="browsers"):
        require_origin(origin)
