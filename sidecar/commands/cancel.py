"""How does an operator stop requests that run? `inference-gateway cancel`: one, or all of a tenant or a principal."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated

import typer

from extproc import admission as admissions
from extproc import ending as endings
from extproc.lifecycle import Cause
from quota.pipe import Pipe
from quota.redis import RedisReservations, shard_of
from quota.redis_stops import RedisStops
from quota.reservation import Known, QuotaOutage
from sidecar.commands import command_redis, limit_target
from sidecar.commands.confirmation import counted
from sidecar.commands.session import FAILED, fail, trail, with_pool
from store import ledger, organizations
from store.audit import Change
from store.database import Pool, outages_named
from store.field_error import FieldError

_REDIS_SECONDS = 5.0
_MOST = 100_000
_AT_ONCE = 500
_WAIT_SECONDS = 30.0
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """Whose requests are meant. `subject` is what the audit trail calls them."""

    subject: str
    tenant_id: str
    organization_id: str
    principal_id: str = ""


@dataclass(frozen=True, slots=True)
class _Done:
    asked: int
    running: int


def cancel(
    request_id: Annotated[str | None, typer.Argument(metavar="[REQUEST_ID]", help="The one request to stop.")] = None,
    *,
    tenant: Annotated[
        str | None, typer.Option(metavar="TENANT", help="All requests of this tenant (id, name or ORG/NAME).")
    ] = None,
    principal: Annotated[
        str | None,
        typer.Option(metavar="PRINCIPAL", help="All of this principal: key_..., wl_..., or jwt_... with its --tenant."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until they have ended, for half a minute at most.")
    ] = False,
) -> None:
    """Stop requests that run.

    What has been produced is charged. Ends with status 1 when --wait has waited in vain. Reads REDIS_URL too.
    """
    if (request_id is None) is (tenant is None and principal is None):
        raise FieldError("REQUEST_ID", "say one: a request, or --tenant, or --principal")

    async def work(pool: Pool) -> _Done:
        connected = command_redis.pipe(deadline=_REDIS_SECONDS)
        if connected is None:
            fail(command_redis.UNKNOWN)
        async with aclosing(connected) as pipe:
            if request_id is not None:
                return await _one(pool, pipe, request_id, wait=wait)
            return await _all(pool, pipe, await _whose(pool, tenant, principal), wait=wait)

    try:
        done = with_pool(work)
    except QuotaOutage as error:
        fail(str(error))
    typer.echo(f"Asked to stop: {counted(done.asked, 'request')}.")
    if wait and done.running:
        fail(f"still running after {_WAIT_SECONDS:g} s: {counted(done.running, 'request')}", code=FAILED)


async def _whose(pool: Pool, tenant: str | None, principal: str | None) -> _Wanted:
    if tenant is not None:
        found = await limit_target.find_tenant(pool, tenant)
        subject = f"principal:{principal}" if principal else f"tenant:{found.id}"
        return _Wanted(
            subject=subject,
            tenant_id=found.id,
            organization_id=found.organization_id,
            principal_id=principal or "",
        )
    kind, _, name = (principal or "").partition("_")
    if kind not in {"key", "wl"} or not name:
        raise FieldError("--principal", f"{principal!r} is not like key_... or wl_...; a jwt_... needs its --tenant")
    owner = await limit_target.find(pool, f"key:{name}" if kind == "key" else f"workload:{principal}")
    target = owner.target
    return _Wanted(
        subject=f"principal:{target.principal_id}",
        tenant_id=target.tenant_id,
        organization_id=target.organization_id,
        principal_id=target.principal_id,
    )


async def _one(pool: Pool, pipe: Pipe, request_id: str, *, wait: bool) -> _Done:
    """All organizations of a shard are looked through at once: whose the request is, its record says."""
    reservations = RedisReservations(pipe)
    owners = {shard_of(each.id): each.id for each in await organizations.list_organizations(pool)}
    found = await asyncio.gather(*(reservations.find(owner, request_id) for owner in owners.values()))
    known = next((each for each in found if each is not None), None)
    if known is None:
        record = await ledger.find(pool, request_id)
        if record is None:
            raise FieldError("REQUEST_ID", f"there is no request {request_id[:80]!r}")
        raise FieldError("REQUEST_ID", f"it has ended already: {record.ending.state}, {record.ending.cause}")
    if known.ending is not None:
        ending = endings.decode(known.ending)
        raise FieldError("REQUEST_ID", f"it has ended already: {ending.state}, {ending.cause}")
    admission = admissions.decode(known.admission)
    wanted = _Wanted(
        subject=f"request:{known.request_id}",
        tenant_id=admission.tenant_id,
        organization_id=admission.organization_id,
    )
    return await _stop(pool, pipe, wanted, [known.request_id], wait=wait)


async def _all(pool: Pool, pipe: Pipe, wanted: _Wanted, *, wait: bool) -> _Done:
    known = await RedisReservations(pipe).open_of(wanted.organization_id, wanted.tenant_id, limit=_MOST)
    meant = [each.request_id for each in known if each.ending is None and _is_meant(each, wanted)]
    return await _stop(pool, pipe, wanted, meant, wait=wait) if meant else _Done(0, 0)


def _is_meant(known: Known, wanted: _Wanted) -> bool:
    return wanted.principal_id in {"", admissions.decode(known.admission).principal_id}


async def _stop(pool: Pool, pipe: Pipe, wanted: _Wanted, request_ids: Sequence[str], *, wait: bool) -> _Done:
    await _write_down(pool, wanted, len(request_ids))
    reservations, stops = RedisReservations(pipe), RedisStops(pipe)

    async def stop(request_id: str) -> bool:
        if not await reservations.stop(wanted.organization_id, request_id, why=Cause.ADMIN_CANCEL):
            return False
        await stops.ask(request_id, Cause.ADMIN_CANCEL)
        return True

    asked: list[str] = []
    for start in range(0, len(request_ids), _AT_ONCE):
        batch = request_ids[start : start + _AT_ONCE]
        open_ones = await asyncio.gather(*map(stop, batch))
        asked += [request_id for request_id, was_open in zip(batch, open_ones, strict=True) if was_open]
    running = await _until_ended(reservations, wanted, asked) if wait else len(asked)
    return _Done(len(asked), running)


async def _write_down(pool: Pool, wanted: _Wanted, count: int) -> None:
    """Before it is done: what cannot be written into the audit trail is not done."""
    change = Change(
        action="request.cancel", subject=wanted.subject, tenant_id=wanted.tenant_id, after={"requests": count}
    )
    with outages_named():
        async with pool.acquire() as connection, connection.transaction():
            await trail().append(connection, change)


async def _until_ended(reservations: RedisReservations, wanted: _Wanted, request_ids: Sequence[str]) -> int:
    """How many of them run on when there is no more waiting."""
    clock = asyncio.get_running_loop().time
    until, running = clock() + _WAIT_SECONDS, list(request_ids)
    while running and clock() < until:
        await asyncio.sleep(_LOOK_SECONDS)
        found = [await reservations.find(wanted.organization_id, each) for each in running]
        running = [each.request_id for each in found if each is not None and each.ending is None]
    return len(running)
