"""Every kind of caller, made in a running gateway: each test takes the ones it needs."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx

from authz import api_key
from authz.issuer import principal_id
from store import api_keys, organizations, subjects, tenants, workloads
from store.api_keys import KeyChanges, NewKey
from store.database import Pool, opened
from store.subjects import SubjectName
from store.tenants import TenantChanges
from store.workloads import NewWorkload
from tests.support.client_certificates import ClientCertificate, uri
from tests.support.gateway import PEPPER, TRAIL, Gateway, Tenant, until
from tests.support.oidc import OidcIssuer

INFER = {"model": "m", "input": "hello"}
SCOPES = ("inference:text", "models:read")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """How one caller proves itself, and what an administrator can do to it."""

    tenant: Tenant
    headers: dict[str, str] = field(default_factory=dict)
    certificate: ClientCertificate | None = None
    key_id: str = ""
    workload_id: str = ""
    subject_id: str = ""

    def client(self, gateway: Gateway, **options: Any) -> httpx.AsyncClient:
        client = gateway.client(certificate=self.certificate, **options)
        client.headers.update(self.headers)
        return client

    async def suspend(self, gateway: Gateway, level: str) -> None:
        """Suspend its organization, its tenant, or itself."""
        now = datetime.now(UTC)
        async with opened(gateway.dsn) as pool:
            owner = await tenants.find_tenant(pool, self.tenant.id)
            if level == "organization":
                await organizations.suspend(pool, owner.organization_id, now=now, trail=TRAIL)
            elif level == "tenant":
                await tenants.suspend(pool, owner.id, now=now, trail=TRAIL)
            else:
                await self._suspend_itself(pool, now)

    async def _suspend_itself(self, pool: Pool, now: datetime) -> None:
        if self.key_id:
            await api_keys.suspend(pool, self.key_id, now=now, trail=TRAIL)
        elif self.workload_id:
            await workloads.suspend(pool, self.workload_id, now=now, trail=TRAIL)
        else:
            name = SubjectName(id=self.subject_id, tenant_id=self.tenant.id)
            await subjects.suspend(pool, name, now=now, trail=TRAIL)


async def key(gateway: Gateway, tenant: Tenant, *, header: str = "authorization", **changes: Any) -> Caller:
    """An API key, sent in one of the headers that clients use."""
    made = api_key.generate("test")
    whole = {"scopes": SCOPES, **changes}
    async with opened(gateway.dsn) as pool:
        new = NewKey(key=made, tenant_id=tenant.id, name=made.id, **whole)
        await api_keys.create(pool, new, pepper=PEPPER.encode(), trail=TRAIL)
    value = f"Bearer {made.text}" if header == "authorization" else made.text
    return Caller(tenant=tenant, headers={header: value}, key_id=made.id)


async def workload(gateway: Gateway, tenant: Tenant, **changes: Any) -> Caller:
    """A client certificate with a SPIFFE id, of the CA that Envoy believes."""
    name = f"spiffe://example.test/{tenant.id}/{api_key.generate().id.lower()}"
    whole = {"scopes": SCOPES, **changes}
    async with opened(gateway.dsn) as pool:
        new = NewWorkload(tenant_id=tenant.id, certificate_name=name, **whole)
        made = await workloads.create(pool, new, trail=TRAIL)
    return Caller(tenant=tenant, certificate=gateway.issuer.issue(uri(name)), workload_id=made.id)


async def subject(issuer: OidcIssuer, tenant: Tenant, *, scopes: tuple[str, ...] = SCOPES, **claims: Any) -> Caller:
    """A JWT of the issuer."""
    who = claims.pop("sub", f"user of {tenant.id}")
    token = issuer.token(tenant=tenant.id, scope=" ".join(scopes), sub=who, **claims)
    return Caller(
        tenant=tenant,
        headers={"authorization": f"Bearer {token}"},
        subject_id=principal_id(issuer.url, who, tenant.id),
    )


async def session(gateway: Gateway, of: Caller) -> Caller:
    """A bearer session, exchanged for the caller's own credential."""
    async with of.client(gateway) as client:
        answer = await client.post("/v1/sessions", json={})
    assert answer.status_code == 201, answer.text
    headers = {"authorization": f"Bearer {answer.json()['token']}"}
    return Caller(tenant=of.tenant, headers=headers, key_id=of.key_id, subject_id=of.subject_id)


async def change_key(gateway: Gateway, caller: Caller, **changes: Any) -> None:
    async with opened(gateway.dsn) as pool:
        await api_keys.update(pool, caller.key_id, KeyChanges(**changes), trail=TRAIL)


async def change_tenant(gateway: Gateway, tenant: Tenant, **changes: Any) -> None:
    async with opened(gateway.dsn) as pool:
        await tenants.update(pool, tenant.id, TenantChanges(**changes), trail=TRAIL)


async def everywhere(client: httpx.AsyncClient, expected: str, method: str = "POST", path: str = "/v1/infer") -> None:
    """Wait until the answer is the same again and again, whichever worker gives it.

    Envoy gives its calls to the workers in turn, and a request makes two, Check and Process: a lone Check in between
    has the next request ask the other worker.
    """

    async def holds() -> bool:
        for _ in range(6):
            if await code(client, method, path) != expected:
                return False
            await client.get("/v1/models")
        return True

    await until(holds)


async def code(client: httpx.AsyncClient, method: str = "POST", path: str = "/v1/infer", **options: Any) -> str:
    """Why the gateway refused the request; "200" and so on when it did not."""
    if method == "POST" and "json" not in options:
        options["json"] = INFER
    answer = await client.request(method, path, **options)
    if answer.is_success:
        return str(answer.status_code)
    return str(answer.json()["error"]["code"])
