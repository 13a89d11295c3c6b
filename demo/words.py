"""How does the Router say what it decided and what that cost? In headers, or in a stream's last comments."""

from demo.script import Place, Script


def word_headers(script: Script, *, stream: bool) -> dict[str, str]:
    """The headers of an answer; none when a stream is to say it in comments."""
    return {} if stream and script.words is Place.COMMENT else _said(script)


def word_comments(script: Script) -> bytes:
    """What stands before a stream's last event: a comment for each (WHATWG HTML, 9.2.6)."""
    if script.words is not Place.COMMENT:
        return b""
    return b"".join(f": {name} {text}\n\n".encode() for name, text in _said(script).items())


def _said(script: Script) -> dict[str, str]:
    told = {"x-router-decision": script.decision, "x-router-cost": script.cost}
    return {name: text for name, text in told.items() if text is not None}
