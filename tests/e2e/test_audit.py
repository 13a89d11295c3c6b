"""Is every refused credential and every change in the audit trail, without a secret, in a chain that holds?"""

from typing import Any

from authz import api_key
from store import audit_reader
from store.audit_reader import Intact
from store.database import opened
from tests.e2e import callers
from tests.e2e.callers import code
from tests.support.gateway import PEPPER, Gateway, until


async def _rows(gateway: Gateway, **wanted: str) -> list[dict[str, Any]]:
    async with opened(gateway.dsn) as pool:
        rows = [dict(row) for row in await pool.fetch("SELECT * FROM audit ORDER BY number")]
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


async def test_a_refused_credential_is_written_down_by_its_fingerprint(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    forged = api_key.generate("test", public_id=tenant.key_id)
    async with gateway.client(headers={"x-api-key": forged.text}) as client:
        answer = await client.post("/v1/infer?secret=1", json=callers.INFER)
    request_id = answer.headers["x-request-id"]
    [row] = await until(lambda: _rows(gateway, request_id=request_id))
    assert (row["action"], row["subject"]) == ("credential.refused", f"key:{tenant.key_id}")
    assert row["source"] == "127.0.0.1"
    assert forged.text not in str(row)
    assert '"reason": "invalid_api_key"' in row["after"]
    assert '"path": "/v1/infer"' in row["after"]


async def test_a_right_credential_that_may_not_is_written_down_with_its_tenant(gateway: Gateway) -> None:
    caller = await callers.key(gateway, await gateway.tenant(), scopes=("usage:read",))
    async with caller.client(gateway) as client:
        answers = {await code(client) for _ in range(5)}
    assert answers == {"insufficient_scope"}
    rows = await until(lambda: _all_five(gateway, caller.key_id))
    assert {row["tenant_id"] for row in rows} == {caller.tenant.id}


async def _all_five(gateway: Gateway, key_id: str) -> list[dict[str, Any]]:
    rows = await _rows(gateway, subject=f"key:{key_id}", action="credential.refused")
    times = [int(row["after"].partition('"times": ')[2].partition("}")[0].partition(",")[0]) for row in rows]
    return rows if sum(times) == 5 else []


async def test_sessions_and_changes_are_written_down_and_the_chain_holds(gateway: Gateway) -> None:
    caller = await callers.key(gateway, await gateway.tenant())
    await callers.session(gateway, caller)
    await callers.change_key(gateway, caller, scopes=("usage:read",))
    actions = {row["action"] for row in await _rows(gateway, subject=f"key:{caller.key_id}")}
    assert actions >= {"key.create", "key.update"}
    [made] = await _rows(gateway, actor=f"key_{caller.key_id}")
    assert made["action"] == "session.create"
    async with opened(gateway.dsn) as pool:
        assert isinstance(await audit_reader.verify(pool, pepper=PEPPER.encode()), Intact)
        written = str([dict(row) for row in await pool.fetch("SELECT * FROM audit")])
    assert caller.headers["authorization"].split("_")[3] not in written
