"""Workloads in Postgres: what a certificate may be called, how they are made and changed, and what is audited."""

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.principal import Handle, PrincipalKind
from quota.limit import requests_per_minute
from store import certificate_name, workloads
from store.database import Pool
from store.directory import PostgresDirectory
from store.field_error import FieldError
from store.permissions import PermissionChanges
from store.workloads import NewWorkload, Workload
from tests.support.identity_rows import NOON, TRAIL, add_tenant, audited

NAME = "spiffe://acme.example/search/indexer"
NARROW: dict[str, Any] = {
    "scopes": ("usage:read",),
    "roles": ("viewer",),
    "models": ("gpt-*",),
    "networks": ("10.0.0.0/8",),
    "limits": (requests_per_minute(5),),
}
segments = st.from_regex(r"[A-Za-z0-9._-]+", fullmatch=True).filter(lambda text: text not in {".", ".."})
spiffe_ids = st.builds(
    lambda domain, path: f"spiffe://{domain}/{'/'.join(path)}",
    st.from_regex(r"[a-z0-9._-]{1,255}", fullmatch=True),
    st.lists(segments, min_size=1, max_size=5),
).filter(lambda text: len(text) <= 2048)


async def made(pool: Pool, name: str = NAME, **asked: Any) -> Workload:
    tenant = await add_tenant(pool)
    new = NewWorkload(**{"tenant_id": tenant, "certificate_name": name, **asked})
    return await workloads.create(pool, new, trail=TRAIL)


async def refused(asked: Awaitable[object], field: str, *words: str) -> None:
    with pytest.raises(FieldError) as raised:
        await asked
    assert raised.value.field == field
    for word in words:
        assert word in raised.value.reason


@given(spiffe_ids)
def test_every_spiffe_id_of_a_workload_is_taken_as_it_is(name: str) -> None:
    assert certificate_name.checked(name) == name


@given(st.data())
def test_what_a_spiffe_id_may_not_hold_is_seen_wherever_it_is(data: st.DataObject) -> None:
    name = data.draw(spiffe_ids)
    place = data.draw(st.integers(len("spiffe://"), len(name)))
    wrong = data.draw(st.sampled_from("?#%:@ \n\0é\ud800[];,+*\\'\"") | st.sampled_from(["//", "/./", "/../"]))
    with pytest.raises(FieldError):
        certificate_name.checked(name[:place] + wrong + name[place:])


@given(st.text() | st.text().map("spiffe://{}".format) | st.text().map("dns:{}".format))
def test_any_text_is_a_name_or_a_field_error(text: str) -> None:
    try:
        name = certificate_name.checked(text)
    except FieldError as error:
        said = error.reason
    else:
        said = ""
        assert certificate_name.checked(name) == name
    assert len(said) < 500
    assert said.isprintable()


@pytest.mark.parametrize(
    "name",
    [
        *("spiffe://acme.example", "spiffe://acme.example/", "spiffe:///path", "spiffe://", "SPIFFE://acme.example/a"),
        *("spiffe://Acme.example/a", "spiffe://acme.example:443/a", "spiffe://user@acme.example/a"),
        *("spiffe://acme.example/a/", "spiffe://acme.example//a", "spiffe://acme.example/./a"),
        *("spiffe://acme.example/a/..", "spiffe://acme.example/a?b=c", "spiffe://acme.example/a#b"),
        *("spiffe://acme.example/%61", f"spiffe://{'a' * 256}/b", f"spiffe://a/{'b' * 2048}"),
        *("https://acme.example/a", "acme.example", "", "dns:", "dns:.", "dns:a.", "dns:a..b", "dns:-a.example"),
        *("dns:*.acme.example", "dns:a_b.example", "dns:acme.example:443", "dns:10.0.0.1", "dns:\u212aelvin.example"),
        *(f"dns:{'a' * 64}.example", f"dns:{'a.' * 126}aa", "DNS:acme.example", "dns:acme.example/a"),
    ],
    ids=ascii,
)
def test_what_no_workloads_certificate_says(name: str) -> None:
    with pytest.raises(FieldError, match="certificate_name"):
        certificate_name.checked(name)


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("dns:Search.Acme.example", "dns:search.acme.example"),
        ("dns:indexer", "dns:indexer"),
        ("dns:1.example", "dns:1.example"),
        (f"dns:{'a.' * 126}a", f"dns:{'a.' * 126}a"),
        (f"spiffe://{'a' * 255}/B", f"spiffe://{'a' * 255}/B"),
        (f"spiffe://a/{'b' * 2037}", f"spiffe://a/{'b' * 2037}"),
        ("spiffe://acme.example/...", "spiffe://acme.example/..."),
    ],
    ids=len,
)
def test_a_host_has_one_form_and_a_spiffe_id_only_its_own(name: str, stored: str) -> None:
    assert certificate_name.checked(name) == stored


async def test_a_workload_is_found_by_id_and_name_and_listed(pool: Pool) -> None:
    made_one = await made(pool, **NARROW)
    assert made_one.id.startswith("wl_")
    assert {name: getattr(made_one, name) for name in NARROW} == NARROW
    for name in (made_one.id, NAME):
        assert await workloads.find(pool, name) == made_one
    await add_tenant(pool, "ten_b", name="other")
    assert await workloads.list_workloads(pool) == [made_one]
    assert await workloads.list_workloads(pool, tenant_id="ten_a") == [made_one]
    assert await workloads.list_workloads(pool, tenant_id="ten_b") == []
    principal = await PostgresDirectory(pool).find(Handle(PrincipalKind.WORKLOAD, NAME))
    assert principal is not None
    assert principal.id == made_one.id


async def test_the_longest_name_is_stored_announced_and_audited(pool: Pool) -> None:
    name = f"spiffe://acme.example/{'b' * 2026}"
    assert (await made(pool, name)).certificate_name == name
    assert len(await audited(pool)) == 1


async def test_a_workload_without_scopes_and_roles_is_for_inference(pool: Pool) -> None:
    assert (await made(pool)).roles == ("inference",)


@pytest.mark.parametrize(
    ("asked", "field", "words"),
    [
        ({"tenant_id": "ten_none"}, "tenant", ["ten_none"]),
        ({"tenant_id": "ten_gone"}, "tenant", ["ten_gone"]),
        ({"certificate_name": "acme"}, "certificate_name", ["acme", "spiffe://"]),
        ({"scopes": ("root",)}, "scopes", ["root"]),
        ({"roles": ("nobody",)}, "roles", ["nobody", "viewer"]),
        ({"networks": ("everywhere",)}, "networks", ["everywhere"]),
    ],
    ids=str,
)
async def test_what_a_workload_cannot_be_is_named_and_nothing_is_left(
    pool: Pool, asked: dict[str, Any], field: str, words: list[str]
) -> None:
    await add_tenant(pool, "ten_gone", name="gone", deleted=True)
    await refused(made(pool, **asked), field, *words)
    assert await workloads.list_workloads(pool) == []
    assert await audited(pool) == []


async def test_a_name_is_given_once_and_again_after_a_deletion(pool: Pool) -> None:
    first = await made(pool)
    again = NewWorkload(tenant_id="ten_a", certificate_name=NAME)
    await refused(workloads.create(pool, again, trail=TRAIL), "certificate_name", NAME, "already")
    assert await workloads.delete(pool, NAME, trail=TRAIL) == first
    assert (await workloads.create(pool, again, trail=TRAIL)).id != first.id
    assert [row["action"] for row in await audited(pool)] == ["workload.create", "workload.delete", "workload.create"]
    _, deletion, _ = await audited(pool)
    assert (deletion["before"]["certificate_name"], deletion["after"]) == (NAME, None)


@pytest.mark.parametrize("asked", [*({name: value} for name, value in NARROW.items()), {"roles": ()}, NARROW], ids=str)
async def test_a_change_changes_what_it_names_and_is_audited_once(pool: Pool, asked: dict[str, Any]) -> None:
    before = await made(pool)
    done = await workloads.update(pool, NAME, PermissionChanges(**asked), trail=TRAIL)
    assert done.workload == replace(before, **asked) == await workloads.find(pool, NAME)
    again = await workloads.update(pool, before.id, PermissionChanges(**asked), trail=TRAIL)
    assert (done.changed, again.changed) == (True, False)
    _, row = await audited(pool)
    assert (row["action"], row["subject"], row["tenant_id"]) == ("workload.update", f"workload:{before.id}", "ten_a")
    assert set(row["before"]) == set(row["after"]) == set(asked)


async def test_a_workload_is_suspended_and_resumed(pool: Pool) -> None:
    before = await made(pool)
    done = [
        await workloads.suspend(pool, NAME, now=NOON, trail=TRAIL),
        await workloads.suspend(pool, before.id, now=NOON.replace(hour=13), trail=TRAIL),
        await workloads.resume(pool, NAME, trail=TRAIL),
        await workloads.resume(pool, NAME, trail=TRAIL),
    ]
    assert [change.changed for change in done] == [True, False, True, False]
    assert [change.workload.suspended_at for change in done] == [NOON, NOON, None, None]
    assert [row["action"] for row in await audited(pool)][1:] == ["workload.suspend", "workload.resume"]


async def test_changes_at_the_same_time_are_all_made(pool: Pool) -> None:
    await made(pool)
    changes = [PermissionChanges(**{name: value}) for name, value in NARROW.items()]
    await asyncio.gather(*(workloads.update(pool, NAME, change, trail=TRAIL) for change in changes))
    found = await workloads.find(pool, NAME)
    assert {name: getattr(found, name) for name in NARROW} == NARROW


async def test_an_unknown_workload_is_named(pool: Pool) -> None:
    for asked in (
        workloads.find(pool, "none"),
        workloads.update(pool, "none", PermissionChanges(), trail=TRAIL),
        workloads.suspend(pool, "none", now=NOON, trail=TRAIL),
        workloads.resume(pool, "none", trail=TRAIL),
        workloads.delete(pool, "none", trail=TRAIL),
    ):
        await refused(asked, "workload", "none")
