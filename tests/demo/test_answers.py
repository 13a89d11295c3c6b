import asyncio
from typing import Any

import anthropic
import pytest
from openai import AsyncOpenAI

from tests.demo.conftest import CHAT, COMPLETION, INFER, MESSAGE, STREAM, USAGE, Desk, events

PATHS = [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION), ("/v1/infer", INFER)]
all_that_are_asked = pytest.mark.parametrize(("path", "body"), PATHS)


async def test_the_openai_sdk_reads_an_answer(desk: Desk) -> None:
    async with AsyncOpenAI(base_url=f"{desk.base_url}/v1", api_key="none") as sdk:
        answer = await sdk.chat.completions.create(
            model="demo-small", messages=[{"role": "user", "content": "Explain gravity"}], max_tokens=4
        )
        assert answer.choices[0].message.content == "You asked: Explain gravity"
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 4)
        assert {model.id async for model in sdk.models.list()} == {"demo-small", "demo-large"}


async def test_the_openai_sdk_reads_a_stream(desk: Desk) -> None:
    async with AsyncOpenAI(base_url=f"{desk.base_url}/v1", api_key="none") as sdk:
        stream = await sdk.chat.completions.create(
            model="demo-small",
            messages=[{"role": "user", "content": "Explain gravity"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text.startswith("You asked: Explain gravity")
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(text.split()) == 12


async def test_the_openai_sdk_reads_embeddings(desk: Desk) -> None:
    async with AsyncOpenAI(base_url=f"{desk.base_url}/v1", api_key="none") as sdk:
        answer = await sdk.embeddings.create(model="demo-small", input=["12345678", "1234"])
    assert [len(one.embedding) for one in answer.data] == [8, 8]
    assert answer.data[0].embedding != answer.data[1].embedding
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (3, 3)


async def test_embeddings_write_no_tokens(desk: Desk) -> None:
    headers = {"x-request-id": "r", "x-demo-usage": "7,9"}
    answer = await desk.http.post("/v1/embeddings", json=INFER, headers=headers)
    assert answer.json()["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    seen = await desk.ended("r")
    assert (seen["tokens_in"], seen["tokens_out"]) == (7, 0)


async def test_the_openai_sdk_reads_completions(desk: Desk) -> None:
    async with AsyncOpenAI(base_url=f"{desk.base_url}/v1", api_key="none") as sdk:
        answer = await sdk.completions.create(model="demo-small", prompt="Explain gravity", n=2, max_tokens=4)
        assert [choice.text for choice in answer.choices] == ["You asked: Explain gravity"] * 2
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 8)
        stream = await sdk.completions.create(
            model="demo-small", prompt="Explain gravity", n=2, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert [chunk.choices[0].index for chunk in chunks[:-1]] == [0, 1] * 12
    assert (chunks[-1].choices, chunks[-1].usage and chunks[-1].usage.completion_tokens) == ([], 24)


async def test_the_openai_sdk_reads_responses(desk: Desk) -> None:
    async with AsyncOpenAI(base_url=f"{desk.base_url}/v1", api_key="none") as sdk:
        raw = await sdk.responses.with_raw_response.create(
            model="demo-small", input="Explain gravity", extra_headers={"x-request-id": "r"}
        )
        answer = raw.parse()
        assert (answer.id, answer.status) == ("resp_r", "completed")
        assert answer.output_text.startswith("You asked: Explain gravity")
        assert answer.usage is not None
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (3, 12)
        async with sdk.responses.stream(
            model="demo-small", input=[{"role": "user", "content": "Explain gravity"}], max_output_tokens=4
        ) as stream:
            found = [event async for event in stream]
    assert [event.type for event in found].count("response.output_text.delta") == 4
    assert found[0].type == "response.created"
    assert found[-1].type == "response.incomplete"
    assert found[-1].response.output_text == "You asked: Explain gravity"
    assert found[-1].response.usage is not None
    assert found[-1].response.usage.output_tokens == 4


def claude(desk: Desk) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=desk.base_url, api_key="none", max_retries=0)


async def test_the_anthropic_sdk_reads_an_answer(desk: Desk) -> None:
    async with claude(desk) as sdk:
        answer = await sdk.messages.create(
            model="demo-small", messages=[{"role": "user", "content": "Explain gravity"}], max_tokens=4
        )
    assert [part.text for part in answer.content if part.type == "text"] == ["You asked: Explain gravity"]
    assert answer.stop_reason == "max_tokens"
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (3, 4)


async def test_the_anthropic_sdk_reads_a_stream(desk: Desk) -> None:
    async with (
        claude(desk) as sdk,
        sdk.messages.stream(
            model="demo-small", messages=[{"role": "user", "content": "Explain gravity"}], max_tokens=100
        ) as stream,
    ):
        pieces = [piece async for piece in stream.text_stream]
        whole = await stream.get_final_message()
    assert len(pieces) == 12
    assert "".join(pieces).startswith("You asked: Explain gravity")
    assert whole.stop_reason == "end_turn"
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (3, 12)


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, anthropic.BadRequestError), (429, anthropic.RateLimitError), (529, anthropic.OverloadedError)],
)
async def test_the_anthropic_sdk_reads_an_error(desk: Desk, status: int, error: type[anthropic.APIStatusError]) -> None:
    async with claude(desk) as sdk:
        with pytest.raises(error) as caught:
            await sdk.messages.create(
                model="m",
                messages=[{"role": "user", "content": "x"}],
                max_tokens=4,
                extra_headers={"x-demo-status": str(status), "x-request-id": "r"},
            )
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["request_id"] == "r"


async def test_a_broken_anthropic_stream_has_written_half_of_its_pieces(desk: Desk) -> None:
    raw = await desk.raw()
    steering = {"x_request_id": "r", "x_demo_fault": "close-mid-stream", "x_demo_events": "8"}
    await raw.post("/v1/messages", MESSAGE | STREAM, **steering)
    found = (await raw.reader.read(1_000_000)).decode()
    while more := await raw.reader.read(1_000_000):
        found += more.decode()
    assert found.count("event: content_block_delta") == 4
    assert "message_stop" not in found
    assert (await desk.ended("r"))["tokens_out"] == 4


@all_that_are_asked
async def test_usage_ends_a_stream_only_when_asked_for(desk: Desk, path: str, body: dict[str, Any]) -> None:
    plain = await desk.http.post(path, json=body | STREAM)
    told = await desk.http.post(path, json=body | STREAM | USAGE)
    assert len(events(plain.text)) == 12
    assert len(events(told.text)) == 13
    assert events(told.text)[-1]["choices"] == []
    assert "usage" not in plain.text


@all_that_are_asked
async def test_a_connection_is_kept_alive(desk: Desk, path: str, body: dict[str, Any]) -> None:
    raw = await desk.raw()
    for _ in range(3):
        await raw.post(path, body | STREAM)
        assert len(await raw.chunks()) == 13


@all_that_are_asked
async def test_everything_received_is_witnessed(desk: Desk, path: str, body: dict[str, Any]) -> None:
    await desk.http.post(f"{path}?a=1", json=body, headers={"X-Request-Id": "r", "X-Tenant-Id": "acme"})
    seen = await desk.seen("r", lambda _: True)
    assert (seen["method"], seen["path"], seen["end"]) == ("POST", f"{path}?a=1", "completed")
    assert ["x-tenant-id", "acme"] in seen["headers"]
    assert '"model":"demo-small"' in seen["body"]
    assert (seen["tokens_in"], seen["tokens_out"], seen["events_written"]) == (5, 12, 0)
    assert seen["received_at"] <= seen["first_event_at"] <= seen["ended_at"]


async def test_totals_add_up(desk: Desk) -> None:
    await desk.http.post("/v1/infer", json=INFER)
    await desk.http.post("/v1/infer", json=INFER | STREAM)
    await desk.http.get("/healthz")
    assert (await desk.http.get("/demo/totals")).json() == {
        "requests": 2,
        "completed": 2,
        "client_closed": 0,
        "faults": 0,
        "cancelled": 0,
        "tokens_in": 10,
        "tokens_out": 24,
        "live": 0,
    }


async def test_what_is_not_there(desk: Desk) -> None:
    assert (await desk.http.get("/healthz")).json() == {"status": "ok"}
    assert (await desk.http.get("/demo/seen/nobody")).status_code == 404
    assert (await desk.http.delete("/v1/infer/nobody")).status_code == 404
    assert (await desk.http.get("/v1/infer")).status_code == 404


async def test_a_body_that_is_no_question_is_refused(desk: Desk) -> None:
    answer = await desk.http.post("/v1/infer", json={"model": "m"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "input"


async def test_a_large_body_is_taken(desk: Desk) -> None:
    answer = await desk.http.post("/v1/infer", json=INFER | {"input": "word " * 1_000_000})
    assert answer.json()["usage"]["input_tokens"] == 1_250_000


@all_that_are_asked
async def test_a_running_stream_is_cancelled(desk: Desk, path: str, body: dict[str, Any]) -> None:
    raw = await desk.raw()
    await raw.post(path, body | STREAM, x_request_id="r", x_demo_fault="endless", x_demo_interval_ms="1")
    await desk.seen("r", lambda seen: seen["events_written"] > 2)
    assert (await desk.http.delete("/v1/infer/r")).status_code == 202
    async with asyncio.timeout(10):
        chunks = await raw.chunks()
    seen = await desk.ended("r")
    assert seen["end"] == "cancelled"
    assert len(chunks) == seen["events_written"] == seen["tokens_out"]
    assert (await raw.reader.read()).strip() == b"", "its connection has ended"
    assert (await desk.http.delete("/v1/infer/r")).status_code == 404
    assert (await desk.ended("r"))["stops"] == 2
    assert (await desk.http.get("/demo/totals")).json()["cancelled"] == 1


async def test_a_request_is_cancelled_before_its_answer_began(desk: Desk) -> None:
    steering = {"x-request-id": "r", "x-demo-fault": "hang"}
    waiting = asyncio.create_task(desk.http.post("/v1/infer", json=INFER, headers=steering))
    await desk.seen("r", lambda _: True)
    assert (await desk.http.delete("/v1/infer/r")).status_code == 202
    assert (await waiting).status_code == 499
