"""What is a browser's origin? `https://app.example`, as browsers write it in the header `origin`, and nothing wider."""

import re

# RFC 6454 section 6.2: scheme, host and, unless it is the scheme's own, the port; all in lower case, no slash.
_ORIGIN = re.compile(
    r"(?P<scheme>https?)://(?:[a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::(?P<port>[1-9][0-9]{0,4}))?"
)
_OWN_PORT = {"http": "80", "https": "443"}
_MAX_PORT = 65_535


def require_origin(text: str) -> str:
    """Return the text when a browser could send it as its origin; raises ValueError otherwise."""
    match = _ORIGIN.fullmatch(text)
    if match is None or int(match["port"] or 0) > _MAX_PORT:
        raise ValueError(f"an origin is written as browsers do, like https://app.example, not {text!r}")
    if match["port"] == _OWN_PORT[match["scheme"]]:
        raise ValueError(
            f"browsers leave out the port {match['port']} of {match['scheme']}: {text!r} would never match"
        )
    return text
