"""Which limits hold for whom, and how do they stand? `inference-gateway limits ...`: show, set, remove, simulate."""

from typing import Annotated

import typer

from authz.routes import LIMITED_PATHS
from quota.limit import Limit
from sidecar.commands import limit_target
from sidecar.commands.limit_option import parse_limits
from sidecar.commands.limit_simulation import simulate
from sidecar.commands.limit_standings import Shown, label, look, scope, show_limits
from sidecar.commands.limit_target import Named, Owner, replaced
from sidecar.commands.session import trail, with_pool
from sidecar.commands.tenant import AsJson
from store.database import Pool
from store.field_error import FieldError

app = typer.Typer(no_args_is_help=True, help="Show, set, remove and simulate limits.")
app.command("simulate")(simulate)


@app.command("show")
def show(
    target: Named,
    *,
    route: Annotated[str, typer.Option(metavar="PATH", help="Only what holds for this path.")] = "",
    model: Annotated[str, typer.Option(metavar="MODEL", help="Only what holds for this model.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show what holds for somebody, and how it stands.

    Inherited limits are shown too. What is counted apart for each route or model has numbers only with --route or
    --model, and what is counted for each principal only for a key or a workload.
    """
    if route and route not in LIMITED_PATHS:
        raise FieldError("--route", f"{route[:80]!r} is not under limits; there are: {', '.join(LIMITED_PATHS)}")

    async def work(pool: Pool) -> Shown:
        return await look(await limit_target.find(pool, target), route=route, model=model)

    show_limits(with_pool(work), as_json=as_json)


@app.command("set")
def set_limits(
    target: Named,
    limit: Annotated[
        list[str],
        typer.Argument(metavar="LIMIT", help="Such as requests_per_minute=10 or tokens_per_day=5000,model=gpt-*."),
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Give somebody limits of their own.

    Those that are not named stay. One takes the place of what counts the same: the same name for the same per, route
    and model. Each worker goes by it within a second.
    """

    async def work(pool: Pool) -> Shown:
        owner = await limit_target.find(pool, target)
        given = parse_limits(limit, owner.carrier)
        return await _saved(pool, owner, replaced(owner.own, given, owner.carrier))

    show_limits(with_pool(work), as_json=as_json)


@app.command("remove")
def remove(
    target: Named,
    name: Annotated[
        list[str],
        typer.Argument(metavar="NAME", help="Such as requests_per_minute, or tokens_per_day,model=gpt-*."),
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Take limits of their own away from somebody.

    What they inherit stays. Of several with one name, say which: NAME,per=principal or NAME,route=PATH or
    NAME,model=MODEL.
    """

    async def work(pool: Pool) -> Shown:
        owner = await limit_target.find(pool, target)
        gone = [_meant(owner, each) for each in name]
        return await _saved(pool, owner, tuple(limit for limit in owner.own if limit not in gone))

    show_limits(with_pool(work), as_json=as_json)


async def _saved(pool: Pool, owner: Owner, limits: tuple[Limit, ...]) -> Shown:
    await limit_target.save(pool, owner, limits, trail=trail())
    return await look(await limit_target.find(pool, f"{owner.kind}:{owner.id}"))


def _meant(owner: Owner, text: str) -> Limit:
    wanted, *said = text.split(",")
    named = [limit for limit in owner.own if limit.name == wanted]
    match [limit for limit in named if set(said) == set(scope(limit))] or ([] if said else named):
        case [limit]:
            return limit
        case []:
            has = "; ".join(map(label, owner.own)) or "none"
            raise FieldError("NAME", f"{owner.title} has no limit {text[:80]!r} of its own; it has: {has}")
        case several:
            forms = "; ".join(map(label, several))
            raise FieldError("NAME", f"{owner.title} has {len(several)} limits {wanted}, say which: {forms}")
