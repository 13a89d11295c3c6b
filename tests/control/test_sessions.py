"""Sessions over HTTP: exchanged, listed, ended, written down, and never more of them told than must be."""

import asyncio
import json
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from authz import session as tokens
from authz.principal import Handle, PrincipalKind
from authz.scope import Scope
from authz.session import MAX_SESSIONS_PER_PRINCIPAL, SessionOutage
from control import journal
from store.audit_reader import Intact, verify
from store.database import DatabaseOutage, Pool
from store.sessions import RedisSessions
from tests.control.conftest import KEY, PEPPER, Api, by_session, sessions_at
from tests.quota.own_redis import running
from tests.support.values import REQUEST_ID, grant

PATH = "/v1/sessions"
JWT = Handle(PrincipalKind.JWT, "jwt_1", "ten_a", "pro", ("viewer",))


async def _made(api: Api, **body: Any) -> dict[str, Any]:
    answer = await api.call("POST", PATH, json=body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def _error(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert error["request_id"] == REQUEST_ID
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    return error


def _cookie_token(answer: httpx.Response) -> tokens.SessionToken:
    text = tokens.from_cookie(answer.headers["set-cookie"].partition(";")[0])
    token = None if text is None else tokens.parse(text)
    assert token is not None
    return token


async def test_a_key_is_exchanged_for_a_session_of_the_same_principal(api: Api, sessions: RedisSessions) -> None:
    answer = await api.call("POST", PATH)
    made = answer.json()
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    assert "set-cookie" not in answer.headers
    token = tokens.parse(made.pop("token"))
    assert token is not None
    assert made == {
        "id": token.id,
        "transport": "bearer",
        "name": "",
        "principal_id": "key_k",
        "tenant_id": "ten_a",
        "created_at": "2026-01-01T12:00:00Z",
        "expires_at": "2026-01-02T00:00:00Z",
        "idle_seconds": 1800,
    }
    kept = await sessions.find(token)
    assert kept is not None
    assert (kept.id, kept.principal_id, kept.handle, kept.cookie) == (token.id, "key_k", KEY, False)
    assert (kept.idle_ms, kept.expires_ms - kept.created_ms) == (1_800_000, 43_200_000)
    assert kept.source == "192.0.2.1"  # what Envoy saw, not what the client claimed


async def test_a_jwt_keeps_what_it_claimed(api: Api, sessions: RedisSessions) -> None:
    caller = grant(principal_id="jwt_1", principal_kind=PrincipalKind.JWT, key_id="")
    headers = api.as_(caller, handle=JWT, claimed=frozenset({Scope.USAGE_READ}))
    made = (await api.call("POST", PATH, headers=headers)).json()
    (kept,) = await sessions.list_of("jwt_1")
    assert (kept.id, kept.handle, kept.claimed_scopes) == (made["id"], JWT, frozenset({Scope.USAGE_READ}))


async def test_a_browser_gets_a_cookie_and_no_token_that_a_script_could_read(api: Api, sessions: RedisSessions) -> None:
    answer = await api.call("POST", PATH, json={"transport": "cookie", "lifetime_seconds": 600})
    made, token = answer.json(), _cookie_token(answer)
    assert answer.headers["set-cookie"] == tokens.set_cookie(token, 600)
    assert made["csrf_token"] == tokens.csrf_token(token, PEPPER)
    assert "token" not in made
    assert token.text not in answer.text
    kept = await sessions.find(token)
    assert kept is not None
    assert kept.cookie


async def test_shorter_lives_and_a_name_may_be_asked_for(api: Api, sessions: RedisSessions) -> None:
    made = await _made(api, name="laptop", idle_seconds=60, lifetime_seconds=3600)
    assert (made["name"], made["idle_seconds"], made["expires_at"]) == ("laptop", 60, "2026-01-01T13:00:00Z")
    (kept,) = await sessions.list_of("key_k")
    assert (kept.name, kept.idle_ms, kept.expires_ms - kept.created_ms) == ("laptop", 60_000, 3_600_000)


async def test_nothing_is_idle_for_longer_than_it_lives(api: Api) -> None:
    assert (await _made(api, lifetime_seconds=120))["idle_seconds"] == 120


@pytest.mark.parametrize("kind", [PrincipalKind.SESSION, PrincipalKind.WORKLOAD])
async def test_neither_a_session_nor_a_certificate_is_exchanged(offline: Api, kind: PrincipalKind) -> None:
    headers = offline.as_(grant(principal_kind=kind, session_id="ses_1"))
    _error(await offline.call("POST", PATH, headers=headers), 403, "session_not_allowed")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"transport": "smoke"}, "transport"),
        ({"transport": None}, "transport"),
        ({"name": "x" * 101}, "name"),
        ({"name": 7}, "name"),
        ({"name": "\ud800"}, "name"),
        ({"idle_seconds": 0}, "idle_seconds"),
        ({"idle_seconds": 1801}, "idle_seconds"),
        ({"idle_seconds": "60"}, "idle_seconds"),
        ({"idle_seconds": True}, "idle_seconds"),
        ({"lifetime_seconds": -1}, "lifetime_seconds"),
        ({"lifetime_seconds": 43_201}, "lifetime_seconds"),
        ({"lifetime_seconds": 60.5}, "lifetime_seconds"),
        ({"lifetime_seconds": 10**30}, "lifetime_seconds"),
        ({"scopes": ["admin"]}, "scopes"),
        ({"principal_id": "key_other"}, "principal_id"),
        ({"\ud800": 1}, None),  # a name that UTF-8 cannot hold
        ({"x" * 5000: 1}, "x" * 100),
    ],
)
async def test_a_wrong_field_is_named(offline: Api, body: dict[str, Any], param: str | None) -> None:
    sent = json.dumps(body).encode()
    headers = {**offline.as_(), "content-type": "application/json"}
    answer = await offline.call("POST", PATH, content=sent, headers=headers)
    error = _error(answer, 400, "invalid_body")
    assert error["param"] == param
    assert len(error["message"]) < 300


@pytest.mark.parametrize(
    ("content", "content_type", "status", "code"),
    [
        (b"{", "application/json", 400, "invalid_json"),
        (b"\xff\xfe", "application/json", 400, "invalid_json"),
        (b"[" * 100_000, "application/json", 400, "invalid_json"),
        (b"[]", "application/json", 400, "invalid_body"),
        (b'"bearer"', "application/json", 400, "invalid_body"),
        (b"{}", "text/plain", 415, "unsupported_media_type"),
        (b"transport=cookie", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b"{}", None, 415, "unsupported_media_type"),
    ],
)
async def test_a_body_that_cannot_be_read_is_refused(
    offline: Api, content: bytes, content_type: str | None, status: int, code: str
) -> None:
    headers = {**offline.as_(), **({"content-type": content_type} if content_type else {})}
    _error(await offline.call("POST", PATH, content=content, headers=headers), status, code)


@pytest.mark.parametrize("content", [b"", b"{}", b"null"])
async def test_the_body_may_be_left_out(api: Api, content: bytes) -> None:
    headers = {**api.as_(), "content-type": "application/json"}
    assert (await api.call("POST", PATH, content=content, headers=headers)).status_code == 201


async def test_there_are_not_more_than_a_principal_may_have(api: Api) -> None:
    made = await asyncio.gather(*(_made(api) for _ in range(MAX_SESSIONS_PER_PRINCIPAL)))
    _error(await api.call("POST", PATH), 429, "too_many_sessions")
    assert len(await api.audited()) == MAX_SESSIONS_PER_PRINCIPAL  # what was refused is no change
    assert (await api.call("DELETE", f"{PATH}/{made[0]['id']}")).status_code == 204
    await _made(api)


async def test_the_store_has_the_last_word_on_their_number(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def create(*_: Any) -> bool:
        return False  # another request has taken the last place meanwhile

    monkeypatch.setattr(api.sessions, "create", create)
    _error(await api.call("POST", PATH), 429, "too_many_sessions")


async def test_the_list_shows_the_principals_own_and_which_is_in_use(api: Api) -> None:
    first = await _made(api, name="laptop")
    second = await _made(api, transport="cookie", idle_seconds=60)
    other = grant(principal_id="key_other", key_id="other")
    await api.call("POST", PATH, headers=api.as_(other, handle=Handle(PrincipalKind.API_KEY, "other")))

    answer = await api.call("GET", PATH, headers=api.as_(by_session(first["id"])))
    shown = {session["id"]: session for session in answer.json()["data"]}
    assert answer.headers["cache-control"] == "no-store"
    assert set(shown) == {first["id"], second["id"]}
    assert {key: shown[first["id"]][key] for key in ("transport", "name", "source", "idle_seconds", "current")} == {
        "transport": "bearer",
        "name": "laptop",
        "source": "192.0.2.1",
        "idle_seconds": 1800,
        "current": True,
    }
    assert (shown[second["id"]]["transport"], shown[second["id"]]["current"]) == ("cookie", False)


async def test_the_list_says_when_each_ends_and_never_how_to_be_one(api: Api) -> None:
    made = await _made(api, idle_seconds=60)
    answer = await api.call("GET", PATH)
    (shown,) = answer.json()["data"]
    times = {name: datetime.fromisoformat(shown[name]) for name in shown if name.endswith("_at")}
    assert times["ends_at"] - times["last_used_at"] == timedelta(seconds=60)
    assert times["expires_at"] - times["created_at"] == timedelta(seconds=43_200)
    assert made["token"] not in answer.text
    assert made["token"].split("_")[2] not in answer.text


async def test_one_session_is_ended(api: Api, sessions: RedisSessions) -> None:
    first, second = await _made(api), await _made(api)
    answer = await api.call("DELETE", f"{PATH}/{first['id']}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert "set-cookie" not in answer.headers  # it was not the one in use
    assert [session.id for session in await sessions.list_of("key_k")] == [second["id"]]


@pytest.mark.parametrize("by_name", [True, False])
async def test_logging_out_ends_the_session_in_use_and_its_cookie(
    api: Api, sessions: RedisSessions, *, by_name: bool
) -> None:
    made = await _made(api, transport="cookie")
    path = f"{PATH}/{'current' if by_name else made['id']}"
    answer = await api.call("DELETE", path, headers=api.as_(by_session(made["id"])))
    assert answer.status_code == 204
    assert answer.headers["set-cookie"] == tokens.clear_cookie()
    assert await sessions.list_of("key_k") == []


async def test_who_came_by_no_session_has_no_current_one(api: Api) -> None:
    await _made(api)
    _error(await api.call("DELETE", f"{PATH}/current"), 404, "unknown_session")


async def test_a_session_of_another_principal_is_as_unknown_as_none(api: Api, sessions: RedisSessions) -> None:
    made = await _made(api)
    other = api.as_(grant(principal_id="key_other", key_id="other"))
    theirs = await api.call("DELETE", f"{PATH}/{made['id']}", headers=other)
    none = await api.call("DELETE", f"{PATH}/ses_00aaaaaaaaaa", headers=other)
    assert _error(theirs, 404, "unknown_session") == _error(none, 404, "unknown_session")
    assert len(await sessions.list_of("key_k")) == 1
    assert [row["action"] for row in await api.audited()] == ["session.create"]


async def test_a_session_that_ends_while_it_is_being_ended_is_unknown(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await _made(api)

    async def revoke(*_: Any) -> bool:
        return False

    monkeypatch.setattr(api.sessions, "revoke", revoke)
    _error(await api.call("DELETE", f"{PATH}/{made['id']}"), 404, "unknown_session")


async def test_all_sessions_of_the_principal_are_ended_and_no_others(api: Api, sessions: RedisSessions) -> None:
    mine = [await _made(api), await _made(api, transport="cookie")]
    other = grant(principal_id="key_other", key_id="other")
    await api.call("POST", PATH, headers=api.as_(other, handle=Handle(PrincipalKind.API_KEY, "other")))
    answer = await api.call("DELETE", PATH, headers=api.as_(by_session(mine[1]["id"])))
    assert (answer.status_code, answer.json()) == (200, {"revoked": 2})
    assert answer.headers["set-cookie"] == tokens.clear_cookie()
    assert await sessions.list_of("key_k") == []
    assert len(await sessions.list_of("key_other")) == 1


async def test_ending_all_of_none_changes_nothing(api: Api) -> None:
    answer = await api.call("DELETE", PATH)
    assert (answer.status_code, answer.json()) == (200, {"revoked": 0})
    assert "set-cookie" not in answer.headers
    assert await api.audited() == []


async def test_every_change_is_written_down_without_a_secret(api: Api) -> None:
    first, second = await _made(api, name="laptop"), await _made(api, transport="cookie")
    await api.call("DELETE", f"{PATH}/{first['id']}")
    await api.call("DELETE", PATH)
    rows = await api.audited()
    assert [(row["action"], row["subject"]) for row in rows] == [
        ("session.create", f"session:{first['id']}"),
        ("session.create", f"session:{second['id']}"),
        ("session.revoke", f"session:{first['id']}"),
        ("session.revoke_all", "principal:key_k"),
    ]
    who = {(row["actor"], row["source"], row["request_id"], row["tenant_id"]) for row in rows}
    assert who == {("key_k", "192.0.2.1", REQUEST_ID, "ten_a")}
    assert json.loads(rows[0]["after"]) == {
        "transport": "bearer",
        "name": "laptop",
        "expires_at": "2026-01-02T00:00:00Z",
        "idle_seconds": 1800,
    }
    assert json.loads(rows[3]["before"]) == {"sessions": [second["id"]]}
    assert first["token"].split("_")[2] not in str(rows)
    assert isinstance(await verify(api.pool, pepper=PEPPER), Intact)


async def test_what_cannot_be_written_down_is_not_done(api: Api, sessions: RedisSessions, nowhere: Pool) -> None:
    made = await _made(api)
    api.pool = nowhere
    for method, path in (("POST", PATH), ("DELETE", PATH), ("DELETE", f"{PATH}/{made['id']}")):
        answer = await api.call(method, path)
        _error(answer, 503, "identity_unavailable")
        assert answer.headers["retry-after"] == "1"
    assert [session.id for session in await sessions.list_of("key_k")] == [made["id"]]
    assert (await api.call("GET", PATH)).status_code == 200  # reading changes nothing


async def test_a_trail_that_does_not_answer_is_not_waited_for(
    api: Api, sessions: RedisSessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_PATIENCE_SECONDS", 0.2)
    async with api.pool.acquire() as connection, connection.transaction():
        await connection.execute("LOCK TABLE audit")
        _error(await api.call("POST", PATH), 503, "identity_unavailable")
    assert await sessions.list_of("key_k") == []


async def test_without_redis_it_says_so_and_writes_nothing_down(pool: Pool) -> None:
    with running() as own_redis:
        async with sessions_at(own_redis, deadline=0.5) as sessions:
            api = Api(sessions, pool)
            own_redis.stop()
            for method, path in (("POST", PATH), ("GET", PATH), ("DELETE", PATH), ("DELETE", f"{PATH}/ses_x")):
                answer = await api.call(method, path)
                _error(answer, 503, "identity_unavailable")
                assert answer.headers["retry-after"] == "1"
            assert await api.audited() == []


async def test_an_outage_between_the_two_leaves_a_row_and_no_session(
    api: Api, sessions: RedisSessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def create(*_: Any) -> bool:
        raise SessionOutage("gone")

    monkeypatch.setattr(api.sessions, "create", create)
    _error(await api.call("POST", PATH), 503, "identity_unavailable")
    assert await sessions.list_of("key_k") == []
    assert [row["action"] for row in await api.audited()] == ["session.create"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "unknown_path"),
        ("GET", "/redoc", 404, "unknown_path"),
        ("GET", "/v1/models", 404, "unknown_path"),  # the Router's
        ("GET", "/v1/sessions/", 404, "unknown_path"),
        ("DELETE", "/v1/sessions/a/b", 404, "unknown_path"),
        ("PUT", PATH, 405, "method_not_allowed"),
        ("GET", f"{PATH}/ses_x", 405, "method_not_allowed"),
    ],
)
async def test_nothing_else_is_here(offline: Api, method: str, path: str, status: int, code: str) -> None:
    _error(await offline.call(method, path), status, code)


async def test_a_wrong_method_is_told_which_are_right(offline: Api) -> None:
    answer = await offline.call("PUT", PATH)
    assert answer.headers["allow"] == "POST, GET, DELETE"
    assert answer.json()["error"]["details"] == {"allow": ["POST", "GET", "DELETE"]}


@pytest.mark.parametrize("error", [RuntimeError("secret igs_x"), ValueError("secret")])
async def test_what_nobody_expected_is_told_to_the_operator_and_not_to_the_client(
    api: Api, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def list_of(_: str) -> None:
        raise error

    monkeypatch.setattr(api.sessions, "list_of", list_of)
    answer = await api.call("GET", PATH)
    _error(answer, 500, "internal_error")
    assert "secret" not in answer.text
    assert api.errors == [error]


@pytest.mark.parametrize("error", [SessionOutage("secret"), DatabaseOutage("secret")])
async def test_an_outage_is_no_defect_and_what_it_says_is_not_for_the_client(
    api: Api, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def list_of(_: str) -> None:
        raise error

    monkeypatch.setattr(api.sessions, "list_of", list_of)
    answer = await api.call("GET", PATH)
    _error(answer, 503, "identity_unavailable")
    assert "secret" not in answer.text
    assert api.errors == []
