"""The contract of `authz.directory.Directory`: one suite, in memory and over Postgres; then what Postgres adds."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec
import pytest

from authz.caps import Caps
from authz.directory import Directory, DirectoryOutage
from authz.principal import Handle, Metering, Principal, PrincipalKind, Secret, Tenant
from authz.scope import Scope
from quota.limit import concurrent_requests, requests_per_minute, tokens_per_day
from store.database import Pool, connect, open_pool
from store.directory import PostgresDirectory
from store.identity_listener import CHANNEL
from tests.support.memory_directory import MemoryDirectory

JANUARY = datetime(2026, 1, 1, 12, 30, 15, 123456, tzinfo=UTC)
NAME = "spiffe://acme.example/search/indexer"
TENANT = Tenant(
    id="ten_a",
    organization_id="org_a",
    organization_suspended=False,
    suspended=False,
    plan="tailored",
    limits=(requests_per_minute(7), tokens_per_day(9_007_199_254_740_993)),
    metering=Metering.INLINE,
)
KEY = Principal(
    id="key_7Kq2mWZp4TsB",
    kind=PrincipalKind.API_KEY,
    tenant=TENANT,
    scopes=frozenset({Scope.INFERENCE_TEXT, Scope.USAGE_READ}),
    secrets=(Secret(hash=bytes(range(32))),),
)
WORKLOAD = Principal(id="wl_a", kind=PrincipalKind.WORKLOAD, tenant=TENANT, scopes=frozenset({Scope.MODELS_READ}))
SUBJECT = Principal(id="jwt_aaaaaaaaaaaaaaaaaaaa", kind=PrincipalKind.JWT, tenant=TENANT, scopes=frozenset())
BY_KEY = Handle(PrincipalKind.API_KEY, "7Kq2mWZp4TsB")
BY_NAME = Handle(PrincipalKind.WORKLOAD, NAME)
BY_TOKEN = Handle(PrincipalKind.JWT, "jwt_aaaaaaaaaaaaaaaaaaaa", "ten_a")
EVERY_KIND = [(BY_KEY, KEY), (BY_NAME, WORKLOAD), (BY_TOKEN, SUBJECT)]
KINDS = [principal.kind for _, principal in EVERY_KIND]


class World(Protocol):
    """A directory, and the hand that fills it."""

    @property
    def directory(self) -> Directory: ...

    async def add(self, handle: Handle, principal: Principal) -> None: ...

    async def break_down(self) -> None: ...


@dataclass(frozen=True, slots=True)
class MemoryWorld:
    directory: MemoryDirectory

    async def add(self, handle: Handle, principal: Principal) -> None:
        self.directory.add(handle, principal)

    async def break_down(self) -> None:
        self.directory.out = True


@dataclass(frozen=True, slots=True)
class PostgresWorld:
    pool: Pool

    @property
    def directory(self) -> Directory:
        return PostgresDirectory(self.pool)

    async def add(self, handle: Handle, principal: Principal) -> None:
        await self._add_tenant(principal.tenant)
        lists: dict[str, Any] = {
            "tenant_id": principal.tenant.id,
            "suspended_at": JANUARY if principal.suspended else None,
            "scopes": sorted(principal.scopes),
            "models": principal.models,
            "networks": principal.networks,
            "limits": msgspec.json.encode(principal.limits).decode(),
        }
        match principal.kind:
            case PrincipalKind.WORKLOAD:
                await self.insert("workloads", id=principal.id, certificate_name=handle.name, **lists)
            case PrincipalKind.API_KEY:
                await self.insert("api_keys", id=handle.name, name="n", tag="live", **_key_columns(principal), **lists)
            case _:
                await self.insert(
                    "subjects", id=principal.id, tenant_id=principal.tenant.id, suspended_at=lists["suspended_at"]
                )

    async def _add_tenant(self, tenant: Tenant) -> None:
        limits = msgspec.json.encode(tenant.limits).decode()
        suspended = JANUARY if tenant.organization_suspended else None
        carried = msgspec.json.encode(tenant.organization_limits).decode()
        await self.insert("organizations", id=tenant.organization_id, name="A", suspended_at=suspended, limits=carried)
        caps = {f"max_{name}": value for name, value in msgspec.structs.asdict(tenant.caps).items()}
        plan = {"limits": limits, "metering": tenant.metering, "priority": tenant.priority, **caps}
        await self.insert("plans", name=tenant.plan, **plan)
        await self.insert(
            "tenants",
            id=tenant.id,
            organization_id=tenant.organization_id,
            name="a",
            plan=tenant.plan,
            suspended_at=JANUARY if tenant.suspended else None,
            networks=tenant.networks,
            certificate_required=tenant.certificate_required,
            routing_policy=tenant.routing_policy,
            time_zone=tenant.time_zone,
        )

    async def insert(self, table: str, **values: Any) -> None:
        places = ", ".join(f"${number + 1}" for number in range(len(values)))
        query = f"INSERT INTO {table} ({', '.join(values)}) VALUES ({places})"  # noqa: S608 - constants
        await self.pool.execute(query, *values.values())

    async def update(self, table: str, assignments: str, *, where: str = "true") -> None:
        await self.pool.execute(f"UPDATE {table} SET {assignments} WHERE {where}")  # noqa: S608 - constants

    async def break_down(self) -> None:
        await self.pool.close()


def _key_columns(principal: Principal) -> dict[str, Any]:
    current, *previous = principal.secrets
    former = previous[0] if previous else None
    return {
        "hash": current.hash,
        "previous_hash": former and former.hash,
        "previous_expires_at": former and former.expires_at,
        "expires_at": principal.expires_at,
        "revoked_at": principal.revoked_at,
    }


@pytest.fixture(params=["memory", "postgres"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "memory":
        yield MemoryWorld(MemoryDirectory())
        return
    pool = await open_pool(request.getfixturevalue("database"))
    yield PostgresWorld(pool)
    await pool.close()


@pytest.fixture
def filled(pool: Pool) -> PostgresWorld:
    return PostgresWorld(pool)


def told(principal: Principal | None) -> dict[str, Any]:
    """All that is said of a principal but the versions, which each database deals out itself."""
    assert principal is not None
    return {field.name: getattr(principal, field.name) for field in fields(principal) if field.name != "versions"}


async def found(directory: Directory, handle: Handle) -> Principal:
    principal = await directory.find(handle)
    assert principal is not None
    return principal


def of_tenant(principal: Principal, **changes: Any) -> Principal:
    return replace(principal, tenant=replace(principal.tenant, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"organization_suspended": True},
        {"suspended": True},
        {"limits": ()},
        {"metering": Metering.NATIVE},
        {"networks": ("10.0.0.0/8", "2001:db8::/32")},
        {"certificate_required": True},
        {"routing_policy": '{"defaultStrategy":"cheapest"}'},
        {"organization_limits": (tokens_per_day(3), concurrent_requests(1))},
        {"time_zone": "Europe/Berlin", "priority": 0},
        {"caps": Caps(stream_seconds=600, output_tokens=4096, response_bytes=10**12)},
    ],
    ids=str,
)
@pytest.mark.parametrize(("handle", "principal"), EVERY_KIND, ids=KINDS)
async def test_every_kind_is_found_with_its_whole_chain(
    world: World, handle: Handle, principal: Principal, changes: dict[str, Any]
) -> None:
    principal = of_tenant(principal, **changes)
    await world.add(handle, principal)
    assert told(await world.directory.find(handle)) == told(principal)


@pytest.mark.parametrize(
    "key",
    [
        replace(KEY, revoked_at=JANUARY),
        replace(KEY, expires_at=JANUARY),
        replace(KEY, suspended=True),
        replace(KEY, secrets=(*KEY.secrets, Secret(hash=bytes(32), expires_at=JANUARY))),
        replace(KEY, scopes=frozenset(Scope)),
        replace(KEY, networks=("192.0.2.0/24",), models=("gpt-*",), limits=(concurrent_requests(2),)),
    ],
    ids=["revoked", "expired", "suspended", "rotated", "every scope", "narrow"],
)
async def test_a_key_is_found_whatever_its_state(world: World, key: Principal) -> None:
    await world.add(BY_KEY, key)
    assert told(await world.directory.find(BY_KEY)) == told(key)


@pytest.mark.parametrize(
    ("handle", "principal"),
    [
        (BY_NAME, replace(WORKLOAD, suspended=True)),
        (BY_NAME, replace(WORKLOAD, networks=("10.0.0.0/8",), models=("a", "b*"), limits=(requests_per_minute(1),))),
        (BY_NAME._replace(name="dns:indexer.acme.example"), WORKLOAD),
        (BY_TOKEN, replace(SUBJECT, suspended=True)),
    ],
    ids=["workload suspended", "workload narrow", "workload by host", "subject suspended"],
)
async def test_workloads_and_subjects_are_found_whatever_their_state(
    world: World, handle: Handle, principal: Principal
) -> None:
    await world.add(handle, principal)
    assert told(await world.directory.find(handle)) == told(principal)


STRANGE = ["unknown", "", "' OR ''='", "\0", "\ud800", "7kq2mwzp4tsb", "7Kq2mWZp4Ts", NAME.upper(), f"{NAME}/"]


@pytest.mark.parametrize("name", STRANGE, ids=ascii)
async def test_an_unknown_name_is_nobody(world: World, name: str) -> None:
    await world.add(BY_KEY, KEY)
    for handle in (BY_KEY, BY_NAME):
        assert await world.directory.find(handle._replace(name=name)) is None
    assert await world.directory.find(BY_TOKEN._replace(tenant_id=name)) is None


async def test_a_kind_does_not_answer_for_another(world: World) -> None:
    await world.add(BY_KEY, KEY)
    for kind in (PrincipalKind.WORKLOAD, PrincipalKind.SESSION):
        assert await world.directory.find(Handle(kind, BY_KEY.name)) is None


@pytest.mark.parametrize("handle", [BY_KEY, BY_NAME, BY_TOKEN], ids=KINDS)
async def test_an_outage_is_not_an_unknown_principal(world: World, handle: Handle) -> None:
    await world.break_down()
    with pytest.raises(DirectoryOutage):
        await world.directory.find(handle)


@pytest.mark.parametrize("gone", ["tenants", "organizations"])
@pytest.mark.parametrize(("handle", "principal"), EVERY_KIND, ids=KINDS)
async def test_nobody_belongs_to_what_was_deleted(
    filled: PostgresWorld, handle: Handle, principal: Principal, gone: str
) -> None:
    await filled.add(handle, principal)
    await filled.update(gone, "deleted_at = now()")
    assert await filled.directory.find(handle) is None


async def test_a_subject_needs_no_row_of_its_own(filled: PostgresWorld) -> None:
    await filled.add(BY_KEY, KEY)
    assert told(await filled.directory.find(BY_TOKEN)) == told(SUBJECT)


async def test_a_subject_is_suspended_in_its_own_tenant_only(filled: PostgresWorld) -> None:
    await filled.add(BY_TOKEN, replace(SUBJECT, suspended=True))
    await filled.insert("tenants", id="ten_b", organization_id="org_a", name="b", plan="free")
    elsewhere = await found(filled.directory, BY_TOKEN._replace(tenant_id="ten_b"))
    assert not elsewhere.suspended
    # The version is the row's in any case, or a change of it would seem to be missing.
    assert dict(elsewhere.versions)["subjects:jwt_aaaaaaaaaaaaaaaaaaaa"] > 0


async def test_a_tokens_plan_stands_in_for_the_tenants(filled: PostgresWorld) -> None:
    await filled.add(BY_KEY, KEY)
    subject = await found(filled.directory, BY_TOKEN._replace(plan="pro"))
    assert (subject.tenant.plan, subject.tenant.metering) == ("pro", Metering.NATIVE)
    assert requests_per_minute(100) in subject.tenant.limits
    assert any(row == "plans:pro" for row, _ in subject.versions)
    for plan in ("gold", "PRO", "\0"):
        assert await filled.directory.find(BY_TOKEN._replace(plan=plan)) is None


async def test_a_tokens_roles_are_its_scopes(filled: PostgresWorld) -> None:
    await filled.add(BY_KEY, KEY)
    subject = await found(filled.directory, BY_TOKEN._replace(roles=("key-manager", "nobody's", "viewer")))
    assert subject.scopes == {
        *(Scope.KEYS_READ, Scope.KEYS_WRITE),
        *(Scope.MODELS_READ, Scope.REQUESTS_READ, Scope.USAGE_READ),
    }
    versions = dict(subject.versions)
    assert versions["roles:nobody's"] == 0
    assert versions["roles:viewer"] > 0


@pytest.mark.parametrize(("handle", "principal"), EVERY_KIND[:2], ids=KINDS[:2])
async def test_roles_add_to_own_scopes_and_unknown_names_are_left_out(
    filled: PostgresWorld, handle: Handle, principal: Principal
) -> None:
    await filled.add(handle, replace(principal, scopes=frozenset({Scope.ADMIN})))
    table = "api_keys" if principal is KEY else "workloads"
    await filled.update(table, "roles = '{key-manager,gone}', scopes = scopes || '{future:scope}'")
    await filled.update("roles", "scopes = scopes || '{another:scope}'", where="name = 'key-manager'")
    assert (await found(filled.directory, handle)).scopes == {Scope.ADMIN, Scope.KEYS_READ, Scope.KEYS_WRITE}
    await filled.update("roles", "scopes = '{keys:read}'", where="name = 'key-manager'")
    assert (await found(filled.directory, handle)).scopes == {Scope.ADMIN, Scope.KEYS_READ}


async def test_a_tenants_own_limits_stand_in_for_the_plans_of_the_same_name(filled: PostgresWorld) -> None:
    await filled.add(BY_KEY, KEY)
    own = (requests_per_minute(1_000), concurrent_requests(3))
    await filled.pool.execute("UPDATE tenants SET limits = $1", msgspec.json.encode(own).decode())
    assert set((await found(filled.directory, BY_KEY)).tenant.limits) == {*own, TENANT.limits[1]}


async def test_a_limit_for_a_model_stands_beside_the_plans_of_the_same_name(filled: PostgresWorld) -> None:
    await filled.add(BY_KEY, KEY)
    own = msgspec.structs.replace(TENANT.limits[0], model="gpt-*")
    await filled.pool.execute("UPDATE tenants SET limits = $1", msgspec.json.encode([own]).decode())
    assert (await found(filled.directory, BY_KEY)).tenant.limits == (*TENANT.limits, own)


async def test_a_routing_policy_fits_into_a_header(filled: PostgresWorld) -> None:
    policy = {"allowedProviders": ["café", "\n"], "defaultStrategy": "cheapest"}
    await filled.add(BY_KEY, of_tenant(KEY, routing_policy=json.dumps(policy, ensure_ascii=False)))
    text = (await found(filled.directory, BY_KEY)).tenant.routing_policy
    assert text is not None
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text) == policy


@pytest.mark.parametrize(("handle", "principal"), EVERY_KIND, ids=KINDS)
async def test_the_versions_are_those_that_changes_are_announced_with(
    filled: PostgresWorld, database: str, handle: Handle, principal: Principal
) -> None:
    """What is heard of a change is, to the letter, what the next look-up says of its rows."""
    await filled.add(handle, principal)
    own = {"api_key": "api_keys", "workload": "workloads", "jwt": "subjects"}[principal.kind]
    if principal is SUBJECT:
        handle = handle._replace(roles=("viewer",))
    else:
        await filled.update(own, "roles = '{viewer}'")
    heard: asyncio.Queue[str] = asyncio.Queue()
    listener = await connect(database)
    await listener.add_listener(CHANNEL, lambda _, __, ___, said: heard.put_nowait(str(said)))
    for table, where in (
        *((own, "true"), ("tenants", "true"), ("organizations", "true")),
        *(("plans", "name = 'tailored'"), ("roles", "name = 'viewer'")),
    ):
        before = await found(filled.directory, handle)
        await filled.update(table, "version = version", where=where)
        row, _, version = (await asyncio.wait_for(heard.get(), 10)).rpartition(":")
        after = await found(filled.directory, handle)
        assert dict(after.versions)[row] == int(version) > dict(before.versions)[row]
        assert {key for key, _ in set(after.versions) - set(before.versions)} == {row}
    await listener.close()


async def test_no_server_is_an_outage() -> None:
    pool = await open_pool("postgresql://postgres@/gateway?host=/nowhere")
    with pytest.raises(DirectoryOutage):
        await PostgresDirectory(pool).find(BY_KEY)
    await pool.close()


async def test_a_database_without_tables_is_an_outage(empty_database: str) -> None:
    pool = await open_pool(empty_database)
    with pytest.raises(DirectoryOutage, match="migrate"):
        await PostgresDirectory(pool).find(BY_KEY)
    await pool.close()


@pytest.mark.parametrize("table", ["plans", "tenants", "api_keys"])
async def test_limits_that_cannot_be_read_let_nobody_in(filled: PostgresWorld, table: str) -> None:
    await filled.add(BY_KEY, KEY)
    await filled.update(table, """limits = '[{"name": "x"}]'""")
    with pytest.raises(DirectoryOutage, match="limits"):
        await filled.directory.find(BY_KEY)


async def test_waiting_for_a_free_connection_ends_at_the_deadline(database: str) -> None:
    pool = await open_pool(database, size=1)
    async with pool.acquire():
        with pytest.raises(DirectoryOutage):
            await PostgresDirectory(pool, deadline_seconds=0.05).find(BY_KEY)
    assert await PostgresDirectory(pool).find(BY_KEY) is None
    await pool.close()


async def test_a_broken_connection_is_replaced(database: str, filled: PostgresWorld) -> None:
    await filled.add(BY_KEY, KEY)
    assert told(await filled.directory.find(BY_KEY)) == told(KEY)
    killer = await connect(database)
    assert await killer.fetchval(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await killer.close()
    async with asyncio.timeout(10):
        while True:
            # The question that finds the connection dying may fail; the next one has another.
            with contextlib.suppress(DirectoryOutage):
                assert told(await filled.directory.find(BY_KEY)) == told(KEY)
                return
