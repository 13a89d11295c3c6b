"""Check, bytes to bytes. What Envoy would send and read is made and read by betterproto, a codec of its own."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from envoy_data_plane.envoy.service.auth import v3 as auth

from authz import api_key
from authz import arrival as arrivals
from authz import grant as grants
from authz.arrival import Arrival
from authz.directory import CachedDirectory
from authz.grant import Grant, Metering
from authz.refusal import Reason, Refusal
from authz.service import SERVICE_NAME, Authorization
from quota.limit import requests_per_minute
from tests.support.memory_directory import MemoryDirectory
from tests.support.values import NOON_MS, REQUEST_ID, Clock, key_record
from wire.messages import CheckResponse

PEPPER = b"p" * 32
KEY = api_key.generate("test")
RECORD = key_record(id=KEY.id, hash=api_key.keyed_hash(KEY.text, PEPPER), limits=(requests_per_minute(7),), plan="gold")
GRANTED = "granted"
HEADERS = {
    "authorization": f"Bearer {KEY.text}",
    "content-type": "application/json",
    "content-length": "10",
    "x-request-id": REQUEST_ID,
    ":method": "POST",
}


@dataclass(slots=True)
class Checked:
    """An Authorization, and what it told its observer."""

    directory: MemoryDirectory = field(default_factory=lambda: MemoryDirectory({KEY.id: RECORD}))
    clock: Clock = field(default_factory=Clock)
    observed: list[Grant | Refusal] = field(default_factory=list)

    async def __call__(self, **changes: Any) -> auth.CheckResponse:
        return await self.ask(check_request(**changes))

    async def ask(self, raw: bytes) -> auth.CheckResponse:
        cached = CachedDirectory(self.directory, now=self.clock.now)
        service = Authorization(cached, pepper=PEPPER, now=self.clock.now, observe=self.observed.append).service()
        assert service.name == SERVICE_NAME
        assert set(service.unary) == {"Check"}
        answer = await service.unary["Check"](raw)
        # The answer is two messages in a row, which a reader merges. betterproto does not, so they are merged first.
        return auth.CheckResponse.parse(CheckResponse.FromString(answer).SerializeToString())


@pytest.fixture
def check() -> Checked:
    return Checked()


def check_request(
    *, method: str = "POST", path: str = "/v1/infer?x=1", headers: dict[str, str | None] | None = None
) -> bytes:
    whole = {**HEADERS, **(headers or {})}
    return bytes(
        auth.CheckRequest(
            attributes=auth.AttributeContext(
                request=auth.AttributeContextRequest(
                    time=datetime.fromtimestamp(NOON_MS / 1000, UTC) + timedelta(milliseconds=123, microseconds=999),
                    http=auth.AttributeContextHttpRequest(
                        id="17",
                        method=method,
                        path=path,
                        headers={name: value for name, value in whole.items() if value is not None},
                    ),
                )
            )
        )
    )


def _headers(options: Any) -> dict[str, str]:
    found = {option.header.key: option.header.value for option in options}
    assert len(found) == len(options)
    # ext_authz reads `value`; a `raw_value` would give an empty header.
    assert not any(option.header.raw_value for option in options)
    return found


async def test_a_good_key_passes_with_the_headers_of_its_tenant_and_nothing_of_its_own(check: Checked) -> None:
    answer = await check()
    assert answer.status is None or answer.status.code == 0
    assert answer.denied_response is None
    assert answer.ok_response is not None
    assert _headers(answer.ok_response.headers) == {
        "x-org-id": "org_a",
        "x-tenant-id": "ten_a",
        "x-principal-id": f"key_{KEY.id}",
        "x-principal-kind": "api_key",
        "x-tenant-plan": "gold",
        "x-scopes": "inference:text",
    }
    removed = set(answer.ok_response.headers_to_remove)
    assert removed >= {"authorization", "proxy-authorization", "x-api-key", "api-key", "cookie", "accept-encoding"}
    assert not removed & set(_headers(answer.ok_response.headers)), "set and removed is removed"


async def test_process_finds_the_grant_and_the_arrival_beside_the_request(check: Checked) -> None:
    answer = await check()
    assert answer.dynamic_metadata is not None
    fields = answer.dynamic_metadata.fields
    assert set(fields) == {"grant", "arrival"}
    assert fields["grant"].string_value is not None
    assert fields["arrival"].string_value is not None
    granted = grants.decode(fields["grant"].string_value)
    assert [granted] == check.observed
    assert granted.limits == RECORD.limits
    assert arrivals.decode(fields["arrival"].string_value) == Arrival(
        request_id=REQUEST_ID, path="/v1/infer", received_ms=NOON_MS + 123
    )


async def test_inline_metering_is_asked_for_by_a_header(check: Checked) -> None:
    check.directory.add(replace(RECORD, metering=Metering.INLINE))
    answer = await check()
    assert answer.ok_response is not None
    assert _headers(answer.ok_response.headers)["x-gateway-metering"] == "inline"


def _revoked(check: Checked) -> None:
    check.directory.add(replace(RECORD, revoked_at=datetime(2025, 1, 1, tzinfo=UTC)))


def _suspended(check: Checked) -> None:
    check.directory.add(replace(RECORD, tenant_suspended=True))


def _out(check: Checked) -> None:
    check.directory.out = True


def _nothing(_: Checked) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "before", "reason"),
    [
        ({"path": "/nowhere"}, _nothing, Reason.UNKNOWN_PATH),
        ({"path": "/nowhere", "headers": {"authorization": None}}, _nothing, Reason.UNKNOWN_PATH),
        ({"method": "GET"}, _nothing, Reason.METHOD_NOT_ALLOWED),
        ({"headers": {"authorization": None}}, _nothing, Reason.MISSING_CREDENTIALS),
        ({"headers": {"authorization": "Bearer x"}}, _nothing, Reason.INVALID_API_KEY),
        ({"headers": {"x-api-key": "other"}}, _nothing, Reason.CONFLICTING_CREDENTIALS),
        ({"headers": {"authorization": f"Bearer {api_key.generate('test').text}"}}, _nothing, Reason.INVALID_API_KEY),
        ({}, _revoked, Reason.INVALID_API_KEY),
        ({}, _suspended, Reason.TENANT_SUSPENDED),
        ({}, _out, Reason.IDENTITY_UNAVAILABLE),
        ({"headers": {"content-type": "text/plain"}}, _nothing, Reason.UNSUPPORTED_MEDIA_TYPE),
        ({"headers": {"content-encoding": "gzip"}}, _nothing, Reason.UNSUPPORTED_ENCODING),
        ({"headers": {"content-length": "0"}}, _nothing, Reason.MISSING_BODY),
        # A stranger learns nothing of what the body should be.
        ({"headers": {"content-type": "text/plain"}}, _revoked, Reason.INVALID_API_KEY),
    ],
)
async def test_a_refusal_is_told_with_its_status_and_body(
    check: Checked, change: dict[str, Any], before: Callable[[Checked], None], reason: Reason
) -> None:
    before(check)
    answer = await check(**change)
    assert answer.status is not None
    assert answer.status.code == 7
    assert answer.ok_response is None
    assert answer.dynamic_metadata is None
    denied = answer.denied_response
    assert denied is not None
    assert denied.status is not None
    assert int(denied.status.code) == reason.status
    error = json.loads(denied.body)["error"]
    assert (error["code"], error["request_id"]) == (reason.code, REQUEST_ID)
    headers = _headers(denied.headers)
    assert headers["content-type"] == "application/json"
    assert ("retry-after" in headers) is (reason is Reason.IDENTITY_UNAVAILABLE)
    [observed] = check.observed
    assert isinstance(observed, Refusal)
    assert observed.reason is reason


async def test_every_way_to_be_wrong_is_the_same_to_the_byte(check: Checked) -> None:
    unknown = await check(headers={"authorization": f"Bearer {api_key.generate('test').text}"})
    mistyped = await check(headers={"x-api-key": "nonsense", "authorization": None})
    _revoked(check)
    revoked = await check()
    assert bytes(unknown) == bytes(mistyped) == bytes(revoked)


async def test_nobody_is_looked_up_for_what_cannot_be_a_key(check: Checked) -> None:
    for text in ("Bearer nonsense", f"Bearer {KEY.text[:-1]}", "Basic x"):
        await check(headers={"authorization": text})
    await check(path="/nowhere")
    assert check.directory.asked == 0


async def test_a_request_that_says_nothing_is_refused_and_not_a_failure(check: Checked) -> None:
    answer = await check.ask(b"")
    assert answer.denied_response is not None
    assert answer.denied_response.status is not None
    assert int(answer.denied_response.status.code) == 404
