"""Which options say what a tenant is, when it is made and when it is changed?"""

from dataclasses import dataclass
from typing import Annotated

import typer

from sidecar.commands.limit_option import Limits, parse_limits
from sidecar.commands.list_option import replacement
from sidecar.commands.routing_policy_option import Policy, read_policy
from store.tenants import DEFAULT_TIME_ZONE, NewTenant, TenantChanges

TimeZone = typer.Option(metavar="ZONE", help="Whose calendar its days and months go by, such as Europe/Berlin.")
Networks = Annotated[
    list[str] | None,
    typer.Option("--network", metavar="CIDR", help="Where its callers must come from, may be repeated; else anywhere."),
]
_CERTIFICATE = "Whether its callers must show a client certificate beside their key or token."


@dataclass(frozen=True, kw_only=True)
class NewTenantOptions:
    """What a new tenant is."""

    organization: Annotated[
        str, typer.Option(metavar="ORG", help="The organization's name or id; made when there is none of this name.")
    ]
    plan: Annotated[
        str, typer.Option(metavar="PLAN", help="The plan that sets its limits: free, pro, enterprise or your own.")
    ] = "free"
    limit: Limits = None
    time_zone: Annotated[str, TimeZone] = DEFAULT_TIME_ZONE
    network: Networks = None
    routing_policy: Policy = None
    require_certificate: Annotated[bool, typer.Option("--require-certificate", help=_CERTIFICATE)] = False

    def new(self, name: str) -> NewTenant:
        """As the store takes it; raises `FieldError`."""
        return NewTenant(
            name=name,
            organization=self.organization,
            plan=self.plan,
            limits=parse_limits(self.limit or ()),
            time_zone=self.time_zone,
            networks=tuple(self.network or ()),
            routing_policy=read_policy(self.routing_policy),
            certificate_required=self.require_certificate,
        )


@dataclass(frozen=True, kw_only=True)
class TenantOptions:
    """What a tenant is from now on."""

    name: Annotated[str | None, typer.Option(metavar="NAME", help="Its name from now on.")] = None
    plan: Annotated[str | None, typer.Option(metavar="PLAN", help="The plan that it is on from now on.")] = None
    limit: Limits = None
    clear_limits: Annotated[bool, typer.Option("--clear-limits", help="Only its plan's limits hold.")] = False
    time_zone: Annotated[str | None, TimeZone] = None
    network: Networks = None
    clear_networks: Annotated[bool, typer.Option("--clear-networks", help="Let it in from anywhere.")] = False
    routing_policy: Policy = None
    clear_routing_policy: Annotated[bool, typer.Option("--clear-routing-policy", help="Send the Router no policy.")] = (
        False
    )
    require_certificate: Annotated[
        bool | None, typer.Option("--require-certificate/--no-require-certificate", help=_CERTIFICATE)
    ] = None

    def changes(self) -> TenantChanges:
        """As the store takes them; raises `FieldError`, also when two options contradict each other."""
        limits = replacement("limits", self.limit, clear=self.clear_limits)
        networks = replacement("networks", self.network, clear=self.clear_networks)
        given = None if self.routing_policy is None else [self.routing_policy]
        replacement("routing-policy", given, clear=self.clear_routing_policy)
        return TenantChanges(
            name=self.name,
            plan=self.plan,
            limits=None if limits is None else parse_limits(limits),
            time_zone=self.time_zone,
            networks=None if networks is None else tuple(networks),
            routing_policy=read_policy(self.routing_policy),
            clear_routing_policy=self.clear_routing_policy,
            certificate_required=self.require_certificate,
        )
