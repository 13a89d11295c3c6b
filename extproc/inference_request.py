"""Is this body an inference request, and what does it ask for? Validation of the body, and no more than that.

Only the fields that the gateway acts on are looked at; all others pass to the Router as they are.
"""

import json
import re
from typing import Annotated, Any, NamedTuple

import msgspec

from authz.refusal import Reason, Refusal
from authz.routes import Dialect

_MAX_MODEL_LENGTH = 256
# No model writes more in one answer; beyond it a number is a mistake, and arithmetic on it a risk.
_MAX_TOKENS = 100_000_000
# Of all prompts of a request together: each may be answered with the maximum of tokens.
_MAX_CHOICES = 2_048

_Tokens = Annotated[int, msgspec.Meta(ge=1, le=_MAX_TOKENS)]
# A control character is in no model's name, and U+0000 in no text of Postgres.
_Model = Annotated[str, msgspec.Meta(min_length=1, max_length=_MAX_MODEL_LENGTH, pattern=r"^[^\x00-\x1f\x7f]*$")]
_Choices = Annotated[int, msgspec.Meta(ge=1, le=128)]


class _Message(msgspec.Struct):
    role: str


_Messages = Annotated[list[_Message], msgspec.Meta(min_length=1)]


class _OptionsBody(msgspec.Struct):
    """A body that says by `stream_options` whether its stream ends with usage."""

    model: _Model
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_tokens: _Tokens | None = None


class _ChatBody(_OptionsBody, kw_only=True):
    messages: _Messages
    max_completion_tokens: _Tokens | None = None
    n: _Choices | None = None


class _CompletionsBody(_OptionsBody, kw_only=True):
    """A null prompt is the beginning of a new document; a list holds texts, one text's tokens, or lists of tokens."""

    prompt: str | Annotated[list[Any], msgspec.Meta(min_length=1)] | None
    n: _Choices | None = None
    best_of: _Choices | None = None


class _InferBody(_OptionsBody, kw_only=True):
    input: str | list[Any] | dict[str, Any]


class _ResponsesBody(msgspec.Struct):
    """What is to be answered may also stand in a stored prompt, or in what was said before."""

    model: _Model
    input: str | list[Any] | None = None
    prompt: dict[str, Any] | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    max_output_tokens: _Tokens | None = None
    stream: bool | None = None
    background: bool | None = None


class _MessagesBody(msgspec.Struct):
    model: _Model
    messages: _Messages
    max_tokens: _Tokens
    stream: bool | None = None
    system: str | list[Any] | None = None


class _EmbeddingsBody(msgspec.Struct):
    model: _Model
    input: str | list[Any]


_AnyBody = _ChatBody | _CompletionsBody | _InferBody | _ResponsesBody | _MessagesBody | _EmbeddingsBody


class InferenceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a valid body asks for.

    `max_output_tokens` is of all `choices` together, None when the caller names no maximum, and 0 when the answer holds
    no tokens; `output_field` is the field that names it, or would. `body` is what
    the Router gets instead of the original when that must change; `strip_usage` says that the usage event which the
    change asks for is the gateway's, not the client's.
    """

    model: str
    stream: bool
    max_output_tokens: int | None
    size: int
    choices: int = 1
    output_field: str = "max_tokens"
    body: bytes | None = None
    strip_usage: bool = False


class _Output(NamedTuple):
    """The maximum that a body names for each of its choices, in which field, and how many choices there are."""

    most: int | None
    field: str = "max_tokens"
    choices: int = 1


_DECODERS: "dict[Dialect, msgspec.json.Decoder[Any]]" = {
    Dialect.OPENAI_CHAT: msgspec.json.Decoder(_ChatBody),
    Dialect.OPENAI_COMPLETIONS: msgspec.json.Decoder(_CompletionsBody),
    Dialect.OPENAI_RESPONSES: msgspec.json.Decoder(_ResponsesBody),
    Dialect.OPENAI_EMBEDDINGS: msgspec.json.Decoder(_EmbeddingsBody),
    Dialect.ANTHROPIC_MESSAGES: msgspec.json.Decoder(_MessagesBody),
    Dialect.INFER: msgspec.json.Decoder(_InferBody),
}
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TRUE = msgspec.Raw(b"true")
_WANTS_USAGE = b',"stream_options":{"include_usage":true}}'
# msgspec ends its messages with the place: "Expected `str`, got `int` - at `$.model`".
_ESCAPED_LETTER = re.compile(rb"\\u00[4-7]")
_PLACE = re.compile(r"(?P<problem>.*?)(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)
_MISSING_FIELD = re.compile(r"Object missing required field `(?P<field>[^`]*)`")


def validate(body: bytes, dialect: Dialect) -> InferenceRequest | Refusal:
    """Read a body; a Refusal names the field that is wrong. `KeyError` for a dialect that has no body."""
    try:
        found: _AnyBody = _DECODERS[dialect].decode(body)
    except msgspec.ValidationError as error:
        return _invalid(str(error))
    except RecursionError:
        return Refusal(reason=Reason.INVALID_JSON, message="The body is nested too deeply.")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Refusal(reason=Reason.INVALID_JSON, message=f"The body is not valid JSON: {error}.")
    return _read(found, body)


def _read(found: _AnyBody, body: bytes) -> InferenceRequest | Refusal:
    match found:
        case _ChatBody():
            return _with_usage_on_request(found, body, _chat_output(found))
        case _CompletionsBody():
            return _completion(found, body)
        case _InferBody():
            return _with_usage_on_request(found, body, _Output(found.max_tokens))
        case _ResponsesBody():
            return _response(found, body)
        case _MessagesBody():
            return _with_usage_unasked(found, body, _Output(found.max_tokens))
        case _EmbeddingsBody():
            return InferenceRequest(model=found.model, stream=False, max_output_tokens=0, size=len(body))


def _chat_output(found: _ChatBody) -> _Output:
    """The larger of the two maxima: whichever the model heeds, there is room."""
    newer, older = found.max_completion_tokens, found.max_tokens
    if newer is None or (older is not None and older > newer):
        return _Output(older, "max_tokens", found.n or 1)
    return _Output(newer, "max_completion_tokens", found.n or 1)


def _completion(found: _CompletionsBody, body: bytes) -> InferenceRequest | Refusal:
    prompt = found.prompt
    prompts = len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
    # All candidates are written, and charged, however many of them are given.
    choices = prompts * max(found.n or 1, found.best_of or 1)
    if choices > _MAX_CHOICES:
        return _invalid(f"Expected at most {_MAX_CHOICES} answers to all prompts together - at `$.prompt`")
    return _with_usage_on_request(found, body, _Output(found.max_tokens, choices=choices))


def _response(found: _ResponsesBody, body: bytes) -> InferenceRequest | Refusal:
    if found.background:
        return Refusal(
            reason=Reason.INVALID_BODY,
            param="background",
            message="The field 'background' must not be true: the gateway follows a request by its connection.",
        )
    if all(said is None for said in (found.input, found.prompt, found.previous_response_id, found.conversation)):
        return _invalid("Object missing required field `input`")
    return _with_usage_unasked(found, body, _Output(found.max_output_tokens, "max_output_tokens"))


def _with_usage_unasked(found: _MessagesBody | _ResponsesBody, body: bytes, output: _Output) -> InferenceRequest:
    """A stream of Anthropic's or of the Responses API always says its usage, and there is no option to ask for."""
    return InferenceRequest(
        model=found.model,
        stream=bool(found.stream),
        max_output_tokens=output.most,
        output_field=output.field,
        size=len(body),
    )


def _with_usage_on_request(found: _OptionsBody, body: bytes, output: _Output) -> InferenceRequest | Refusal:
    options = found.stream_options
    if options is not None and not isinstance(options.get("include_usage", False), bool | None):
        return _invalid("Expected `bool` - at `$.stream_options.include_usage`")
    asks_usage = bool(found.stream and not (options or {}).get("include_usage"))
    return InferenceRequest(
        model=found.model,
        stream=bool(found.stream),
        max_output_tokens=None if output.most is None else output.most * output.choices,
        output_field=output.field,
        size=len(body),
        choices=output.choices,
        body=_asking_for_usage(body, options) if asks_usage else None,
        strip_usage=asks_usage,
    )


def _asking_for_usage(body: bytes, options: dict[str, Any] | None) -> bytes:
    if options is None and b'"stream_options"' not in body:
        # A valid object ends with its brace: the field goes in front of it, and the rest is not parsed again.
        return body.rstrip()[:-1] + _WANTS_USAGE
    # Every other field stays as its bytes are.
    fields = _FIELDS.decode(body)
    wanted = _FIELDS.decode(fields["stream_options"]) if options else {}
    wanted["include_usage"] = _TRUE
    fields["stream_options"] = msgspec.Raw(msgspec.json.encode(wanted))
    return msgspec.json.encode(fields)


def _invalid(text: str) -> Refusal:
    match = _PLACE.fullmatch(text)
    problem, path = (match["problem"], match["path"]) if match else (text, None)
    missing = _MISSING_FIELD.fullmatch(problem)
    if missing:
        param = f"{path}.{missing['field']}" if path else missing["field"]
        return Refusal(reason=Reason.INVALID_BODY, param=param, message=f"The field '{param}' is missing.")
    where = f"The field '{path}' is not valid: " if path else "The body is not valid: "
    return Refusal(reason=Reason.INVALID_BODY, param=path, message=f"{where}{_in_words(problem)}.")


def _in_words(problem: str) -> str:
    return (problem[:1].lower() + problem[1:]).replace("`", "")


def may_say_twice(body: bytes, name: str) -> bool:
    """Whether it is worth a closer look: a name stands there twice, or letters are written as escapes."""
    return body.lower().count(f'"{name}"'.encode()) > 1 or _ESCAPED_LETTER.search(body) is not None


def says_twice(body: bytes, name: str) -> bool:
    """Whether the body, which is valid, has the name twice, in whatever case: its reader may take the other one."""
    names: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        names[:] = [name for name, _ in pairs]  # the outermost object is told last

    try:
        json.loads(body, object_pairs_hook=note)
    except (ValueError, RecursionError):
        return True
    return sum(one.casefold() == name for one in names) > 1
