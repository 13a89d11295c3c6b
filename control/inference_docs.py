"""What do the inference paths take and answer? In short: the dialect of each is described where it comes from."""

from typing import Any, NamedTuple

from authz.routes import LIMITED_PATHS, Dialect, at

_OPENAI = "https://platform.openai.com/docs/api-reference"
_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 1}
_FLAG = {"type": ["boolean", "null"]}
_MESSAGES = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "object", "required": ["role"], "properties": {"role": _TEXT, "content": {}}},
}
_TEXT_OR_PARTS = {"oneOf": [_TEXT, {"type": "array", "items": {}}]}
_ID_HEADER = {"x-request-id": {"description": "The request's id, of `/v1/requests/{id}`.", "schema": _TEXT}}
_IDEMPOTENCY_KEY = {
    "name": "idempotency-key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "maxLength": 255},
    "description": "A text of the caller's own: a request that is sent again with the same is not run twice.",
}


class _Shape(NamedTuple):
    """What the gateway itself looks at in a body, and where all else is described."""

    summary: str
    required: dict[str, Any]
    optional: dict[str, Any]
    example: dict[str, Any]
    docs: str = ""
    streams: bool = True


_CHAT_EXAMPLE = {"model": "gpt-5", "messages": [{"role": "user", "content": "Hello"}], "stream": True}
_SHAPES = {
    Dialect.INFER: _Shape(
        "Infer",
        {"model": _TEXT, "input": {}},
        {"stream": _FLAG, "max_tokens": _COUNT},
        {"model": "gpt-5", "input": "Hello"},
    ),
    Dialect.OPENAI_CHAT: _Shape(
        "Chat completion",
        {"model": _TEXT, "messages": _MESSAGES},
        {"stream": _FLAG, "max_tokens": _COUNT, "max_completion_tokens": _COUNT, "n": _COUNT, "stream_options": {}},
        _CHAT_EXAMPLE,
        f"{_OPENAI}/chat",
    ),
    Dialect.OPENAI_COMPLETIONS: _Shape(
        "Completion",
        {"model": _TEXT, "prompt": {}},
        {"stream": _FLAG, "max_tokens": _COUNT, "n": _COUNT, "stream_options": {}},
        {"model": "gpt-5", "prompt": "Hello", "max_tokens": 100},
        f"{_OPENAI}/completions",
    ),
    Dialect.OPENAI_RESPONSES: _Shape(
        "Response",
        {"model": _TEXT, "input": _TEXT_OR_PARTS},
        {"stream": _FLAG, "max_output_tokens": _COUNT},
        {"model": "gpt-5", "input": "Hello", "max_output_tokens": 100},
        f"{_OPENAI}/responses",
    ),
    Dialect.ANTHROPIC_MESSAGES: _Shape(
        "Message",
        {"model": _TEXT, "messages": _MESSAGES, "max_tokens": _COUNT},
        {"stream": _FLAG, "system": _TEXT_OR_PARTS},
        {"model": "claude", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 100},
        "https://docs.claude.com/en/api/messages",
    ),
    Dialect.OPENAI_EMBEDDINGS: _Shape(
        "Embeddings",
        {"model": _TEXT, "input": _TEXT_OR_PARTS},
        {},
        {"model": "text-embedding-3-small", "input": "Hello"},
        f"{_OPENAI}/embeddings",
        streams=False,
    ),
}


def inference_paths() -> dict[str, Any]:
    """The paths that the model service answers, as OpenAPI's `paths`."""
    found: dict[str, Any] = {}
    for path in LIMITED_PATHS:
        [route] = at(path)
        found[path] = {"post": _operation(path, _SHAPES[route.dialect])}
    found["/v1/models"] = {"get": _models()}
    return found


def _operation(path: str, shape: _Shape) -> dict[str, Any]:
    answer: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if shape.streams:
        answer["text/event-stream"] = {"schema": _TEXT}
    schema = {
        "type": "object",
        "required": list(shape.required),
        "properties": shape.required | shape.optional,
        "additionalProperties": True,
    }
    operation: dict[str, Any] = {
        "tags": ["inference"],
        "summary": shape.summary,
        "description": "All other fields of the dialect pass to the model service as they are.",
        "operationId": f"inference{path.replace('/', '_')}",
        "parameters": [_IDEMPOTENCY_KEY],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema, "example": shape.example}},
        },
        "responses": {
            "200": {
                "description": "The answer; a stream of events when `stream` is true."
                if shape.streams
                else "The answer.",
                "headers": _ID_HEADER,
                "content": answer,
            }
        },
    }
    return operation | ({"externalDocs": {"url": shape.docs}} if shape.docs else {})


def _models() -> dict[str, Any]:
    model = {"type": "object", "required": ["id"], "properties": {"id": _TEXT, "object": {"const": "model"}}}
    listed = {"type": "object", "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": model}}}
    return {
        "tags": ["inference"],
        "summary": "List models",
        "operationId": "inference_v1_models",
        "externalDocs": {"url": f"{_OPENAI}/models"},
        "responses": {"200": {"description": "The models.", "content": {"application/json": {"schema": listed}}}},
    }
