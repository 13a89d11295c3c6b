"""How is the API described? `/openapi.json`, and `/docs`, a page that shows it. Both work without the internet."""

from functools import cache
from importlib import metadata, resources
from typing import Any, Final

import msgspec
from fastapi import APIRouter, FastAPI, Response

from authz.decision import CSRF_HEADER
from authz.refusal import Reason, Refusal
from authz.routes import Route, at
from authz.session import COOKIE_NAME
from control.error_docs import RESPONSES, SCHEMAS, errors_of
from control.errors import Refused
from control.inference_docs import inference_paths
from control.request_body import EXAMPLE

DESCRIPTION_PATH, PAGE_PATH = "/openapi.json", "/docs"
HEAD: Final[dict[str, Any]] = {
    "title": "inference-gateway",
    "version": metadata.version("inference-gateway"),
    "summary": "One front door for model inference: callers, limits, requests and usage.",
    "description": "Inference paths are answered by the model service behind the gateway, in the dialect of each; what "
    "the gateway itself refuses has its own body. Each answer has an `x-request-id`, by which `/v1/requests` tells "
    "what became of the request.",
    "openapi_tags": [
        {"name": "inference", "description": "Answered by the model service behind the gateway."},
        {"name": "requests", "description": "What became of each request, running or ended."},
        {"name": "webhooks", "description": "Whom to tell when a request has ended."},
        {"name": "usage", "description": "What was used, summed from the ledger."},
        {"name": "limits", "description": "Which limits hold, and how they stand."},
        {"name": "sessions", "description": "Sessions in exchange for an API key or a JWT."},
        {"name": "identity", "description": "The keys of the gateway's own tokens."},
    ],
}
"""What `FastAPI` is told of the whole."""
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, a JWT, or the token of a session."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "An API key."},
    "sessionCookie": {"type": "apiKey", "in": "cookie", "name": COOKIE_NAME, "description": "A browser's session."},
    "csrfToken": {
        "type": "apiKey",
        "in": "header",
        "name": CSRF_HEADER,
        "description": "The session's CSRF token: beside its cookie, on whatever changes something.",
    },
    "clientCertificate": {"type": "mutualTLS", "description": "The certificate of a workload."},
}
# FastAPI would leave out what is null in them.
_EXAMPLES = {"/v1/requests/{request_id}": EXAMPLE}
_SAFE = frozenset({"get", "head"})
_EVENTS = "text/event-stream"
_HTML = "text/html; charset=utf-8"
_CACHED = {"cache-control": "public, max-age=3600", "x-content-type-options": "nosniff"}
# The UI shows arrows and marks that stand in its style sheet as data.
_GUARDED = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}
# In the package of the UI, or our own; with the media type of each.
_UI = "fastapi_swagger.resources"
_PAGE = "control.docs_page"
_ASSETS = {
    "swagger-ui-bundle.js": (_UI, "text/javascript; charset=utf-8"),
    "swagger-ui.css": (_UI, "text/css; charset=utf-8"),
    "favicon-32x32.png": (_UI, "image/png"),
    "start.js": (_PAGE, "text/javascript; charset=utf-8"),
}


def describe(app: FastAPI) -> None:
    """Have the application describe itself and all that the gateway serves. Its endpoints must be there already."""
    text = cache(lambda: msgspec.json.encode(document(app)))
    endpoints = APIRouter(include_in_schema=False)

    @endpoints.get(DESCRIPTION_PATH)
    async def description() -> Response:
        return Response(text(), media_type="application/json", headers={"cache-control": "no-cache"})

    @endpoints.get(PAGE_PATH)
    async def page() -> Response:
        return Response(_read(_PAGE, "index.html"), media_type=_HTML, headers=_GUARDED)

    @endpoints.get(PAGE_PATH + "/{name}")
    async def asset(name: str) -> Response:
        if name not in _ASSETS:
            raise Refused(Refusal(reason=Reason.UNKNOWN_PATH))
        package, media_type = _ASSETS[name]
        return Response(_read(package, name), media_type=media_type, headers=_CACHED)

    app.include_router(endpoints)


def document(app: FastAPI) -> dict[str, Any]:
    """The description (OpenAPI 3.1) of this API and of the inference paths, each with who may call and what goes wrong.

    Raises LookupError for an endpoint that is not in the gateway's table of routes.
    """
    found = app.openapi()
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own; ours is another
        schemas.pop(name, None)
    schemas.update(SCHEMAS)
    components["securitySchemes"] = _SCHEMES
    found["paths"] = inference_paths() | found["paths"]
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            _complete(_route(method, path), method, operation)
    for path, example in _EXAMPLES.items():
        found["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["example"] = example
    components["responses"] = {name: RESPONSES[name] for name in sorted(_named(found["paths"]))}
    return found


def _named(paths: dict[str, Any]) -> set[str]:
    """The responses that are referred to."""
    operations = (operation for of_path in paths.values() for operation in of_path.values())
    answers = (answer for operation in operations for answer in operation["responses"].values())
    return {answer["$ref"].rpartition("/")[2] for answer in answers if "$ref" in answer}


def _route(method: str, path: str) -> Route:
    for route in at(path.replace("{", "").replace("}", "")):
        if route.method == method.upper():
            return route
    raise LookupError(f"{method} {path} is not in the table of routes")


def _complete(route: Route, method: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    for content in (answer["content"] for answer in responses.values() if "content" in answer):
        if "itemSchema" in content.get(_EVENTS, {}):  # OpenAPI 3.2 has it, 3.1 has not
            content[_EVENTS] = {"schema": {"type": "string"}}
    asked = bool(operation.get("requestBody")) or any(one["in"] == "query" for one in operation.get("parameters", ()))
    operation["responses"] = errors_of(route, asked=asked) | responses
    if route.public:
        operation["security"] = []
        return
    roles = [route.scope.value] if route.scope else []
    cookie = {"sessionCookie": roles} | ({} if method in _SAFE else {"csrfToken": []})
    operation["security"] = [{"bearer": roles}, {"apiKey": roles}, cookie, {"clientCertificate": roles}]
    if route.scope:
        text = operation.get("description", "")
        operation["description"] = f"{text}\n\nNeeds the scope `{route.scope.value}`.".strip()


@cache
def _read(package: str, name: str) -> bytes:
    return (resources.files(package) / name).read_bytes()
