import asyncio
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from demo.encoding import Encoding
from tests.demo.conftest import CHAT, DEADLINE, INFER, MESSAGE, STREAM, USAGE, Desk, Raw, events


async def infer(desk: Desk, body: dict[str, Any] = INFER, **steering: str) -> httpx.Response:
    headers = {f"x-demo-{name.replace('_', '-')}": value for name, value in steering.items()}
    return await desk.http.post("/v1/infer", json=body, headers=headers | {"x-request-id": "r"})


async def test_the_number_of_events(desk: Desk) -> None:
    assert len(events((await infer(desk, INFER | STREAM, events="40")).text)) == 40
    assert len((await infer(desk, INFER, events="40")).json()["output"].split()) == 40
    assert events((await infer(desk, INFER | STREAM, events="0")).text) == []


async def test_the_limit_of_the_body_binds(desk: Desk) -> None:
    assert len(events((await infer(desk, INFER | STREAM | {"max_tokens": 3}, events="40")).text)) == 3


async def test_the_pause_between_events(desk: Desk) -> None:
    await infer(desk, INFER | STREAM, events="4", interval_ms="20")
    seen = await desk.ended("r")
    assert seen["ended_at"] - seen["first_event_at"] >= 0.055


async def test_the_delay_before_the_headers(desk: Desk) -> None:
    await infer(desk, delay_ms="40")
    seen = await desk.ended("r")
    assert seen["first_event_at"] - seen["received_at"] >= 0.035


async def test_a_status(desk: Desk) -> None:
    answer = await infer(desk, INFER | STREAM, status="503")
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] == "server_error"
    assert (await desk.ended("r"))["tokens_out"] == 0


async def test_tokens_of_other_kinds(desk: Desk) -> None:
    answer = await infer(desk, usage="5,6", cached_tokens="4", reasoning_tokens="3")
    usage = answer.json()["usage"]
    assert usage["input_tokens_details"] == {"cached_tokens": 4}
    assert usage["output_tokens_details"] == {"reasoning_tokens": 3}


@pytest.mark.parametrize("body", [INFER, INFER | STREAM])
@pytest.mark.parametrize("status", ["200", "503"])
async def test_limits_of_its_own(desk: Desk, body: dict[str, Any], status: str) -> None:
    steering = {"events": "1"} if status == "200" else {"status": status}
    quiet, told = await infer(desk, body, **steering), await infer(desk, body, own_limit="99", **steering)
    assert told.headers["x-ratelimit-limit-requests"] == told.headers["anthropic-ratelimit-requests-limit"] == "99"
    assert told.headers["ratelimit"] == '"router";r=99'
    assert not [name for name in quiet.headers if "ratelimit" in name]


async def test_padding(desk: Desk) -> None:
    found = events((await infer(desk, INFER | STREAM, events="2", padding="1000")).text)
    assert [len(event["delta"]) for event in found] == [1004, 1006]


async def test_events_in_pieces(desk: Desk) -> None:
    raw = await desk.raw()
    await raw.post("/v1/infer", INFER | STREAM, x_demo_split="5", x_demo_events="2")
    chunks = await raw.chunks()
    assert max(map(len, chunks)) == 5
    assert len(events(b"".join(chunks).decode())) == 2


async def test_events_in_one_write(desk: Desk) -> None:
    raw = await desk.raw()
    await raw.post("/v1/infer", INFER | STREAM | USAGE, x_request_id="r", x_demo_batch="4", x_demo_events="6")
    chunks = await raw.chunks()
    assert [chunk.count(b"\n\n") for chunk in chunks] == [4, 4]
    assert (await desk.ended("r"))["events_written"] == 6


@pytest.mark.parametrize("encoding", list(Encoding))
@pytest.mark.parametrize("body", [INFER, INFER | STREAM], ids=["json", "stream"])
async def test_an_answer_is_compressed(desk: Desk, encoding: Encoding, body: dict[str, Any]) -> None:
    plain, squeezed = await infer(desk, body, events="40"), await infer(desk, body, events="40", encoding=encoding)
    assert squeezed.headers["content-encoding"] == encoding
    # The client decompresses.
    assert squeezed.text == plain.text


async def test_a_compressed_event_can_be_read_before_the_next_is_written(desk: Desk) -> None:
    raw = await desk.raw()
    await raw.post("/v1/infer", INFER | STREAM, x_demo_encoding="gzip", x_demo_events="3")
    chunks = await raw.chunks()
    reader = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    assert [reader.decompress(chunk).count(b"\n\n") for chunk in chunks] == [1, 1, 1, 1, 0]
    assert reader.eof


async def test_a_refusal_is_compressed_too(desk: Desk) -> None:
    answer = await infer(desk, status="503", encoding="gzip")
    assert (answer.headers["content-encoding"], answer.status_code) == ("gzip", 503)
    assert answer.json()["error"]["type"] == "server_error"


DECISION, COST = '{"model":"m"}', '{"total_usd":"0.01"}'


@pytest.mark.parametrize("where", [{}, {"x-demo-words": "comment"}])
async def test_the_words_of_a_document_are_headers(desk: Desk, where: dict[str, str]) -> None:
    steering = {"x-demo-decision": DECISION, "x-demo-cost": COST}
    answer = await desk.http.post("/v1/infer", json=INFER, headers=steering | where)
    assert (answer.headers["x-router-decision"], answer.headers["x-router-cost"]) == (DECISION, COST)


async def test_the_words_of_a_stream_are_headers_or_comments(desk: Desk) -> None:
    headers = await infer(desk, INFER | STREAM, decision=DECISION)
    assert headers.headers["x-router-decision"] == DECISION
    assert "x-router-cost" not in headers.headers
    comments = await infer(desk, INFER | STREAM, decision=DECISION, cost=COST, words="comment")
    assert not [name for name in comments.headers if name.startswith("x-router")]
    assert comments.text.endswith(f": x-router-decision {DECISION}\n\n: x-router-cost {COST}\n\ndata: [DONE]\n\n")


async def test_pings_stand_between_the_events(desk: Desk) -> None:
    answer = await infer(desk, INFER | STREAM, events="5", pings="2")
    blocks = answer.text.split("\n\n")
    assert [block == ": ping" for block in blocks[:7]] == [False, True, False, True, False, False, False]
    claude = await desk.http.post(
        "/v1/messages", json=MESSAGE | STREAM, headers={"x-demo-pings": "2", "x-demo-events": "5"}
    )
    assert claude.text.count("event: ping\n") == 3, "one belongs to every opening"


@pytest.mark.parametrize(("terminal", "status"), [("incomplete", "incomplete"), ("failed", "failed")])
async def test_a_response_that_does_not_end_well(desk: Desk, terminal: str, status: str) -> None:
    answer = await desk.http.post("/v1/responses", json=INFER | STREAM, headers={"x-demo-terminal": terminal})
    assert answer.text.count(f"event: response.{status}\n") == 1
    assert "response.completed" not in answer.text


@pytest.mark.parametrize(("rule", "numbers"), [("zero", (0, 0)), ("7,9", (7, 9))])
async def test_claimed_usage(desk: Desk, rule: str, numbers: tuple[int, int]) -> None:
    expected = dict(zip(("input_tokens", "output_tokens"), numbers, strict=True))
    assert (await infer(desk, usage=rule)).json()["usage"] == expected
    stream = await infer(desk, INFER | STREAM | USAGE, usage=rule)
    assert events(stream.text)[-1]["usage"] == expected
    seen = await desk.ended("r")
    assert (seen["tokens_in"], seen["tokens_out"]) == (numbers if any(numbers) else (5, 12))


async def test_usage_never_told(desk: Desk) -> None:
    assert "usage" not in (await infer(desk, usage="none")).json()
    assert "usage" not in (await infer(desk, INFER | STREAM | USAGE, usage="none")).text


@pytest.mark.parametrize(
    ("name", "value"), [("x-demo-events", "many"), ("x-demo-typo", "1"), ("x-demo-fault", "endless")]
)
async def test_a_bad_header_is_refused_by_name(desk: Desk, name: str, value: str) -> None:
    answer = await desk.http.post("/v1/chat/completions", json=CHAT, headers={name: value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == name


async def rest(raw: Raw) -> tuple[bytes, bool]:
    """Read to the end of the connection: what arrived, and whether it ended by a reset."""
    found = b""
    try:
        async with asyncio.timeout(DEADLINE):
            while data := await raw.reader.read(65536):
                found += data
    except ConnectionResetError:
        return found, True
    return found, False


@pytest.mark.parametrize(("fault", "reset"), [("reset-before-headers", True), ("close-before-headers", False)])
async def test_a_break_before_the_headers(desk: Desk, fault: str, reset: bool) -> None:  # noqa: FBT001
    raw = await desk.raw()
    await raw.post("/v1/infer", INFER, x_request_id="r", x_demo_fault=fault)
    assert await rest(raw) == (b"", reset)
    assert (await desk.ended("r"))["end"] == "fault"


@pytest.mark.parametrize(("fault", "reset"), [("reset-mid-stream", True), ("close-mid-stream", False)])
async def test_a_break_in_mid_stream(desk: Desk, fault: str, reset: bool) -> None:  # noqa: FBT001
    raw = await desk.raw()
    await raw.post("/v1/infer", INFER | STREAM, x_request_id="r", x_demo_fault=fault, x_demo_events="8")
    found, was_reset = await rest(raw)
    assert found.count(b"inference.delta") == 4
    assert was_reset == reset
    assert not found.endswith(b"0\r\n\r\n")
    seen = await desk.ended("r")
    assert (seen["end"], seen["events_written"], seen["tokens_out"]) == ("fault", 4, 4)
    assert (await desk.http.get("/demo/totals")).json()["faults"] == 1


async def test_a_break_in_the_middle_of_a_document(desk: Desk) -> None:
    raw = await desk.raw()
    await raw.post("/v1/infer", INFER, x_request_id="r", x_demo_fault="close-mid-stream")
    head, _, body = (await rest(raw))[0].partition(b"\r\n\r\n")
    assert b"Content-Length" in head
    assert body.startswith(b'{"id":"inf-r"')
    assert not body.endswith(b"}")


HANG = {"x_demo_fault": "hang"}
STALL = {"x_demo_fault": "stall-mid-stream", "x_demo_events": "4"}
ENDLESS = {"x_demo_fault": "endless"}
SLOW = {"x_demo_interval_ms": "600000"}
DELAYED = {"x_demo_delay_ms": "600000"}


@pytest.mark.parametrize(
    ("steering", "reached"),
    [
        (HANG, lambda seen: seen["events_written"] == 0),
        (DELAYED, lambda seen: seen["events_written"] == 0),
        (STALL, lambda seen: seen["events_written"] == 2),
        (SLOW, lambda seen: seen["events_written"] == 1),
        (ENDLESS, lambda seen: seen["events_written"] > 100),
    ],
    ids=["hang", "delay", "stall", "between events", "endless"],
)
async def test_the_leaving_of_the_peer_is_noticed(
    desk: Desk, steering: dict[str, str], reached: Callable[[dict[str, Any]], bool]
) -> None:
    raw = await desk.raw()
    await raw.post("/v1/infer", INFER | STREAM, x_request_id="r", **steering)
    before = await desk.seen("r", reached)
    assert before["end"] == "running"
    raw.leave()
    after = await desk.ended("r")
    assert (after["end"], after["ended_at"] is not None) == ("client_closed", True)
    assert after["tokens_out"] == after["events_written"]
    assert (await desk.http.get("/demo/totals")).json()["live"] == 0


async def test_a_stall_before_the_first_event_has_sent_its_headers(desk: Desk) -> None:
    raw = await desk.raw()
    await raw.post("/v1/infer", INFER | STREAM, x_demo_fault="stall-mid-stream", x_demo_events="1")
    async with asyncio.timeout(DEADLINE):
        head = await raw.reader.readuntil(b"\r\n\r\n")
    assert b"text/event-stream" in head
