"""What a client gets when the gateway itself stops its request."""

import json

import anthropic
import httpx2
import openai
import pytest

from authz.routes import Dialect
from extproc import stop
from extproc.lifecycle import STOPPING, Cause

CODES = {
    Cause.CLIENT_CANCEL: "request_cancelled",
    Cause.ADMIN_CANCEL: "request_cancelled",
    Cause.REVOKED: "credential_revoked",
    Cause.OUTPUT_LIMIT: "output_limit_reached",
}
causes = pytest.mark.parametrize("cause", sorted(STOPPING))


def last(cause: Cause, dialect: Dialect) -> bytes:
    return stop.last_events(cause, dialect=dialect, request_id="r-1", now=0.0)


def _client(body: bytes) -> httpx2.Client:
    answer = httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body)
    return httpx2.Client(transport=httpx2.MockTransport(lambda _: answer))


@causes
def test_no_sdk_tries_again(cause: Cause) -> None:
    refusal = stop.refusal(cause)
    assert (refusal.reason.code, refusal.headers) == (CODES[cause], (("x-should-retry", "false"),))


@causes
@pytest.mark.parametrize("dialect", list(Dialect))
def test_a_stream_ends_with_whole_events_and_one_error(cause: Cause, dialect: Dialect) -> None:
    text = last(cause, dialect).decode()
    assert text.endswith("\n\n")
    [data] = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    error = json.loads(data)["error"]
    assert (error["code"], error["request_id"]) == (CODES[cause], "r-1")


@causes
def test_openais_sdk_raises_it(cause: Cause) -> None:
    chunk = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[]}\n\n'
    with openai.OpenAI(api_key="k", http_client=_client(chunk + last(cause, Dialect.OPENAI_CHAT))) as sdk:
        stream = sdk.chat.completions.create(model="m", messages=[], stream=True)
        with pytest.raises(openai.APIError) as caught:
            list(stream)
    assert caught.value.code == CODES[cause]


@causes
def test_openais_sdk_raises_it_in_a_response(cause: Cause) -> None:
    with openai.OpenAI(api_key="k", http_client=_client(last(cause, Dialect.OPENAI_RESPONSES))) as sdk:
        stream = sdk.responses.create(model="m", input="x", stream=True)
        with pytest.raises(openai.APIError) as caught:
            list(stream)
    assert caught.value.code == CODES[cause]


@causes
def test_anthropics_sdk_raises_it(cause: Cause) -> None:
    with anthropic.Anthropic(api_key="k", http_client=_client(last(cause, Dialect.ANTHROPIC_MESSAGES))) as sdk:
        stream = sdk.messages.create(model="m", messages=[], max_tokens=1, stream=True)
        with pytest.raises(anthropic.APIStatusError) as caught:
            list(stream)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["code"] == CODES[cause]
