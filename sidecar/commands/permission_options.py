"""Which options say what a key or a workload may do? The same for both, to make one and to change it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import typer

from quota.limit import Dimension
from sidecar.commands.limit_option import Limits, parse_limits, written
from sidecar.commands.list_option import replacement
from store.permissions import Permissions

T = TypeVar("T")

Scopes = Annotated[
    list[str] | None, typer.Option("--scope", metavar="SCOPE", help="A scope such as usage:read; may be repeated.")
]
Roles = Annotated[
    list[str] | None, typer.Option("--role", metavar="ROLE", help="A role that brings its scopes; may be repeated.")
]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="MODEL", help="A model it may name, or gpt-* for all that begin so; repeatable."),
]
Networks = Annotated[
    list[str] | None,
    typer.Option("--network", metavar="CIDR", help="A network it may come from, such as 10.0.0.0/8; repeatable."),
]


@dataclass(frozen=True, kw_only=True)
class PermissionOptions:
    """What it may do. On a change, an option replaces all that was there of its kind."""

    scope: Scopes = None
    role: Roles = None
    model: Models = None
    network: Networks = None
    limit: Limits = None

    def given(self) -> dict[str, Any]:
        """The fields of `store.permissions.Permissions` that were given."""
        return _parsed(self._lists())

    def _lists(self) -> dict[str, list[str] | None]:
        return {
            "scopes": self.scope,
            "roles": self.role,
            "models": self.model,
            "networks": self.network,
            "limits": self.limit,
        }


@dataclass(frozen=True, kw_only=True)
class ChangeOptions(PermissionOptions):
    """What it may do from now on, and of which kind it shall have none."""

    clear_scopes: Annotated[bool, typer.Option("--clear-scopes", help="Leave it no scopes of its own.")] = False
    clear_roles: Annotated[bool, typer.Option("--clear-roles", help="Leave it no roles.")] = False
    clear_models: Annotated[bool, typer.Option("--clear-models", help="Let it name every model.")] = False
    clear_networks: Annotated[bool, typer.Option("--clear-networks", help="Let it come from anywhere.")] = False
    clear_limits: Annotated[bool, typer.Option("--clear-limits", help="Leave it no limits of its own.")] = False

    def changes(self) -> dict[str, Any]:
        """The fields of `store.permissions.PermissionChanges`; raises `FieldError` when two options contradict."""
        return _parsed(
            {
                name: replacement(name, values, clear=getattr(self, f"clear_{name}"))
                for name, values in self._lists().items()
            }
        )


def shown(permissions: Permissions) -> list[tuple[str, str]]:
    """What it may do, for a person."""
    return [
        ("scopes", _joined(permissions.scopes, "-")),
        ("roles", _joined(permissions.roles, "-")),
        ("models", _joined(permissions.models, "all")),
        ("networks", _joined(permissions.networks, "anywhere")),
        ("limits", _joined(permissions.limits, "those of its tenant only", written)),
    ]


def _parsed(lists: dict[str, list[str] | None]) -> dict[str, Any]:
    return {
        name: parse_limits(values, Dimension.PRINCIPAL) if name == "limits" else tuple(values)
        for name, values in lists.items()
        if values is not None
    }


def _joined(values: Sequence[T], none: str, write: Callable[[T], str] = str) -> str:
    return ", ".join(map(write, values)) or none
