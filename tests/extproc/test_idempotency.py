"""Requests with an idempotency key, through Process: what runs, what is given again, what is refused."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.grant import Grant
from authz.principal import Metering
from authz.refusal import Reason, Refusal
from extproc import ending as endings
from extproc import settlement as settlements
from extproc.idempotency import (
    ABANDONED_AFTER_MS,
    MAX_ANSWER_BYTES,
    Answer,
    Earlier,
    KeyedRequest,
    Next,
    Replay,
    at_once,
    by_state,
    keyed,
)
from extproc.lifecycle import FINAL, LIVE, State
from tests.extproc import envoy_messages as envoy
from tests.extproc.memory_stream import MemoryStream
from tests.extproc.test_process import CHAT, SLOTS, SSE, TOKENS, Processing
from tests.support.values import NOON_MS, admission, arrival, grant, observation, slots

PEPPER = b"p" * 32
FIRST, SECOND = "3f0d8a52-6a0c-4e57-9d2c-8a4f1f1f0a11", "3f0d8a52-6a0c-4e57-9d2c-8a4f1f1f0a12"
ANSWER = Answer(status=200, content_type="application/json", body=b'{"id":1}')
NATIVE, INLINE = grant(TOKENS, slots(100)), grant(TOKENS, slots(100), metering=Metering.INLINE)
JSON = {":status": "200", "content_type": "application/json"}
meterings = pytest.mark.parametrize("of", [NATIVE, INLINE], ids=["native", "inline"])


def request(body: bytes = b"{}", *, of: Grant = NATIVE, request_id: str = SECOND, **changes: Any) -> KeyedRequest:
    found = keyed(of, arrival(request_id=request_id, **{"idempotency_key": "k", **changes}), body, pepper=PEPPER)
    assert found is not None
    return found


def earlier(**changes: Any) -> Earlier:
    whole = {"request_id": FIRST, "fingerprint": request().fingerprint, "age_ms": 0}
    return Earlier(**{**whole, **changes})


def test_without_a_key_there_is_nothing_to_remember() -> None:
    assert keyed(NATIVE, arrival(), b"{}", pepper=PEPPER) is None


def test_a_key_is_its_principals() -> None:
    found = request(of=grant(tenant_id="ten_b", principal_id="key_z"))
    assert (found.tenant_id, found.principal_id, found.key, found.request_id) == ("ten_b", "key_z", "k", SECOND)


@given(st.tuples(st.binary(), st.binary()))
def test_a_fingerprint_is_of_the_body_to_the_byte(bodies: tuple[bytes, bytes]) -> None:
    first, second = (request(body).fingerprint for body in bodies)
    assert (first == second) is (bodies[0] == bodies[1])


def test_a_fingerprint_is_of_the_path_too_and_tells_nothing_without_the_pepper() -> None:
    one = request(path="/v1/infer")
    assert one.fingerprint != request(path="/v1/chat/completions").fingerprint
    elsewhere = keyed(NATIVE, arrival(path="/v1/infer", idempotency_key="k"), b"{}", pepper=b"q" * 32)
    assert elsewhere is not None
    assert elsewhere.fingerprint != one.fingerprint


def test_another_request_under_the_key_is_refused_whatever_is_known_of_the_first() -> None:
    for answer in (None, ANSWER):
        refusal = at_once(request(b'{"a":1}'), earlier(answer=answer))
        assert isinstance(refusal, Refusal)
        assert refusal.reason is Reason.IDEMPOTENCY_KEY_REUSED
        assert (refusal.param, refusal.details) == ("idempotency-key", {"request_id": FIRST})


def test_what_was_recorded_is_given_again_without_a_question() -> None:
    assert at_once(request(), earlier(answer=ANSWER)) == Replay(request_id=FIRST, answer=ANSWER)
    assert at_once(request(), earlier()) is Next.ASK_STATE


@pytest.mark.parametrize("state", State)
def test_every_state_of_the_first_request_has_its_answer(state: State) -> None:
    found = by_state(earlier(age_ms=10 * ABANDONED_AFTER_MS), state, read_since=True)
    if state in LIVE or state is State.RECEIVED:
        assert isinstance(found, Refusal)
        assert found.reason is Reason.IDEMPOTENCY_KEY_IN_USE
    elif state is State.COMPLETED:
        assert isinstance(found, Refusal)
        assert found.reason is Reason.IDEMPOTENT_RESULT_ELSEWHERE
        url = f"/v1/requests/{FIRST}"
        assert found.details == {"request_id": FIRST, "url": url}
        assert dict(found.headers) == {"x-should-retry": "false", "location": url}
    else:
        assert state in FINAL
        assert found is Next.TAKE_OVER


def test_one_that_has_completed_is_read_once_more_for_its_answer_may_have_come_meanwhile() -> None:
    assert by_state(earlier(), State.COMPLETED, read_since=False) is Next.READ_AGAIN


@pytest.mark.parametrize("admitted", [False, True])
@pytest.mark.parametrize("age_ms", [0, ABANDONED_AFTER_MS, ABANDONED_AFTER_MS + 1, 100 * ABANDONED_AFTER_MS])
def test_a_claim_of_which_nothing_came_is_given_up_after_a_while(age_ms: int, *, admitted: bool) -> None:
    found = by_state(earlier(age_ms=age_ms, admitted=admitted), None, read_since=False)
    if age_ms > ABANDONED_AFTER_MS and not admitted:
        assert found is Next.TAKE_OVER
    else:
        assert isinstance(found, Refusal)
        assert found.reason is Reason.IDEMPOTENCY_KEY_IN_USE


# Through Process, over reservations and keys in memory.


def asked(body: dict[str, Any] | None = None, *, of: Grant = NATIVE, **changes: Any) -> Any:
    raw = json.dumps(CHAT | (body or {})).encode()
    return envoy.request_body(raw, envoy.beside(of, arrival(**{"idempotency_key": "k", **changes})))


async def reply(stream: MemoryStream) -> Any:
    return envoy.read(await stream.answer())


async def answered(processing: Processing, message: Any) -> Any:
    """Process's answer to a request whose stream ends at once."""
    async with processing.stream() as stream:
        stream.put(message)
        return await reply(stream)


def code(answer: Any) -> str:
    """Why a request was refused; `admitted` when it was not, `200` and so on for an answer given again."""
    immediate = answer.immediate_response
    if immediate is None:
        assert answer.dynamic_metadata.fields["gateway.admission"].struct_value.fields["admitted"].string_value == "yes"
        return "admitted"
    if immediate.details == "sidecar_idempotent_replay":
        return str(int(immediate.status.code))
    return str(json.loads(immediate.body)["error"]["code"])


def headers(answer: Any) -> dict[str, str]:
    options = answer.immediate_response.headers.set_headers
    assert not any(option.header.value for option in options), "ext_proc reads `raw_value`"
    return {option.header.key: option.header.raw_value.decode() for option in options}


async def ended(processing: Processing, request_id: str, **changes: Any) -> None:
    """The request has ended, and that is settled."""
    found = await processing.settling.flaky.kept.find("org_a", request_id)
    assert found is not None
    admitted = admission(request_id=request_id, admitted_ms=NOON_MS)
    seen = endings.read(observation(**changes), admitted)
    await processing.settling.flaky.kept.settle(settlements.settlement(admitted, seen))


@pytest.fixture
def processing() -> Processing:
    return Processing()


async def test_a_request_without_a_key_is_not_remembered(processing: Processing) -> None:
    assert code(await answered(processing, asked(idempotency_key=""))) == "admitted"
    assert processing.admitting.keys.asked == []


async def test_a_retry_while_the_first_runs_is_refused_and_told_not_to_come_again(processing: Processing) -> None:
    assert code(await answered(processing, asked())) == "admitted"
    retry = await answered(processing, asked(request_id=SECOND))
    assert code(retry) == "idempotency_key_in_use"
    assert int(retry.immediate_response.status.code) == 409
    assert headers(retry)["x-should-retry"] == "false"
    assert json.loads(retry.immediate_response.body)["error"]["details"] == {"request_id": FIRST}
    assert await processing.settling.used(slots(100)) == (1,)


async def test_another_body_under_the_key_is_refused(processing: Processing) -> None:
    await answered(processing, asked())
    other = await answered(processing, asked({"max_tokens": 99}, request_id=SECOND))
    assert (code(other), int(other.immediate_response.status.code)) == ("idempotency_key_reused", 422)


@pytest.mark.parametrize(
    "elsewhere", [{"of": grant(TOKENS, principal_id="key_z")}, {"of": grant(TOKENS, tenant_id="ten_b")}]
)
async def test_the_same_key_of_somebody_else_means_nothing(processing: Processing, elsewhere: dict[str, Any]) -> None:
    await answered(processing, asked())
    assert code(await answered(processing, asked({"max_tokens": 9}, request_id=SECOND, **elsewhere))) == "admitted"


async def recorded(
    processing: Processing, *pieces: bytes, of: Grant = NATIVE, head: dict[str, str] | None = None
) -> list[Any]:
    """Process's answers for the response of a first request, whose body comes in these pieces."""
    whole = {**JSON, **(head or {})}
    async with processing.stream() as stream:
        stream.put(asked(of=of))
        assert code(await reply(stream)) == "admitted"
        stream.put(envoy.response_headers(**whole))
        found = [await reply(stream)]
        for at, piece in enumerate(pieces, 1):
            stream.put(envoy.response_body(piece, end_of_stream=at == len(pieces)))
            found.append(await reply(stream))
    return found


def shows_body(answer: Any) -> bool:
    override = answer.mode_override
    return override is not None and int(override.response_body_mode) == 1  # STREAMED


@meterings
async def test_an_answer_is_recorded_as_it_passes_and_given_again(processing: Processing, of: Grant) -> None:
    found = await recorded(processing, b'{"id":', b"1}", b"", of=of)
    assert shows_body(found[0]) is (of is NATIVE)
    retry = await answered(processing, asked(request_id=SECOND, of=of))
    assert code(retry) == "200"
    assert retry.immediate_response.body == b'{"id":1}'
    assert headers(retry) == {
        "content-type": "application/json",
        "idempotent-replayed": "true",
        "x-gateway-original-request-id": FIRST,
    }
    assert processing.observed[1:] == [Replay(request_id=FIRST, answer=ANSWER)]
    assert processing.settling.flaky.asked.count("reserve") == 1


@meterings
async def test_trailers_end_an_answer_too(processing: Processing, of: Grant) -> None:
    async with processing.stream() as stream:
        stream.put(asked(of=of))
        await stream.answer()
        stream.put(envoy.response_headers(**JSON), envoy.response_body(b'{"id":1}'), envoy.response_trailers())
        for _ in range(3):
            await stream.answer()
    assert code(await answered(processing, asked(request_id=SECOND, of=of))) == "200"


async def test_native_pieces_pass_as_they_are(processing: Processing) -> None:
    for answer in (await recorded(processing, b'{"id":', b"1}"))[1:]:
        assert answer.response_body.response.body_mutation is None


LARGE = b'"' + b"x" * (MAX_ANSWER_BYTES - 2) + b'"'


@meterings
@pytest.mark.parametrize(
    ("pieces", "head", "kept"),
    [
        ((LARGE,), {}, True),
        ((LARGE, b" "), {}, False),
        ((LARGE, b""), {"content_length": str(MAX_ANSWER_BYTES)}, True),
        ((b"{}",), {"content_length": str(MAX_ANSWER_BYTES + 1)}, False),
        ((SSE,), {"content_type": "text/event-stream"}, False),
        ((b"{}",), {"content_type": "application/json; charset=utf-8"}, True),
        ((b"{}",), {"content_type": "text/plain"}, False),
        ((b"{}",), {":status": "201"}, True),
        ((b"{}",), {":status": "204"}, False),
        ((b"{}",), {":status": "400"}, False),
        ((b"{}",), {":status": "503"}, False),
        ((b"{}",), {"content_encoding": "gzip"}, False),
        ((b"{}",), {"content_encoding": "identity"}, True),
    ],
)
async def test_only_json_that_is_not_too_large_is_kept(
    processing: Processing, of: Grant, pieces: tuple[bytes, ...], head: dict[str, str], *, kept: bool
) -> None:
    async with processing.stream() as stream:
        stream.put(asked(of=of))
        await stream.answer()
        stream.put(envoy.response_headers(**{**JSON, **head}))
        for at, piece in enumerate(pieces, 1):
            stream.put(envoy.response_body(piece, end_of_stream=at == len(pieces)))
    await ended(processing, FIRST)
    retry = await answered(processing, asked(request_id=SECOND, of=of))
    assert code(retry) == (head.get(":status", "200") if kept else "idempotent_result_elsewhere")


@meterings
async def test_what_was_broken_off_is_not_kept_and_may_be_made_again(processing: Processing, of: Grant) -> None:
    async with processing.stream() as stream:
        stream.put(asked(of=of))
        await stream.answer()
        stream.put(envoy.response_headers(**JSON), envoy.response_body(b'{"id":'))
    await ended(processing, FIRST, details="upstream_reset_after_response_started{protocol_error}")
    assert code(await answered(processing, asked(request_id=SECOND, of=of))) == "admitted"
    assert processing.admitting.keys.holder() == SECOND
    third = await answered(processing, asked(request_id="third", of=of))
    assert json.loads(third.immediate_response.body)["error"]["details"] == {"request_id": SECOND}


async def test_a_stream_that_has_completed_is_elsewhere(processing: Processing) -> None:
    await answered(processing, asked())
    await ended(processing, FIRST)
    retry = await answered(processing, asked(request_id=SECOND))
    assert code(retry) == "idempotent_result_elsewhere"
    assert headers(retry)["location"] == f"/v1/requests/{FIRST}"


@pytest.mark.parametrize("state", sorted(FINAL - {State.COMPLETED, State.REJECTED}))
async def test_what_only_the_ledger_knows_to_have_failed_may_be_made_again(
    processing: Processing, state: State
) -> None:
    keys = processing.admitting.keys
    await keys.claim(request(json.dumps(CHAT).encode(), request_id=FIRST))
    keys.ledger[FIRST] = state
    assert code(await answered(processing, asked(request_id=SECOND))) == "admitted"


async def test_a_claim_of_which_nothing_came_passes_to_one_of_many(processing: Processing) -> None:
    keys = processing.admitting.keys
    await keys.claim(request(json.dumps(CHAT).encode(), request_id=FIRST))
    assert code(await answered(processing, asked(request_id=SECOND))) == "idempotency_key_in_use"
    processing.settling.clock.ms += ABANDONED_AFTER_MS + 1
    codes = await asyncio.gather(*(_code_of(processing, f"retry-{number}") for number in range(50)))
    assert sorted(codes) == ["admitted"] + ["idempotency_key_in_use"] * 49


async def _code_of(processing: Processing, request_id: str) -> str:
    return code(await answered(processing, asked(request_id=request_id)))


async def test_of_many_at_once_one_is_admitted(processing: Processing) -> None:
    codes = await asyncio.gather(*(_code_of(processing, f"retry-{number}") for number in range(50)))
    assert sorted(codes) == ["admitted"] + ["idempotency_key_in_use"] * 49
    assert processing.settling.flaky.asked.count("reserve") == 1


async def test_what_was_admitted_is_not_made_again_though_nobody_knows_of_it_any_more(processing: Processing) -> None:
    """As after a loss of Redis, while it runs on."""
    assert code(await answered(processing, asked())) == "admitted"
    await processing.admitting.once.finish()
    await processing.settling.flaky.kept.release("org_a", FIRST)
    assert await processing.settling.flaky.kept.find("org_a", FIRST) is None
    processing.settling.clock.ms += 100 * ABANDONED_AFTER_MS
    assert code(await answered(processing, asked(request_id=SECOND))) == "idempotency_key_in_use"
    processing.admitting.keys.ledger[FIRST] = State.COMPLETED
    assert code(await answered(processing, asked(request_id=SECOND))) == "idempotent_result_elsewhere"


async def test_an_answer_that_came_while_the_state_was_asked_is_given(processing: Processing) -> None:
    keys = processing.admitting.keys
    await keys.claim(request(json.dumps(CHAT).encode(), request_id=FIRST))
    keys.ledger[FIRST] = State.COMPLETED
    # The answer was stored after the row was read, before the state was.
    row = next(iter(keys.rows.values()))
    keys.before["ended"] = lambda: setattr(row, "answer", ANSWER)
    assert code(await answered(processing, asked(request_id=SECOND))) == "200"


async def test_a_key_that_somebody_else_took_meanwhile_is_in_use(processing: Processing) -> None:
    keys = processing.admitting.keys
    await keys.claim(request(json.dumps(CHAT).encode(), request_id=FIRST))
    keys.ledger[FIRST] = State.FAILED
    row = next(iter(keys.rows.values()))
    keys.before["take_over"] = lambda: setattr(row, "request_id", "third")
    retry = await answered(processing, asked(request_id=SECOND))
    assert code(retry) == "idempotency_key_in_use"
    assert json.loads(retry.immediate_response.body)["error"]["details"] == {"request_id": "third"}


async def test_what_is_refused_leaves_the_key_free(processing: Processing) -> None:
    full = grant(SLOTS)
    await answered(processing, asked(idempotency_key="", of=full))
    refused = await answered(processing, asked(request_id=SECOND, of=full))
    assert code(refused) == "rate_limit_exceeded"
    assert processing.admitting.keys.rows == {}


async def test_a_body_that_is_wrong_claims_nothing(processing: Processing) -> None:
    assert code(await answered(processing, asked({"messages": []}))) == "invalid_body"
    assert processing.admitting.keys.asked == []


async def test_without_the_keys_only_what_carries_one_is_refused(processing: Processing) -> None:
    processing.admitting.keys.out = True
    refused = await answered(processing, asked())
    assert (code(refused), int(refused.immediate_response.status.code)) == ("idempotency_unavailable", 503)
    assert headers(refused)["retry-after"] == "1"
    assert processing.settling.flaky.asked == []
    assert code(await answered(processing, asked(idempotency_key="", request_id=SECOND))) == "admitted"


async def test_without_the_limits_only_what_carries_a_key_is_refused_whatever_they_allow(
    processing: Processing,
) -> None:
    processing.settling.flaky.out = True
    unlimited = grant()
    assert code(await answered(processing, asked(of=unlimited))) == "idempotency_unavailable"
    assert processing.admitting.keys.rows == {}
    assert code(await answered(processing, asked(of=unlimited, idempotency_key=""))) == "admitted"


async def test_when_the_state_of_the_first_cannot_be_asked_a_retry_is_refused(processing: Processing) -> None:
    await answered(processing, asked())
    processing.settling.flaky.out = True
    assert code(await answered(processing, asked(request_id=SECOND))) == "idempotency_unavailable"
    assert processing.admitting.keys.holder() == FIRST


async def test_an_answer_that_cannot_be_kept_is_given_all_the_same(processing: Processing) -> None:
    def out() -> None:
        processing.admitting.keys.out = True

    processing.admitting.keys.before["record"] = out
    found = await recorded(processing, b'{"id":1}')
    assert found[1].response_body is not None
    processing.admitting.keys.out = False
    await ended(processing, FIRST)
    assert code(await answered(processing, asked(request_id=SECOND))) == "idempotent_result_elsewhere"


async def test_a_client_that_leaves_before_it_is_admitted_leaves_the_key_free(processing: Processing) -> None:
    settling = processing.settling
    settling.flaky.held = asyncio.Event()
    stream = MemoryStream()
    task = asyncio.create_task(processing.processor.process(stream))
    stream.put(asked())
    async with asyncio.timeout(10):
        while "reserve" not in settling.flaky.asked:  # noqa: ASYNC110 - a turn of the loop is what is waited for
            await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    settling.flaky.held.set()
    await processing.admitting.once.finish()
    await settling.settler.finish()
    assert processing.admitting.keys.rows == {}
    assert await settling.used(slots(100)) == (0,)
