"""What does the Router say of its own limits? The headers of a model provider, for the gateway to keep back."""

from collections.abc import Mapping

_NAMES = (
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-limit-input-images",
    "anthropic-ratelimit-requests-limit",
    "anthropic-ratelimit-unified-5h-utilization",
    "ratelimit-limit",
)


def own_limits(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of an answer, when `x-demo-own-limit` asks for them."""
    limit = headers.get("x-demo-own-limit")
    if limit is None or not limit.isdecimal():
        return {}
    said = dict.fromkeys(_NAMES, limit)
    return said | {"ratelimit": f'"router";r={limit}', "ratelimit-policy": f'"router";q={limit}'}
