"""May this caller make this request? The tables of the decision, row by row."""

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz import api_key, decision, error_body
from authz.grant import Grant, Metering, PrincipalKind
from authz.refusal import Reason, Refusal
from authz.routes import ROUTES, Dialect, Route
from quota.limit import requests_per_minute
from tests.support.values import key_record

PEPPER = b"p" * 32
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
JUST = timedelta(microseconds=1)
KEY, OTHER = api_key.generate("test"), api_key.generate("test")
RECORD = key_record(id=KEY.id, hash=api_key.keyed_hash(KEY.text, PEPPER), limits=(requests_per_minute(7),))


@pytest.mark.parametrize(
    ("method", "target", "found"),
    [
        ("POST", "/v1/infer", Dialect.INFER),
        ("POST", "/v1/chat/completions", Dialect.OPENAI_CHAT),
        ("POST", "/v1/infer?api-version=1&x=/other", Dialect.INFER),
        ("POST", "/v1/infer?", Dialect.INFER),
        ("GET", "/v1/infer", Reason.METHOD_NOT_ALLOWED),
        ("post", "/v1/infer", Reason.METHOD_NOT_ALLOWED),
        ("", "/v1/infer", Reason.METHOD_NOT_ALLOWED),
        ("OPTIONS", "/v1/infer?", Reason.METHOD_NOT_ALLOWED),
        ("POST", "/v1/infer/", Reason.UNKNOWN_PATH),
        ("POST", "/v1/inference", Reason.UNKNOWN_PATH),
        ("POST", "/V1/infer", Reason.UNKNOWN_PATH),
        ("POST", "//v1/infer", Reason.UNKNOWN_PATH),
        ("POST", "/v1/infer#x", Reason.UNKNOWN_PATH),
        ("POST", "/v1%2Finfer", Reason.UNKNOWN_PATH),
        ("POST", "", Reason.UNKNOWN_PATH),
        ("POST", "*", Reason.UNKNOWN_PATH),
        ("POST", "https://host/v1/infer", Reason.UNKNOWN_PATH),
    ],
)
def test_a_path_outside_the_table_does_not_exist(method: str, target: str, found: Dialect | Reason) -> None:
    route = decision.route(method, target)
    assert (route.dialect if isinstance(route, Route) else route.reason) == found


def test_a_wrong_method_is_told_the_right_one() -> None:
    refusal = decision.route("GET", "/v1/infer")
    assert isinstance(refusal, Refusal)
    assert refusal.headers == (("allow", "POST"),)
    assert refusal.details == {"allow": ["POST"]}


def test_each_route_is_found_under_its_own_path() -> None:
    assert {route.path for route in ROUTES.values()} == set(ROUTES)


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({"authorization": "Bearer {key}"}, KEY),
        ({"authorization": "bearer {key}"}, KEY),
        ({"authorization": "BEARER   {key}  "}, KEY),
        ({"x-api-key": "{key}"}, KEY),
        ({"api-key": " {key} "}, KEY),
        ({"authorization": "Bearer {key}", "x-api-key": "{key}", "api-key": "{key}"}, KEY),
        ({}, Reason.MISSING_CREDENTIALS),
        ({"cookie": "key={key}", "x-key": "{key}", "proxy-authorization": "Bearer {key}"}, Reason.MISSING_CREDENTIALS),
        ({"authorization": ""}, Reason.INVALID_API_KEY),
        ({"authorization": "{key}"}, Reason.INVALID_API_KEY),
        ({"authorization": "Bearer"}, Reason.INVALID_API_KEY),
        ({"authorization": "Bearer "}, Reason.INVALID_API_KEY),
        ({"authorization": "Basic {key}"}, Reason.INVALID_API_KEY),
        ({"authorization": "Bearer{key}"}, Reason.INVALID_API_KEY),
        ({"authorization": "Bearer {key},Bearer {key}"}, Reason.INVALID_API_KEY),  # the header came twice
        ({"authorization": "Bearer {key} {key}"}, Reason.INVALID_API_KEY),
        ({"authorization": "Bearer {key}x"}, Reason.INVALID_API_KEY),
        ({"x-api-key": ""}, Reason.INVALID_API_KEY),
        ({"x-api-key": "Bearer {key}"}, Reason.INVALID_API_KEY),
        ({"x-api-key": "{key},{key}"}, Reason.INVALID_API_KEY),
        ({"x-api-key": "sk-proj-abc"}, Reason.INVALID_API_KEY),
        ({"authorization": "Bearer {key}", "x-api-key": "{other}"}, Reason.CONFLICTING_CREDENTIALS),
        ({"authorization": "Bearer {key}", "x-api-key": "nonsense"}, Reason.CONFLICTING_CREDENTIALS),
        ({"authorization": "Bearer nonsense", "api-key": "{key}"}, Reason.CONFLICTING_CREDENTIALS),
        ({"x-api-key": "{key}", "api-key": "{other}"}, Reason.CONFLICTING_CREDENTIALS),
        ({"authorization": "Basic {key}", "x-api-key": "{key}"}, Reason.INVALID_API_KEY),
    ],
)
def test_the_one_credential_of_a_request(headers: dict[str, str], found: api_key.ApiKey | Reason) -> None:
    given = {name: value.format(key=KEY.text, other=OTHER.text) for name, value in headers.items()}
    answer = decision.credential(given)
    assert (answer.reason if isinstance(answer, Refusal) else answer) == found


@given(st.dictionaries(st.sampled_from(["authorization", "x-api-key", "api-key", "other"]), st.text()))
def test_any_headers_can_be_read(headers: dict[str, str]) -> None:
    assert isinstance(decision.credential(headers), Refusal)


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (RECORD, None),
        (None, Reason.INVALID_API_KEY),
        (key_record(id=KEY.id, hash=api_key.keyed_hash(OTHER.text, PEPPER)), Reason.INVALID_API_KEY),
        (dataclasses.replace(RECORD, hash=api_key.keyed_hash(KEY.text, b"q" * 32)), Reason.INVALID_API_KEY),
        (dataclasses.replace(RECORD, hash=b""), Reason.INVALID_API_KEY),
        (dataclasses.replace(RECORD, hash=RECORD.hash[::-1]), Reason.INVALID_API_KEY),
        (dataclasses.replace(RECORD, revoked_at=NOW - JUST), Reason.INVALID_API_KEY),
        (dataclasses.replace(RECORD, revoked_at=NOW + timedelta(days=1)), Reason.INVALID_API_KEY),
        (dataclasses.replace(RECORD, expires_at=NOW - JUST), Reason.INVALID_API_KEY),
        (dataclasses.replace(RECORD, expires_at=NOW), Reason.INVALID_API_KEY),
        (dataclasses.replace(RECORD, expires_at=NOW + JUST), None),
        (dataclasses.replace(RECORD, tenant_suspended=True), Reason.TENANT_SUSPENDED),
        (dataclasses.replace(RECORD, organization_suspended=True), Reason.TENANT_SUSPENDED),
        (dataclasses.replace(RECORD, tenant_suspended=True, organization_suspended=True), Reason.TENANT_SUSPENDED),
        # A stranger does not learn that the tenant is suspended.
        (dataclasses.replace(RECORD, tenant_suspended=True, hash=bytes(32)), Reason.INVALID_API_KEY),
        (dataclasses.replace(RECORD, tenant_suspended=True, revoked_at=NOW), Reason.INVALID_API_KEY),
        (dataclasses.replace(RECORD, organization_suspended=True, expires_at=NOW), Reason.INVALID_API_KEY),
    ],
)
def test_who_is_granted(record: Any, found: Reason | None) -> None:
    answer = decision.grant(KEY, record, pepper=PEPPER, now=NOW)
    assert (answer.reason if isinstance(answer, Refusal) else None) == found


@pytest.mark.parametrize("metering", list(Metering))
def test_a_grant_says_what_the_record_says(metering: Metering) -> None:
    record = dataclasses.replace(RECORD, metering=metering, plan="gold", organization_id="org_9", tenant_id="ten_9")
    assert decision.grant(KEY, record, pepper=PEPPER, now=NOW) == Grant(
        organization_id="org_9",
        tenant_id="ten_9",
        principal_id=f"key_{KEY.id}",
        principal_kind=PrincipalKind.API_KEY,
        key_id=KEY.id,
        plan="gold",
        limits=RECORD.limits,
        metering=metering,
    )


def test_every_way_to_be_wrong_looks_the_same_to_the_caller() -> None:
    wrong = [
        decision.credential({"authorization": "Bearer nonsense"}),
        decision.credential({"x-api-key": KEY.text[:-1] + ("0" if KEY.text[-1] != "0" else "1")}),
        *(
            decision.grant(KEY, record, pepper=PEPPER, now=NOW)
            for record in (
                None,
                dataclasses.replace(RECORD, hash=bytes(32)),
                dataclasses.replace(RECORD, revoked_at=NOW),
                dataclasses.replace(RECORD, expires_at=NOW),
                dataclasses.replace(RECORD, revoked_at=NOW, tenant_suspended=True),
            )
        ),
    ]
    shown = set()
    for number, refusal in enumerate(wrong):
        assert isinstance(refusal, Refusal)
        body = json.loads(error_body.render(refusal, request_id=str(number), now=number))
        assert body["error"].pop("request_id") == str(number)
        body["error"].pop("timestamp")
        shown.add((refusal.reason.status, json.dumps(body), tuple(error_body.headers(refusal))))
    assert len(shown) == 1


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({"content-type": "application/json"}, None),
        ({"content-type": "Application/JSON; charset=utf-8"}, None),
        ({"content-type": " application/json ;x"}, None),
        ({"content-type": "application/json", "content-encoding": "identity"}, None),
        ({"content-type": "application/json", "content-encoding": " Identity "}, None),
        ({}, Reason.UNSUPPORTED_MEDIA_TYPE),
        ({"content-type": ""}, Reason.UNSUPPORTED_MEDIA_TYPE),
        ({"content-type": "text/plain"}, Reason.UNSUPPORTED_MEDIA_TYPE),
        ({"content-type": "application/jsonl"}, Reason.UNSUPPORTED_MEDIA_TYPE),
        ({"content-type": "text/plain; application/json"}, Reason.UNSUPPORTED_MEDIA_TYPE),
        ({"content-type": "application/json,text/plain"}, Reason.UNSUPPORTED_MEDIA_TYPE),
        ({"content-type": "application/json", "content-encoding": "gzip"}, Reason.UNSUPPORTED_ENCODING),
        ({"content-type": "application/json", "content-encoding": "identity,gzip"}, Reason.UNSUPPORTED_ENCODING),
        ({"content-type": "application/json", "content-length": "0"}, Reason.MISSING_BODY),
    ],
)
def test_what_the_headers_must_say_of_the_body(headers: dict[str, str], found: Reason | None) -> None:
    refusal = decision.body_headers({"content-length": "10", **headers})
    assert (refusal.reason if refusal else None) == found


def test_a_request_without_a_length_has_no_body() -> None:
    refusal = decision.body_headers({"content-type": "application/json"})
    assert refusal is not None
    assert refusal.reason is Reason.MISSING_BODY
