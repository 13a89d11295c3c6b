"""Which paths does the gateway serve, and what does each ask of its caller? What is not here is refused."""

from dataclasses import dataclass
from enum import Enum, StrEnum

from authz.scope import Scope


class Dialect(StrEnum):
    """Whose request and response shapes a path speaks."""

    OPENAI_CHAT = "openai_chat"
    OPENAI_COMPLETIONS = "openai_completions"
    OPENAI_EMBEDDINGS = "openai_embeddings"
    OPENAI_RESPONSES = "openai_responses"
    ANTHROPIC_MESSAGES = "anthropic_messages"
    INFER = "infer"
    PLAIN = "plain"  # no body that the gateway reads


class Upstream(Enum):
    """Who answers a path."""

    ENVOY = "envoy"
    ROUTER = "router"
    CONTROL = "control"  # the gateway's own HTTP API


class Limited(Enum):
    """Which limits a request runs under."""

    ALL = "all"  # requests, tokens, concurrency: ext_proc takes room for it
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Route:
    """One path and method of the gateway. A segment of the path like `{id}` stands for any one segment.

    Equal only to itself: it is part of a cache's key.
    """

    method: str
    path: str
    upstream: Upstream
    dialect: Dialect = Dialect.PLAIN
    public: bool = False
    """Whether anybody may call it, without a credential."""
    scope: Scope | None = None
    """What the caller must hold; None: any principal may."""
    limited: Limited = Limited.NONE
    certificate_required: bool = False
    """Whether a client certificate must accompany every other credential."""


def _inference(path: str, scope: Scope, dialect: Dialect) -> Route:
    return Route(method="POST", path=path, upstream=Upstream.ROUTER, dialect=dialect, scope=scope, limited=Limited.ALL)


def _control(method: str, path: str, scope: Scope) -> Route:
    return Route(method=method, path=path, upstream=Upstream.CONTROL, scope=scope)


ROUTES: tuple[Route, ...] = (
    _inference("/v1/infer", Scope.INFERENCE_TEXT, Dialect.INFER),
    _inference("/v1/chat/completions", Scope.INFERENCE_TEXT, Dialect.OPENAI_CHAT),
    _inference("/v1/completions", Scope.INFERENCE_TEXT, Dialect.OPENAI_COMPLETIONS),
    _inference("/v1/responses", Scope.INFERENCE_TEXT, Dialect.OPENAI_RESPONSES),
    _inference("/v1/messages", Scope.INFERENCE_TEXT, Dialect.ANTHROPIC_MESSAGES),
    _inference("/v1/embeddings", Scope.INFERENCE_EMBEDDINGS, Dialect.OPENAI_EMBEDDINGS),
    Route(method="GET", path="/v1/models", upstream=Upstream.ROUTER, scope=Scope.MODELS_READ),
    Route(method="GET", path="/v1/limits", upstream=Upstream.CONTROL),
    Route(method="POST", path="/v1/sessions", upstream=Upstream.CONTROL),
    Route(method="GET", path="/v1/sessions", upstream=Upstream.CONTROL),
    Route(method="DELETE", path="/v1/sessions", upstream=Upstream.CONTROL),
    Route(method="DELETE", path="/v1/sessions/{id}", upstream=Upstream.CONTROL),
    _control("GET", "/v1/requests", Scope.REQUESTS_READ),
    _control("GET", "/v1/requests/{id}", Scope.REQUESTS_READ),
    _control("GET", "/v1/requests/{id}/events", Scope.REQUESTS_READ),
    _control("GET", "/ws/inference/{id}", Scope.REQUESTS_READ),
    _control("POST", "/v1/requests/{id}/cancel", Scope.REQUESTS_CANCEL),
    _control("DELETE", "/v1/infer/{id}", Scope.REQUESTS_CANCEL),
    _control("POST", "/v1/responses/{id}/cancel", Scope.REQUESTS_CANCEL),
    _control("GET", "/v1/usage", Scope.USAGE_READ),
    _control("GET", "/v1/webhooks", Scope.ADMIN),
    _control("POST", "/v1/webhooks", Scope.ADMIN),
    _control("GET", "/v1/webhooks/{id}", Scope.ADMIN),
    _control("DELETE", "/v1/webhooks/{id}", Scope.ADMIN),
    _control("POST", "/v1/webhooks/{id}/replay", Scope.ADMIN),
    Route(method="GET", path="/.well-known/jwks.json", upstream=Upstream.CONTROL, public=True),
    Route(method="GET", path="/openapi.json", upstream=Upstream.CONTROL, public=True),
    Route(method="GET", path="/docs", upstream=Upstream.CONTROL, public=True),
    Route(method="GET", path="/docs/{asset}", upstream=Upstream.CONTROL, public=True),
    Route(method="GET", path="/healthz", upstream=Upstream.ENVOY, public=True),
)
LIMITED_PATHS = tuple(dict.fromkeys(route.path for route in ROUTES if route.limited is Limited.ALL))
_BY_PATH = {path: tuple(route for route in ROUTES if route.path == path) for path in (route.path for route in ROUTES)}
_TEMPLATES = {path: routes for path, routes in _BY_PATH.items() if "{" in path}


def at(target: str) -> tuple[Route, ...]:
    """The routes of a request target, one a method; empty when there is nothing. Its query does not matter."""
    path = target.partition("?")[0]
    found = _BY_PATH.get(path)
    if found is not None:
        return found if "{" not in path else ()
    segments = path.split("/")
    for template, routes in _TEMPLATES.items():
        if _matches(template.split("/"), segments):
            return routes
    return ()


def dialect_of(target: str) -> Dialect:
    """The dialect of a request target, for an answer that knows nothing else of it."""
    found = at(target)
    if found:
        return found[0].dialect
    # Paths of Anthropic's API that the gateway does not serve; Envoy's local replies go by the same prefix.
    return Dialect.ANTHROPIC_MESSAGES if target.startswith("/v1/messages") else Dialect.PLAIN


def _matches(template: list[str], segments: list[str]) -> bool:
    return len(template) == len(segments) and all(
        bool(segment) if part.startswith("{") else part == segment
        for part, segment in zip(template, segments, strict=True)
    )
