"""What became of my requests? `/v1/requests`: one, a list of them, and all of them to take away."""

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from authz.identity_token import Caller
from authz.refusal import Reason, Refusal
from control.caller import Authenticated
from control.errors import UNAVAILABLE, Refused
from control.export import MEDIA_TYPES, Format, accepted, begun, download
from control.moment import Moment
from control.places import NoPlace, Places
from control.request_body import RequestList, RequestStatus, pieces
from extproc.lifecycle import State
from quota.reservation import QuotaOutage
from store.database import Pool
from store.request_cursor import Position
from store.requests import ROW_STATES, RequestFilter, Requests, oldest_first

PATH = "/v1/requests"
_MOST, _USUAL = 100, 20
# Files that are written at once. Each costs this one process all the time that there is, and may be read slowly.
MOST_EXPORTS, MOST_OF_A_TENANT = 16, 2
_RETRY_AFTER_MS = 5000
_LONGEST = 256
# RFC 9111 section 5.2.2.5: what a request is now, it is no more in a moment.
_NO_STORE = ("cache-control", "no-store")
_STATES = tuple(state.value for state in State if state in ROW_STATES)
# U+0000 is in no text of Postgres.
_Text = Annotated[str, Field(max_length=_LONGEST, pattern=r"^[^\x00]*$")]
_OF_A_PAGE = ("limit", "cursor")


class RequestQuery(BaseModel):
    """Which requests are asked for, and how they are written."""

    model_config = ConfigDict(extra="forbid")

    state: str | None = Field(
        default=None, description=f"Only those in these states, several by comma: {', '.join(_STATES)}."
    )
    model: _Text | None = Field(default=None, description="Only those of this model.")
    principal: _Text | None = Field(default=None, description="Only those of this principal, by its id.")
    since: Moment | None = Field(default=None, description="Received then or later: a date or time in ISO 8601, UTC.")
    until: Moment | None = Field(default=None, description="Received before then.")
    limit: int = Field(default=_USUAL, ge=1, le=_MOST, description="At most so many; of `format=json` only.")
    cursor: str | None = Field(default=None, description="`next_cursor` of the page before; of `format=json` only.")
    format: Format | None = Field(
        default=None,
        description="`json`: a page. Else all that have ended, oldest first, in one answer: `csv` with a row of names, "
        "`jsonl` (JSON lines), or `cloudevents`, the events of their ends as a JSON array of CloudEvents. By default "
        "what the `accept` header says.",
    )

    @field_validator("state")
    @classmethod
    def _known(cls, text: str | None) -> str | None:
        unknown = set(text.split(",")).difference(_STATES) if text is not None else None
        if unknown:
            raise PydanticCustomError("state", "Input should be of {states}", {"states": ", ".join(_STATES)})
        return text

    @field_validator("cursor")
    @classmethod
    def _written_by_us(cls, text: str | None) -> str | None:
        if text is not None and Position.of(text) is None:
            raise PydanticCustomError("cursor", "Input should be the next_cursor of a page")
        return text

    @property
    def after(self) -> Position | None:
        """Where the page begins."""
        return None if self.cursor is None else Position.of(self.cursor)

    def filter(self, tenant_id: str) -> RequestFilter:
        """Which of a tenant's requests are meant."""
        return RequestFilter(
            tenant_id=tenant_id,
            states=frozenset(map(State, self.state.split(","))) if self.state is not None else frozenset(),
            model=self.model,
            principal_id=self.principal,
            since=self.since,
            until=self.until,
        )


async def once(request: Request) -> None:
    """Refuse a parameter that comes twice: which of the two is meant?"""
    names = [name for name, _ in request.query_params.multi_items()]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        message = f"'{twice[:_LONGEST]}': It is given more than once."
        raise Refused(Refusal(reason=Reason.INVALID_PARAMETER, param=twice[:_LONGEST], message=message))


async def _held() -> AsyncIterator[contextlib.ExitStack]:
    """What is held until the answer is out, or its client gone."""
    with contextlib.ExitStack() as held:
        yield held


_EXPORTS = {"content": {MEDIA_TYPES[each]: {"schema": {"type": "string"}} for each in Format if each != Format.JSON}}


class RequestEndpoints:
    """Shows callers the requests of their own tenant."""

    def __init__(self, requests: Requests, pool: Pool) -> None:
        self._requests = requests
        self._pool = pool
        self._exports = Places(most=MOST_EXPORTS, most_of_each=MOST_OF_A_TENANT)

    def router(self) -> APIRouter:
        """The endpoints."""
        router = APIRouter(tags=["requests"])
        router.add_api_route(
            PATH,
            self.list_all,
            methods=["GET"],
            summary="List or export requests",
            response_model=RequestList,
            responses={200: _EXPORTS},
            dependencies=[Depends(once)],
        )
        router.add_api_route(f"{PATH}/{{request_id}}", self.show, methods=["GET"], summary="Show a request")
        return router

    async def list_all(
        self,
        response: Response,
        caller: Authenticated,
        query: Annotated[RequestQuery, Query()],
        held: Annotated[contextlib.ExitStack, Depends(_held)],
        accept: Annotated[str, Header(include_in_schema=False)] = "",
    ) -> RequestList | StreamingResponse:
        """The requests of the caller's tenant, those that run and those that have ended.

        As a page they come newest first, by when they were received: what comes in later moves no page.
        """
        format_ = query.format or accepted(accept, Format)
        if format_ is not Format.JSON:
            self._take_place(held, caller)
            return await self._export(query, format_, caller)
        try:
            page = await self._requests.page(
                caller.organization_id, query.filter(caller.tenant_id), limit=query.limit, after=query.after
            )
        except QuotaOutage:
            raise Refused(UNAVAILABLE) from None
        response.headers.append(*_NO_STORE)
        return RequestList(
            data=[RequestStatus.of(life) for life in page.lives],
            next_cursor=page.following.cursor() if page.following else None,
            complete=page.complete,
        )

    async def show(self, response: Response, caller: Authenticated, request_id: str) -> RequestStatus:
        """One request of the caller's tenant, while it runs and after it has ended."""
        try:
            life = await self._requests.find(caller.organization_id, caller.tenant_id, request_id)
        except QuotaOutage:
            raise Refused(UNAVAILABLE) from None
        if life is None:
            raise Refused(Refusal(reason=Reason.UNKNOWN_REQUEST))
        response.headers.append(*_NO_STORE)
        return RequestStatus.of(life)

    def _take_place(self, held: contextlib.ExitStack, caller: Caller) -> None:
        try:
            held.enter_context(self._exports.taken_by(caller.tenant_id))
        except NoPlace:
            raise Refused(Refusal(reason=Reason.TOO_MANY_EXPORTS, retry_after_ms=_RETRY_AFTER_MS)) from None

    async def _export(self, query: RequestQuery, format_: Format, caller: Caller) -> StreamingResponse:
        for name in _OF_A_PAGE:
            if name in query.model_fields_set:
                message = f"'{name}': It is of pages, and {format_} has none."
                raise Refused(Refusal(reason=Reason.INVALID_PARAMETER, param=name, message=message))
        batches = await begun(oldest_first(self._pool, query.filter(caller.tenant_id)))
        return download(pieces(batches, format_), format_, name="requests")
