"""Which keys open the gateway? `inference-gateway key ...`: make, show, change, rotate and revoke them."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from authz.api_key import ApiKey, generate, parse
from sidecar.commands.moment import ahead
from sidecar.commands.option_group import grouped
from sidecar.commands.permission_options import ChangeOptions, PermissionOptions, shown
from sidecar.commands.session import pepper, trail, with_pool
from sidecar.commands.tenant import AsJson
from sidecar.tables import cell, print_fields, print_json, print_table
from store import api_keys
from store.api_keys import KeyChange, KeyChanges, KeyState, NewKey, NewSecret, Rotation, StoredKey
from store.database import Pool
from store.field_error import FieldError
from store.tenants import find_tenant

app = typer.Typer(no_args_is_help=True, help="Make, show, change, rotate and revoke API keys.")

KeyId = Annotated[str, typer.Argument(metavar="ID", help="The key's public id, as in `key list`, or the whole key.")]
ExpiresIn = Annotated[
    str | None, typer.Option("--expires-in", metavar="SPAN", help="When it ends: 30d, 12h, or an ISO date.")
]


@dataclass(frozen=True, kw_only=True)
class NewKeyOptions(PermissionOptions):
    """What a new key is; for inference when it has neither scopes nor roles."""

    tenant: Annotated[str, typer.Option(metavar="TENANT", help="The tenant's id, or its name when only one has it.")]
    name: Annotated[str, typer.Option(metavar="NAME", help="What the key is for, for people.")]
    tag: Annotated[str, typer.Option(metavar="TAG", help="Stands in the key: 1 to 12 lower-case letters.")] = "live"
    expires_in: ExpiresIn = None


@dataclass(frozen=True, kw_only=True)
class KeyOptions(ChangeOptions):
    """What a key is from now on."""

    name: Annotated[str | None, typer.Option(metavar="NAME", help="What the key is for, for people.")] = None
    expires_in: ExpiresIn = None
    clear_expiry: Annotated[bool, typer.Option("--clear-expiry", help="Let it never end.")] = False

    def key_changes(self, now: datetime) -> KeyChanges:
        """As the store takes them; raises `FieldError` when they contradict each other."""
        if self.clear_expiry and self.expires_in is not None:
            raise FieldError("--clear-expiry", "does not go with --expires-in")
        ends = _end(self.expires_in, now)
        return KeyChanges(**self.changes(), name=self.name, expires_at=ends, never_expires=self.clear_expiry)


@app.command("create")
@grouped
def create(wanted: NewKeyOptions, *, as_json: AsJson = False) -> None:
    """Make a key and print it, once.

    The key itself is not stored and cannot be shown again. With neither --scope nor --role it has the role inference.
    """
    now = datetime.now(UTC)
    expires_at = _end(wanted.expires_in, now)
    given = wanted.given()
    try:
        key = generate(wanted.tag)
    except ValueError as error:
        raise FieldError("--tag", str(error)) from None

    async def work(pool: Pool) -> StoredKey:
        owner = await find_tenant(pool, wanted.tenant)
        new = NewKey(key=key, tenant_id=owner.id, name=wanted.name, expires_at=expires_at, **given)
        return await api_keys.create(pool, new, pepper=pepper(), trail=trail())

    stored = with_pool(work)
    if as_json:
        print_json({"key": key.text, **_described(stored, now)})
        return
    typer.echo(key.text)
    until = "does not expire" if stored.expires_at is None else f"expires {cell(stored.expires_at)}"
    typer.echo(
        f"This is shown once: keep it now. Its id is {stored.id}, its tenant {stored.tenant}; it {until}.", err=True
    )


@app.command("show")
def show(key: KeyId, *, as_json: AsJson = False) -> None:
    """Show what a key may do, and when it was last used."""
    now = datetime.now(UTC)

    async def work(pool: Pool) -> StoredKey:
        return await api_keys.find(pool, _id(key))

    _show(with_pool(work), now, as_json=as_json)


@app.command("list")
def list_all(
    *,
    tenant: Annotated[
        str | None, typer.Option(metavar="TENANT", help="Only the keys of this tenant (id or name).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the keys that were made, by their public ids."""
    now = datetime.now(UTC)

    async def work(pool: Pool) -> list[StoredKey]:
        tenant_id = None if tenant is None else (await find_tenant(pool, tenant)).id
        return await api_keys.list_keys(pool, tenant_id=tenant_id)

    found = with_pool(work)
    if as_json:
        print_json([_described(key, now) for key in found])
        return
    print_table(
        ("ID", "NAME", "TENANT", "TAG", "STATE", "LAST USED", "EXPIRES", "CREATED"),
        [
            (key.id, key.name, key.tenant, key.tag, key.state(now), key.last_used_at, key.expires_at, key.created_at)
            for key in found
        ],
        empty="There are no keys. Make one: inference-gateway key create --tenant TENANT --name NAME",
    )


@app.command("update")
@grouped
def update(key: KeyId, wanted: KeyOptions, *, as_json: AsJson = False) -> None:
    """Change what a key is called and may do.

    An option replaces all that the key has of its kind; what is not named stays.
    """
    now = datetime.now(UTC)
    changes = wanted.key_changes(now)

    async def work(pool: Pool) -> KeyChange:
        return await api_keys.update(pool, _id(key), changes, trail=trail())

    done = with_pool(work)
    if as_json:
        print_json({"changed": done.changed, **_described(done.key, now)})
        return
    _show(done.key, now, as_json=False)
    if not done.changed:
        typer.echo("Nothing has changed: the key was so already.", err=True)


@app.command("suspend")
def suspend(key: KeyId, *, as_json: AsJson = False) -> None:
    """Refuse a key until it is resumed."""
    now = datetime.now(UTC)

    async def work(pool: Pool) -> KeyChange:
        return await api_keys.suspend(pool, _id(key), now=now, trail=trail())

    _report(work, now, ("is suspended now", "was suspended already"), as_json=as_json)


@app.command("resume")
def resume(key: KeyId, *, as_json: AsJson = False) -> None:
    """Let a suspended key in again."""

    async def work(pool: Pool) -> KeyChange:
        return await api_keys.resume(pool, _id(key), trail=trail())

    _report(work, datetime.now(UTC), ("is resumed", "was not suspended"), as_json=as_json)


@app.command("rotate")
def rotate(
    key: KeyId,
    *,
    overlap: Annotated[
        str, typer.Option(metavar="SPAN", help="How long the former key goes on: 24h, 7d, or 0 for not at all.")
    ] = "24h",
    as_json: AsJson = False,
) -> None:
    """Make a new key of the same id, and print it, once.

    All that the key may do stays. The former one works until the overlap ends.
    """
    now = datetime.now(UTC)
    goes_on = timedelta(0) if overlap == "0" else ahead("--overlap", overlap, now=now) - now

    async def work(pool: Pool) -> tuple[ApiKey, Rotation]:
        former = await api_keys.find(pool, _id(key))
        new = NewSecret(key=generate(former.tag, public_id=former.id), overlap=goes_on)
        return new.key, await api_keys.rotate(pool, new, pepper=pepper(), now=now, trail=trail())

    made, done = with_pool(work)
    if as_json:
        print_json({"key": made.text, "cut_short": done.cut_short, **_described(done.key, now)})
        return
    typer.echo(made.text)
    for line in _rotated(done, now):
        typer.echo(line, err=True)


@app.command("revoke")
def revoke(key: KeyId, *, as_json: AsJson = False) -> None:
    """Make a key useless from now on, for good.

    The former key of a rotation ends with it. Revoking it again changes nothing.
    """
    now = datetime.now(UTC)

    async def work(pool: Pool) -> KeyChange:
        return await api_keys.revoke(pool, _id(key), now=now, trail=trail())

    _report(work, now, ("is revoked now", "was revoked already"), as_json=as_json)


def _id(text: str) -> str:
    """The public id of what a person gave: a whole key has one too."""
    whole = parse(text)
    return text if whole is None else whole.id


def _end(expires_in: str | None, now: datetime) -> datetime | None:
    return None if expires_in is None else ahead("--expires-in", expires_in, now=now)


def _rotated(done: Rotation, now: datetime) -> list[str]:
    key = done.key
    former = "ended now" if key.previous_expires_at is None else f"works until {cell(key.previous_expires_at)}"
    lines = [f"This is shown once: keep it now. Its id is still {key.id}; the former key {former}."]
    if key.previous_expires_at is None:
        lines.append("Sessions that were made of it go on; end them with the new key: DELETE /v1/sessions.")
    if done.cut_short is not None:
        lines.append(f"The key before that one, which had until {cell(done.cut_short)}, has ended now.")
    if (state := key.state(now)) is not KeyState.ACTIVE:
        lines.append(f"Mind that the key is {state}: neither opens anything.")
    return lines


def _report(
    work: Callable[[Pool], Awaitable[KeyChange]], now: datetime, words: tuple[str, str], *, as_json: bool
) -> None:
    """Do the work, and say which of the two words is true: the first when something has changed."""
    done = with_pool(work)
    if as_json:
        print_json({"changed": done.changed, **_described(done.key, now)})
        return
    key = done.key
    since = None if done.changed else key.revoked_at or key.suspended_at
    at = "" if since is None else f", at {cell(since)}"
    typer.echo(f"The key {key.id} ({key.name}, of {key.tenant}) {words[0] if done.changed else words[1]}{at}.")


def _show(key: StoredKey, now: datetime, *, as_json: bool) -> None:
    if as_json:
        print_json(_described(key, now))
        return
    times = ("last_used_at", "expires_at", "suspended_at", "rotated_at", "revoked_at", "created_at")
    rows: list[tuple[str, Any]] = [
        ("id", key.id),
        ("name", key.name),
        ("tenant", f"{key.tenant} ({key.tenant_id})"),
        ("tag", key.tag),
        ("state", key.state(now)),
        *shown(key),
        *((name.removesuffix("_at").replace("_", " "), getattr(key, name)) for name in times),
    ]
    if key.previous_expires_at is not None and key.previous_expires_at > now:
        rows.append(("former key", f"works until {cell(key.previous_expires_at)}"))
    print_fields(rows)


def _described(key: StoredKey, now: datetime) -> dict[str, object]:
    facts = {field.name: getattr(key, field.name) for field in fields(key)}
    first = ("id", "name", "tenant_id", "tenant", "tag")
    return {**{name: facts[name] for name in first}, "state": key.state(now), **facts}
