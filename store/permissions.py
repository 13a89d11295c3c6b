"""What may a key or a workload do, with which models, from where, and how much? How that is checked and stored."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import asyncpg

from authz import network
from authz.scope import Scope
from quota import model_pattern
from quota.limit import Dimension, Limit
from store.audit import AnyConnection
from store.field_error import FieldError
from store.limits import checked_limits, decode_limits, encode_limits

DEFAULT_ROLES = ("inference",)
MOST = 100
"""How many scopes, roles, models, networks or limits one key or workload may have."""
COLUMNS = ("scopes", "roles", "models", "networks", "limits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """Scopes of its own and those of its roles; models and networks, empty for all; limits beside its tenant's."""

    scopes: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionChanges:
    """What is to be different; None leaves a field as it is."""

    scopes: tuple[str, ...] | None = None
    roles: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    networks: tuple[str, ...] | None = None
    limits: tuple[Limit, ...] | None = None


P = TypeVar("P", bound=Permissions)
T = TypeVar("T")


def with_default_role(asked: P) -> P:
    """The same with the role `inference` when it has neither scopes nor roles."""
    return asked if asked.scopes or asked.roles else replace(asked, roles=DEFAULT_ROLES)


def checked(asked: P) -> P:
    """The same in the form it is stored in, each list sorted and without repetition.

    Raises `FieldError` for what is no scope, pattern, network or limit. Roles: see `check_roles`.
    """
    return replace(
        asked,
        scopes=_each("scopes", asked.scopes, _scope),
        roles=_each("roles", asked.roles, str),
        models=_each("models", asked.models, model_pattern.parse),
        networks=_each("networks", asked.networks, network.parse),
        limits=checked_limits("limits", _counted("limits", asked.limits), Dimension.PRINCIPAL),
    )


async def check_roles(connection: AnyConnection, roles: tuple[str, ...]) -> None:
    """Raise `FieldError` naming a role that does not exist; those that do stay until the transaction ends."""
    # A share lock: who removes a role at this moment waits, and then sees who has it.
    rows = await connection.fetch("SELECT name FROM roles WHERE name = ANY ($1::text[]) ORDER BY name FOR SHARE", roles)
    missing = sorted(set(roles) - {row["name"] for row in rows})
    if missing:
        known = ", ".join(row["name"] for row in await connection.fetch("SELECT name FROM roles ORDER BY name"))
        raise FieldError("roles", f"there is no role {missing[0][:80]!r}; there are: {known}")


def changed(before: P, asked: PermissionChanges) -> P:
    """The same with what was asked for; raises `FieldError` as `checked`. What was not asked for is not checked."""
    given = {name: value for name in COLUMNS if (value := getattr(asked, name)) is not None}
    fresh = checked(Permissions(**given))
    return replace(before, **{name: getattr(fresh, name) for name in given})


def column_values(permissions: Permissions) -> tuple[Any, ...]:
    """What is stored in `COLUMNS`."""
    return (
        permissions.scopes,
        permissions.roles,
        permissions.models,
        permissions.networks,
        encode_limits(permissions.limits),
    )


def fields_of(row: asyncpg.Record) -> dict[str, Any]:
    """The fields of a row that has `COLUMNS` among its own."""
    lists = {name: tuple(row[name]) for name in COLUMNS[:-1]}
    return {**row, **lists, "limits": decode_limits(row["limits"])}


def _each(field: str, values: Iterable[str], read: Callable[[str], str]) -> tuple[str, ...]:
    try:
        return tuple(sorted({read(value) for value in _counted(field, values)}))
    except ValueError as error:
        raise FieldError(field, str(error)) from None


def _counted(field: str, values: Iterable[T]) -> tuple[T, ...]:
    counted = tuple(values)
    if len(counted) > MOST:
        raise FieldError(field, f"{len(counted):,} are too many; at most {MOST}")
    return counted


def _scope(name: str) -> str:
    try:
        return Scope(name).value
    except ValueError:
        raise ValueError(f"there is no scope {name[:80]!r}; there are: {', '.join(Scope)}") from None
