"""What does a valid request of each path look like?"""

from typing import Any

INFER, CHAT, MESSAGES, EMBEDDINGS = "/v1/infer", "/v1/chat/completions", "/v1/messages", "/v1/embeddings"
_MESSAGES = [{"role": "user", "content": "Explain gravity to me"}]
_SAID: dict[str, dict[str, Any]] = {
    INFER: {"input": "Explain gravity to me, as to a child"},
    CHAT: {"messages": _MESSAGES},
    MESSAGES: {"messages": _MESSAGES},
    EMBEDDINGS: {"input": "Explain gravity to me, as to a child"},
}


def body(path: str, model: str = "m", *, max_tokens: int | None = None, stream: bool = False) -> dict[str, Any]:
    """The body of a request; one for embeddings has neither a maximum nor a stream."""
    whole = {"model": model, **_SAID[path]}
    if path == EMBEDDINGS:
        return whole
    if max_tokens is not None:
        whole["max_tokens"] = max_tokens
    return whole | ({"stream": True} if stream else {})
