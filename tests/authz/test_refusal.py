"""The catalogue of refusals, and the one body that tells them."""

import json
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz import arrival as arrivals
from authz import error_body
from authz import grant as grants
from authz.arrival import Arrival
from authz.grant import Grant
from authz.principal import Metering, PrincipalKind
from authz.refusal import ErrorType, Reason, Refusal
from authz.routes import Dialect
from quota.limit import Limit, Unit, Window
from tests.support.values import arrival, grant, slots

RETRYABLE = {408, 429, 503, 504}


def test_every_reason_has_a_code_of_its_own() -> None:
    # An Enum makes aliases of equal values: then two names would be one reason.
    assert len(Reason.__members__) == len(list(Reason)) == len({reason.code for reason in Reason})
    for reason in Reason:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", reason.code)


@pytest.mark.parametrize("reason", list(Reason), ids=lambda reason: reason.code)
def test_a_reason_is_a_sentence_with_the_status_its_kind_asks_for(reason: Reason) -> None:
    kinds = {
        401: ErrorType.AUTHENTICATION,
        403: ErrorType.PERMISSION,
        404: ErrorType.NOT_FOUND,
        429: ErrorType.RATE_LIMIT,
    }
    if reason is Reason.INSUFFICIENT_QUOTA:  # OpenAI's SDKs know it by a type of its own, not worth retrying soon
        assert (reason.status, reason.type, reason.retryable) == (429, ErrorType.INSUFFICIENT_QUOTA, False)
        return
    if reason is Reason.DEADLINE_EXCEEDED:  # the same request would take as long again
        assert (reason.status, reason.type, reason.retryable) == (504, ErrorType.SERVER, False)
        return
    expected = kinds.get(reason.status, ErrorType.SERVER if reason.status >= 500 else ErrorType.INVALID_REQUEST)
    assert reason.type is expected
    assert reason.retryable is (reason.status in RETRYABLE)
    assert reason.message.endswith(".")


def test_messages_are_not_shared() -> None:
    assert len({reason.message for reason in Reason}) == len(list(Reason))


def test_the_body_to_the_byte() -> None:
    refusal = Refusal(
        reason=Reason.RATE_LIMIT_EXCEEDED,
        message="The limit 'x' of 1 is exceeded.",
        details={"limit": "x", "ceiling": 1, "used": 1},
        retry_after_ms=1500,
    )
    assert error_body.render(refusal, request_id="abc", now=1_767_268_800.1239) == (
        b'{"error":{"message":"The limit \'x\' of 1 is exceeded.","type":"rate_limit_error","param":null,'
        b'"code":"rate_limit_exceeded","details":{"limit":"x","ceiling":1,"used":1},"request_id":"abc",'
        b'"timestamp":"2026-01-01T12:00:00.123Z"}}\n'
    )


def test_without_anything_particular_the_catalogue_speaks() -> None:
    body = json.loads(error_body.render(Refusal(reason=Reason.INVALID_BODY, param="model"), request_id="", now=0))
    assert body["error"] == {
        "message": Reason.INVALID_BODY.message,
        "type": "invalid_request_error",
        "param": "model",
        "code": "invalid_body",
        "details": {},
        "request_id": "",
        "timestamp": "1970-01-01T00:00:00.000Z",
    }


def test_on_anthropics_paths_the_body_is_anthropics() -> None:
    refusal = Refusal(reason=Reason.INVALID_API_KEY)
    body = json.loads(
        error_body.render(refusal, dialect=Dialect.ANTHROPIC_MESSAGES, request_id="abc", now=1_767_268_800)
    )
    assert (body["type"], body["request_id"]) == ("error", "abc")
    assert body["error"]["type"] == "authentication_error"
    assert body["error"]["message"] == Reason.INVALID_API_KEY.message
    assert body["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("reason", list(Reason), ids=lambda reason: reason.code)
def test_anthropics_types_are_those_its_sdks_know(reason: Reason) -> None:
    expected = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        500: "api_error",
        503: "api_error",
        504: "timeout_error",
    }
    assert error_body.anthropic_type(reason) == expected.get(reason.status, "invalid_request_error")


@given(message=st.text(), request_id=st.text(), param=st.text() | st.none())
def test_any_text_is_told_as_json(message: str, request_id: str, param: str | None) -> None:
    refusal = Refusal(reason=Reason.BAD_REQUEST, message=message, param=param)
    error = json.loads(error_body.render(refusal, request_id=request_id, now=1.0))["error"]
    assert error["message"] == (message or Reason.BAD_REQUEST.message)
    assert (error["request_id"], error["param"]) == (request_id, param)


@given(st.integers(0, 10**12))
def test_retry_after_is_whole_seconds_and_never_too_early(ms: int) -> None:
    headers = dict(error_body.headers(Refusal(reason=Reason.RATE_LIMIT_EXCEEDED, retry_after_ms=ms)))
    seconds = int(headers["retry-after"])
    assert seconds >= 1
    assert seconds * 1000 >= ms
    assert (seconds - 1) * 1000 < max(ms, 1)
    assert headers["retry-after-ms"] == str(ms)


@pytest.mark.parametrize("reason", list(Reason), ids=lambda reason: reason.code)
def test_the_headers_that_go_with_a_reason(reason: Reason) -> None:
    refusal = Refusal(reason=reason, details={"scope": "usage:read"}, headers=(("allow", "POST"),))
    headers = dict(error_body.headers(refusal))
    assert headers["content-type"] == "application/json"
    assert headers["allow"] == "POST"
    # RFC 9110 section 15.5.2 asks for it with 401, RFC 6750 section 3.1 for the scope.
    expected = {
        Reason.MISSING_CREDENTIALS: 'Bearer realm="inference-gateway"',
        Reason.INSUFFICIENT_SCOPE: 'Bearer realm="inference-gateway", error="insufficient_scope", scope="usage:read"',
    }
    of_401 = 'Bearer realm="inference-gateway", error="invalid_token"' if reason.status == 401 else None
    assert headers.get("www-authenticate") == expected.get(reason, of_401)
    assert "retry-after" not in headers


limits = st.builds(
    Limit,
    name=st.text(),
    unit=st.sampled_from(Unit),
    window=st.sampled_from(Window),
    ceiling=st.integers(0, 2**63 - 1),
    seconds=st.integers(0, 2**31),
)


@given(
    st.builds(
        Grant,
        organization_id=st.text(),
        tenant_id=st.text(),
        principal_id=st.text(),
        principal_kind=st.sampled_from(PrincipalKind),
        key_id=st.text(),
        plan=st.text(),
        limits=st.lists(limits, max_size=5).map(tuple),
        scopes=st.lists(st.text(), max_size=3).map(tuple),
        principal_limits=st.lists(limits, max_size=2).map(tuple),
        models=st.lists(st.text(), max_size=3).map(tuple),
        routing_policy=st.none() | st.text(),
        metering=st.sampled_from(Metering),
    )
)
def test_a_grant_is_read_back_as_it_was_written(given_grant: Grant) -> None:
    assert grants.decode(grants.encode(given_grant)) == given_grant


def test_grants_that_differ_are_not_mixed_up() -> None:
    ones = [grant(), grant(slots(1)), grant(slots(2)), grant(plan="gold"), grant(metering=Metering.INLINE)]
    assert [grants.decode(grants.encode(one)) for one in ones] == ones
    assert len({grants.encode(one) for one in ones}) == len(ones)


@pytest.mark.parametrize("text", ["", "{", "null", "{}", '{"organization_id": 1}', "[]", '"x"'])
def test_what_is_no_grant_and_no_arrival_is_said_to_be_none(text: str) -> None:
    for decode in (grants.decode, arrivals.decode):
        with pytest.raises(msgspec.DecodeError):
            decode(text)


def test_an_arrival_is_read_back_as_it_was_written() -> None:
    one: Arrival = arrival(request_id="\N{SNOWMAN}")
    assert arrivals.decode(msgspec.json.encode(one).decode()) == one
