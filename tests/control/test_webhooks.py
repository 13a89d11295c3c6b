"""Webhooks over HTTP: made, shown, replayed, deleted, written down, and never another tenant's."""

from typing import Any

import httpx
import pytest

from control import webhooks as endpoints
from store import webhook_deliveries, webhooks
from store.audit_reader import Intact, verify
from store.database import Pool
from store.webhook_deliveries import Failure, Room
from store.webhooks import WebhookName
from tests.control.conftest import PEPPER, Api
from tests.support.identity_rows import NOON, TRAIL, add_tenant
from tests.support.values import REQUEST_ID, grant
from tests.support.webhook_rows import LEASE, ended

PATH = "/v1/webhooks"
URL = "https://hooks.example/in"


@pytest.fixture
async def tenant(pool: Pool) -> str:
    return await add_tenant(pool)


async def _made(api: Api, **body: Any) -> dict[str, Any]:
    answer = await api.call("POST", PATH, json={"url": URL, **body})
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    made: dict[str, Any] = answer.json()
    return made


def _refused(answer: httpx.Response, status: int, code: str, param: str | None = None) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), answer.text
    assert error["request_id"] == REQUEST_ID


async def _replayed(api: Api, webhook_id: str, **body: Any) -> dict[str, Any]:
    answer = await api.call("POST", f"{PATH}/{webhook_id}/replay", json=body)
    assert answer.status_code == 200, answer.text
    done: dict[str, Any] = answer.json()
    return done


@pytest.mark.usefixtures("tenant")
async def test_a_webhook_is_made_with_its_secret_and_shown_without(api: Api) -> None:
    made = await _made(api, states=["failed", "completed"], description="billing")
    assert made.pop("secret").startswith("whsec_")
    assert made == {
        "id": made["id"],
        "url": URL,
        "states": ["completed", "failed"],
        "description": "billing",
        "state": "active",
        "created_at": "2026-01-01T12:00:00Z",
        "failing_since": None,
        "disabled_at": None,
        "former_secret_until": None,
    }
    listed = await api.call("GET", PATH)
    assert listed.json() == {"data": [made]}
    shown = await api.call("GET", f"{PATH}/{made['id']}")
    assert shown.json() == {**made, "deliveries": []}
    assert {answer.headers["cache-control"] for answer in (listed, shown)} == {"no-store"}


@pytest.mark.usefixtures("tenant")
async def test_deliveries_are_shown_and_replayed(api: Api, pool: Pool) -> None:
    made = await _made(api)
    [record] = await ended(pool)
    request_id = record.admission.request_id
    waiting = (await api.call("GET", f"{PATH}/{made['id']}")).json()["deliveries"]
    assert [(one["request_id"], one["attempts"], one["next_at"]) for one in waiting] == [
        (request_id, 0, "2026-01-01T12:00:00Z")
    ]
    room = Room(total=1, each=1, flying={})
    [claimed] = await webhook_deliveries.claim(pool, room, now=NOON, until=NOON + LEASE, pepper=PEPPER)
    failure = Failure(status=None, error="no connection", next_at=None)
    await webhook_deliveries.failed(pool, claimed, failure, now=NOON)
    shown = (await api.call("GET", f"{PATH}/{made['id']}")).json()
    assert shown["state"] == "failing"
    [dead] = shown["deliveries"]
    assert (dead["dead_at"], dead["next_at"], dead["last_error"]) == ("2026-01-01T12:00:00Z", None, "no connection")
    nothing = {"queued": 0, "more": False, "next_since": None}
    assert await _replayed(api, made["id"], dead=True) == {**nothing, "queued": 1}
    assert await _replayed(api, made["id"], dead=True) == nothing
    assert await _replayed(api, made["id"], request_id=request_id) == nothing, "it is on its way"
    await webhook_deliveries.delivered(pool, claimed, status=200, now=NOON)
    assert await _replayed(api, made["id"], request_id=request_id) == {**nothing, "queued": 1}
    assert await _replayed(api, made["id"], since="2026-01-01T13:00:00+01:00") == nothing


@pytest.mark.usefixtures("tenant")
async def test_a_deleted_webhook_is_gone(api: Api) -> None:
    made = await _made(api)
    answer = await api.call("DELETE", f"{PATH}/{made['id']}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert (await api.call("GET", PATH)).json() == {"data": []}
    _refused(await api.call("DELETE", f"{PATH}/{made['id']}"), 404, "unknown_webhook")


@pytest.mark.usefixtures("tenant")
async def test_another_tenants_webhook_is_not_there(api: Api, pool: Pool) -> None:
    made = await _made(api)
    await add_tenant(pool, "ten_b", name="other")
    other = api.as_(grant(tenant_id="ten_b"))
    one = f"{PATH}/{made['id']}"
    for method, path, body in (("GET", one, None), ("DELETE", one, None), ("POST", f"{one}/replay", {"dead": True})):
        _refused(await api.call(method, path, headers=other, json=body), 404, "unknown_webhook")
    assert (await api.call("GET", PATH, headers=other)).json() == {"data": []}
    assert (await api.call("GET", one)).status_code == 200


@pytest.mark.parametrize("webhook_id", ["nothing", "wh_00000000000000000000", "wh_%00"])
async def test_what_is_no_webhook_is_not_there(api: Api, webhook_id: str) -> None:
    _refused(await api.call("GET", f"{PATH}/{webhook_id}"), 404, "unknown_webhook")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "url"),
        ({"url": 1}, "url"),
        ({"url": "http://hooks.example/in"}, "url"),
        ({"url": "https://169.254.169.254/latest"}, "url"),
        ({"url": "https://user:hidden@hooks.example/in"}, "url"),
        ({"url": URL, "states": ["done"]}, "states.0"),
        ({"url": URL, "states": ["streaming"]}, "states"),
        ({"url": URL, "description": "x" * 201}, "description"),
        ({"url": URL, "description": "a\u0000"}, "description"),
        ({"url": URL, "secret": "mine"}, "secret"),
    ],
)
@pytest.mark.usefixtures("tenant")
async def test_a_field_that_is_wrong_is_named(api: Api, body: dict[str, Any], param: str) -> None:
    answer = await api.call("POST", PATH, json=body)
    _refused(answer, 400, "invalid_body", param)
    assert "hidden" not in answer.text
    assert await api.audited() == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "request_id"),
        ({"dead": False}, "request_id"),
        ({"dead": True, "request_id": REQUEST_ID}, "request_id"),
        ({"dead": "yes"}, "dead"),
        ({"since": "2026-01-01T12:00:00"}, "since"),
        ({"since": "2025-11-01T12:00:00Z"}, "since"),
        ({"request_id": REQUEST_ID}, "request_id"),
        ({"request_id": "no-uuid"}, "request_id"),
        ({"until": "2026-01-01T12:00:00Z"}, "until"),
    ],
)
@pytest.mark.usefixtures("tenant")
async def test_a_replay_that_is_wrong_is_named(api: Api, body: dict[str, Any], param: str) -> None:
    made = await _made(api)
    _refused(await api.call("POST", f"{PATH}/{made['id']}/replay", json=body), 400, "invalid_body", param)


@pytest.mark.usefixtures("tenant")
async def test_the_eleventh_is_refused(api: Api) -> None:
    for _ in range(webhooks.MOST_PER_TENANT):
        await _made(api)
    _refused(await api.call("POST", PATH, json={"url": URL}), 400, "invalid_body", "url")


@pytest.mark.usefixtures("tenant")
async def test_every_change_is_written_down_by_who_made_it(api: Api, pool: Pool) -> None:
    made = await _made(api)
    await webhooks.disable(pool, WebhookName(id=made["id"]), now=NOON, trail=TRAIL)
    await _replayed(api, made["id"], dead=True)
    await api.call("DELETE", f"{PATH}/{made['id']}")
    rows = await api.audited()
    actions = ["webhook.create", "webhook.disable", "webhook.enable", "webhook.replay", "webhook.delete"]
    assert [row["action"] for row in rows] == actions
    del rows[1]
    assert {(row["actor"], row["source"], row["request_id"]) for row in rows} == {("key_k", "192.0.2.1", REQUEST_ID)}
    assert made["secret"] not in str(rows)


async def test_the_chain_of_what_was_written_down_holds(api: Api, pool: Pool, tenant: str) -> None:
    assert tenant
    await _made(api)
    assert isinstance(await verify(pool, pepper=PEPPER), Intact)


@pytest.mark.parametrize(
    ("method", "path"), [("POST", PATH), ("GET", PATH), ("GET", f"{PATH}/w"), ("DELETE", f"{PATH}/w")]
)
async def test_nobody_is_let_in_without_a_token(api: Api, method: str, path: str) -> None:
    answer = await api.call(method, path, headers={"x-request-id": REQUEST_ID}, json={"url": URL})
    _refused(answer, 401, "missing_credentials")


async def test_an_outage_of_postgres_is_said_so(offline: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "_PATIENCE_SECONDS", 0.5)
    _refused(await offline.call("GET", PATH), 503, "identity_unavailable")
