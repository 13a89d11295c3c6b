"""What has my tenant used? `/v1/usage`: the ledger, summed, as `inference-gateway usage` shows it."""

from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Annotated, Literal, Self

import msgspec
from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from authz.refusal import Reason, Refusal
from control.caller import Authenticated
from control.errors import Now, Refused
from control.export import MEDIA_TYPES, Format, accepted, csv_pieces, download, line_pieces
from control.moment import Moment
from control.request_body import dollars
from control.requests import once
from store import usage
from store.database import Pool
from store.usage import GroupBy, UsageTotal

PATH = "/v1/usage"
_USUAL_DAYS = 7
_NO_STORE = ("cache-control", "no-store")
_OFFERED = (Format.JSON, Format.CSV, Format.JSONL)
_TOTAL = "total"

_Groups = Literal[GroupBy.DAY, GroupBy.MODEL, GroupBy.PRINCIPAL, GroupBy.ROUTE]


class UsageQuery(BaseModel):
    """Of which time usage is asked for, and by what it is summed."""

    model_config = ConfigDict(extra="forbid", populate_by_name=False)

    since: Moment | None = Field(
        default=None,
        alias="from",
        description="What ended then or later: a date or time in ISO 8601, UTC. By default seven days ago.",
    )
    until: Moment | None = Field(default=None, alias="to", description="What ended before then; by default now.")
    group_by: _Groups = Field(default=GroupBy.DAY, description="What to sum by; a day is one of UTC.")
    format: Literal[Format.JSON, Format.CSV, Format.JSONL] | None = Field(
        default=None, description="By default what the `accept` header says. Tables end with a row of totals."
    )


class UsageSum(BaseModel):
    """The sums of one group: a day, a model, a principal's id, or a path; of the total it is empty."""

    group: str
    requests: int
    completed: int
    estimated: int = Field(description="How many of the requests were charged by estimate.")
    input_tokens: int
    cached_tokens: int = Field(description="Of the input tokens, those read from a cache.")
    output_tokens: int
    reasoning_tokens: int = Field(description="Of the output tokens, those never shown.")
    cost_micros: int = Field(description="Micro-dollars.")
    cost_dollars: str = Field(description="The same in dollars, exact.")

    @classmethod
    def of(cls, total: UsageTotal) -> Self:
        """Show the sums of a group."""
        return cls(**asdict(total), cost_dollars=dollars(total.cost_micros))


class Usage(BaseModel):
    """What was used in a span of time."""

    object: Literal["usage"] = "usage"
    since: datetime = Field(serialization_alias="from", description="What ended then or later is in it.")
    until: datetime = Field(serialization_alias="to", description="What ended then or later is not.")
    group_by: GroupBy
    data: list[UsageSum]
    total: UsageSum


class UsageEndpoints:
    """Shows callers what their own tenant has used."""

    def __init__(self, pool: Pool, *, now: Now) -> None:
        self._pool = pool
        self._now = now

    def router(self) -> APIRouter:
        """The endpoint."""
        router = APIRouter(tags=["usage"])
        tables = {MEDIA_TYPES[each]: {"schema": {"type": "string"}} for each in _OFFERED if each is not Format.JSON}
        router.add_api_route(
            PATH,
            self.show,
            methods=["GET"],
            summary="Sum usage",
            response_model=Usage,
            responses={200: {"content": tables}},
            dependencies=[Depends(once)],
        )
        return router

    async def show(
        self,
        response: Response,
        caller: Authenticated,
        query: Annotated[UsageQuery, Query()],
        accept: Annotated[str, Header(include_in_schema=False)] = "",
    ) -> Usage | StreamingResponse:
        """Requests, tokens and their cost of the caller's tenant, by day, model, principal or route.

        Counted is what has ended in that time. Cached tokens are among those of the input, reasoning tokens among those
        of the output.
        """
        until = query.until or self._now()
        since = query.since or until - timedelta(days=_USUAL_DAYS)
        if since >= until:
            message = "'from': It must lie before 'to'."
            raise Refused(Refusal(reason=Reason.INVALID_PARAMETER, param="from", message=message))
        found = await usage.usage(
            self._pool, tenant=caller.tenant_id, since=since, until=until, group_by=query.group_by
        )
        total = usage.total(found)
        format_ = query.format or accepted(accept, _OFFERED)
        if format_ is not Format.JSON:
            return _table(query.group_by, found, total, format_)
        response.headers.append(*_NO_STORE)
        sums = [UsageSum.of(each) for each in found]
        return Usage(since=since, until=until, group_by=query.group_by, data=sums, total=UsageSum.of(total))


def _table(group_by: GroupBy, found: list[UsageTotal], total: UsageTotal, format_: Format) -> StreamingResponse:
    """The rows, the last of them the totals. The first column says which it is: a model may be called `total`."""
    rows = [{"by": group_by.value, **UsageSum.of(each).model_dump()} for each in found]
    rows.append({"by": _TOTAL, **UsageSum.of(total).model_dump()})

    async def batches() -> AsyncIterator[list[dict[str, object]]]:
        yield rows

    if format_ is Format.CSV:
        written = csv_pieces(tuple(rows[-1]), batches(), lambda row: tuple(row.values()))
    else:
        written = line_pieces(batches(), _line)
    return download(written, format_, name="usage")


def _line(row: dict[str, object]) -> str:
    return msgspec.json.encode(row).decode()
