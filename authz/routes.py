"""Which paths does the gateway serve, and what does each ask of its caller? What is not here is refused."""

from dataclasses import dataclass
from enum import StrEnum


class Dialect(StrEnum):
    """Whose request and response shapes a path speaks."""

    OPENAI_CHAT = "openai_chat"
    INFER = "infer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One path of the gateway."""

    path: str
    method: str
    dialect: Dialect


ROUTES: dict[str, Route] = {
    route.path: route
    for route in (
        Route(path="/v1/infer", method="POST", dialect=Dialect.INFER),
        Route(path="/v1/chat/completions", method="POST", dialect=Dialect.OPENAI_CHAT),
    )
}


def find(path_with_query: str) -> Route | None:
    """The route of a request target; its query does not matter."""
    return ROUTES.get(path_with_query.partition("?")[0])
