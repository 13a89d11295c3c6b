"""What may a tenant use? `inference-gateway plan ...`: create, change and delete plans."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from authz.principal import DEFAULT_PRIORITY, HIGHEST_PRIORITY, LOWEST_PRIORITY, Metering
from sidecar.commands import cap_options
from sidecar.commands.cap_options import CapOptions
from sidecar.commands.limit_option import Limits, field, parse_limits, written
from sidecar.commands.list_option import replacement
from sidecar.commands.option_group import grouped
from sidecar.commands.session import trail, with_pool
from sidecar.commands.tenant import AsJson
from sidecar.tables import print_fields, print_json, print_table
from store import plans
from store.caps import as_columns
from store.database import Pool
from store.field_error import FieldError
from store.limits import identity
from store.plans import Plan, PlanChanges, find_plan, list_plans

app = typer.Typer(no_args_is_help=True, help="Create, change and delete plans.")

Named = Annotated[str, typer.Argument(metavar="PLAN", help="The plan's name.")]
_METERING = "Where the tokens of streams are counted: native, in Envoy; inline, chunk by chunk in the sidecar."
_PRIORITY = typer.Option(
    min=LOWEST_PRIORITY,
    max=HIGHEST_PRIORITY,
    help="Under overload, tenants of plans of a lower priority are refused first.",
)


@dataclass(frozen=True, kw_only=True)
class NewPlanOptions:
    """What a new plan is."""

    limit: Limits = None
    metering: Annotated[Metering, typer.Option(help=_METERING)] = Metering.NATIVE
    priority: Annotated[int, _PRIORITY] = DEFAULT_PRIORITY


@app.command("create")
@grouped
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The plan's name, unique.")],
    wanted: NewPlanOptions,
    caps: CapOptions,
    *,
    as_json: AsJson = False,
) -> None:
    """Create a plan."""
    if not wanted.limit:
        raise FieldError(
            "--limit", "give at least one, such as requests_per_minute=10; a plan without any limits nobody"
        )
    plan = Plan(
        name=name,
        limits=parse_limits(wanted.limit),
        metering=wanted.metering,
        priority=wanted.priority,
        caps=caps.caps(),
    )

    async def work(pool: Pool) -> Plan:
        return await plans.create(pool, plan, trail=trail())

    _show(with_pool(work), as_json=as_json)


@app.command("list")
def list_all(*, as_json: AsJson = False) -> None:
    """List every plan with its limits."""
    found = with_pool(list_plans)
    if as_json:
        print_json([_described(plan) for plan in found])
        return
    print_table(
        ("NAME", "METERING", "PRIORITY", "AT MOST", "LIMITS"),
        [(plan.name, plan.metering, plan.priority, cap_options.written(plan.caps), _limits(plan)) for plan in found],
        empty="There are no plans. Make one: inference-gateway plan create NAME --limit requests_per_minute=10",
    )


@app.command("show")
def show(plan: Named, *, as_json: AsJson = False) -> None:
    """Show one plan."""

    async def work(pool: Pool) -> Plan:
        return await find_plan(pool, plan)

    _show(with_pool(work), as_json=as_json)


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What a plan is from now on."""

    limit: Limits = None
    clear_limits: Annotated[bool, typer.Option("--clear-limits", help="Take all its limits away.")] = False
    metering: Annotated[Metering | None, typer.Option(help=_METERING)] = None
    priority: Annotated[int | None, _PRIORITY] = None

    def changes(self, caps: CapOptions) -> PlanChanges:
        """As the store takes them; raises `FieldError`, also when two options contradict each other."""
        limits = replacement("limits", self.limit, clear=self.clear_limits)
        return PlanChanges(
            limits=None if limits is None else parse_limits(limits),
            metering=self.metering,
            priority=self.priority,
            stream_seconds=caps.stream_seconds(),
            output_tokens=caps.output_tokens(),
            response_bytes=caps.response_bytes(),
        )


@app.command("update")
@grouped
def update(plan: Named, wanted: PlanOptions, caps: CapOptions, *, as_json: AsJson = False) -> None:
    """Change a plan, for all its tenants.

    The limits that are given are all that it then has. Each worker goes by them within a second; what runs already, by
    what one request might come to when it was admitted.
    """
    changes = wanted.changes(caps)

    async def work(pool: Pool) -> tuple[Plan, Plan]:
        return await find_plan(pool, plan), await plans.update(pool, plan, changes, trail=trail())

    before, after = with_pool(work)
    _show(after, as_json=as_json)
    kept = set(map(identity, after.limits))
    if lost := [written(each) for each in before.limits if identity(each) not in kept]:
        typer.echo(f"The plan does not limit any more: {', '.join(lost)}.", err=True)


@app.command("delete")
def delete(plan: Named, *, as_json: AsJson = False) -> None:
    """Delete a plan that no tenant is on."""

    async def work(pool: Pool) -> Plan:
        return await plans.delete(pool, plan, trail=trail())

    gone = with_pool(work)
    if as_json:
        print_json(_described(gone))
    else:
        typer.echo(f"The plan {gone.name} is deleted. No tenant was on it.")


def _show(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        print_json(_described(plan))
        return
    facts = [("name", plan.name), ("metering", plan.metering), ("priority", plan.priority)]
    print_fields([*facts, *cap_options.fields(plan.caps), *map(field, plan.limits)])


def _described(plan: Plan) -> dict[str, Any]:
    described = {**asdict(plan), **as_columns(plan.caps)}
    del described["caps"]
    return described


def _limits(plan: Plan) -> str:
    return " ".join(map(written, plan.limits))
