"""How does the gateway's own API say no? In the one error body, whoever noticed that something is wrong."""

from collections.abc import Callable
from datetime import datetime

from fastapi import FastAPI, Response
from fastapi.exceptions import RequestValidationError
from fastapi.requests import HTTPConnection
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from authz import decision, error_body
from authz.directory import DirectoryOutage
from authz.refusal import Reason, Refusal
from authz.routes import dialect_of
from authz.session import SessionOutage
from quota.reservation import QuotaOutage
from store.database import DatabaseOutage

REQUEST_ID_HEADER = "x-request-id"
# Longer names of fields are the client's own, and no help to anybody.
_LONGEST_PARAM = 100
_RETRY_AFTER_MS = 1000
_METHOD_NOT_ALLOWED, _NOT_FOUND = 405, 404
_SERVER_ERRORS = 500
# What pydantic says of a body that is no object.
_NO_OBJECT = frozenset({"model_attributes_type", "model_type"})

Now = Callable[[], datetime]
ObserveError = Callable[[Exception], None]


class Refused(Exception):
    """Ends the request with a refusal: FastAPI's only way out of a dependency."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason.code)
        self.refusal = refusal


class ErrorBodies:
    """Answers refusals and failures. What nobody expected is told to `observe_error`, never to the client."""

    def __init__(self, *, now: Now, observe_error: ObserveError) -> None:
        self._now = now
        self._observe_error = observe_error

    def install(self, app: FastAPI) -> None:
        """Take over every error of the application."""
        app.add_exception_handler(Refused, self._of_refused)
        app.add_exception_handler(RequestValidationError, self._of_validation)
        app.add_exception_handler(HTTPException, self._of_framework)
        app.add_exception_handler(SessionOutage, self._of_outage)
        app.add_exception_handler(DatabaseOutage, self._of_outage)
        app.add_exception_handler(DirectoryOutage, self._of_outage)
        app.add_exception_handler(QuotaOutage, self._of_quota_outage)
        # Not a handler of Exception: Starlette would raise it again, for the server to print.
        app.add_middleware(_Unexpected, answer=self._of_unexpected)

    def answer(self, path: str, headers: Headers, refusal: Refusal) -> Response:
        """The response of a refusal."""
        body = error_body.render(
            refusal,
            dialect=dialect_of(path),
            request_id=headers.get(REQUEST_ID_HEADER, ""),
            now=self._now().timestamp(),
        )
        response = Response(body, status_code=refusal.reason.status)
        for name, value in error_body.headers(refusal):
            response.headers[name] = value
        response.headers["cache-control"] = "no-store"
        return response

    def _respond(self, request: HTTPConnection, refusal: Refusal) -> Response:
        return self.answer(request.url.path, request.headers, refusal)

    async def _of_refused(self, request: HTTPConnection, error: Exception) -> Response:
        return self._respond(request, error.refusal if isinstance(error, Refused) else _FAILED)

    async def _of_validation(self, request: HTTPConnection, error: Exception) -> Response:
        return self._respond(request, invalid(error) if isinstance(error, RequestValidationError) else _FAILED)

    async def _of_framework(self, request: HTTPConnection, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else _SERVER_ERRORS
        return self._respond(request, _of_status(status, request))

    async def _of_outage(self, request: HTTPConnection, _: Exception) -> Response:
        return self._respond(request, UNAVAILABLE)

    async def _of_quota_outage(self, request: HTTPConnection, _: Exception) -> Response:
        return self._respond(request, _NO_LIMITS)

    def _of_unexpected(self, scope: Scope, error: Exception) -> Response:
        self._observe_error(error)
        return self.answer(scope["path"], Headers(scope=scope), _FAILED)


UNAVAILABLE = Refusal(
    reason=Reason.IDENTITY_UNAVAILABLE,
    message="What this needs cannot be reached now.",
    retry_after_ms=_RETRY_AFTER_MS,
)
_NO_LIMITS = Refusal(reason=Reason.LIMITS_UNAVAILABLE, retry_after_ms=_RETRY_AFTER_MS)
_FAILED = Refusal(reason=Reason.INTERNAL_ERROR)


class _Unexpected:
    """ASGI middleware that answers what nothing else has caught."""

    def __init__(self, app: ASGIApp, answer: Callable[[Scope, Exception], Response]) -> None:
        self._app = app
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            if begun or scope["type"] != "http":
                raise
            await self._answer(scope, error)(scope, receive, send)


def invalid(error: RequestValidationError) -> Refusal:
    """What is wrong with a body, by the first of its faults. `param` is the field."""
    fault = error.errors()[0]
    if fault["type"] == "json_invalid":
        return Refusal(reason=Reason.INVALID_JSON)
    fields = fault["loc"][1:]  # the first says where it stands: body, path, query
    if fault["loc"][0] == "query" and fields:
        name = str(fields[0])[:_LONGEST_PARAM]
        return Refusal(reason=Reason.INVALID_PARAMETER, param=name, message=f"'{name}': {fault['msg']}.")
    if not fields and isinstance(error.body, bytes):  # FastAPI has not parsed it
        return Refusal(reason=Reason.UNSUPPORTED_MEDIA_TYPE, param="content-type")
    if fault["type"] in _NO_OBJECT and not fields:
        return Refusal(reason=Reason.INVALID_BODY, message="The body must be a JSON object.")
    if not fields:
        return Refusal(reason=Reason.INVALID_BODY)
    param = ".".join(map(str, fields))[:_LONGEST_PARAM]
    return Refusal(reason=Reason.INVALID_BODY, param=param, message=f"'{param}': {fault['msg']}.")


def _of_status(status: int, request: HTTPConnection) -> Refusal:
    """What Starlette and FastAPI refuse by themselves."""
    if status in {_NOT_FOUND, _METHOD_NOT_ALLOWED}:
        found = decision.route(request.scope.get("method", "GET"), request.url.path)
        # A path of the table that another than this API serves.
        return found if isinstance(found, Refusal) else Refusal(reason=Reason.UNKNOWN_PATH)
    if status < _SERVER_ERRORS:  # a body that is not UTF-8, or nested too deep
        return Refusal(reason=Reason.INVALID_JSON)
    return _FAILED
