"""Which pages and pictures are made from the code? Pure functions, a file's name to its text; run, it writes them all.

`python -m tests.docs.generate`; test_generated.py fails while a page is stale.
"""

import sys
from collections.abc import Callable
from enum import EnumType
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from prometheus_client import Counter, Gauge, Histogram
from pydantic import AliasChoices, HttpUrl, SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from authz.refusal import Reason
from sidecar import metrics
from sidecar.envoy_config import shipped
from sidecar.settings import Settings, StoreSettings, UpSettings
from tests.docs.events_page import events
from tests.docs.lifecycle_page import lifecycle
from tests.docs.page import page, table
from tests.docs.plots import plots
from transport.address import TcpAddress

DOCS = Path(__file__).parents[2] / "docs"
SECTIONS: tuple[tuple[str, str, type[BaseSettings], type[BaseSettings] | None], ...] = (
    (
        "The administrative commands",
        (
            "`inference-gateway migrate`, `organization`, `tenant`, `plan`, `limits`, `model`, `role`, `key`, "
            "`workload`, `subject`, `webhook`, `signing-key`, `audit`, `requests`, `cancel`, `usage`, `ledger` and "
            "`reconcile`. Without `DATABASE_URL` they read `admin.env` in `GATEWAY_STATE` (`.run`), which a running "
            "`inference-gateway up` writes. `limits`, `requests`, `cancel`, `ledger` and `reconcile` read `REDIS_URL` "
            "and `GATEWAY_REDIS_CLUSTER` too."
        ),
        StoreSettings,
        None,
    ),
    ("`inference-gateway serve`", "These, and those above.", Settings, StoreSettings),
    (
        "`inference-gateway up` (`make run`)",
        (
            "It makes the settings of its own `serve`: databases, pepper, folder of the sockets, no drain and a quota "
            "deadline of 0.5 seconds. The other settings of `serve` pass through, such as `GATEWAY_SOCKET_MODE` and "
            "`GATEWAY_REPLICA`."
        ),
        UpSettings,
        None,
    ),
)


def errors() -> str:
    """Every reason of a refusal."""
    by_envoy = _codes_of_envoy()
    rows = [
        (
            f"`{reason.code}`",
            reason.status,
            f"`{reason.type}`",
            "yes" if reason.retryable else "",
            _speaker(reason, by_envoy),
            reason.message,
        )
        for reason in Reason
    ]
    return page(
        "Errors",
        "Every no of the gateway has this body; an answer of the Router, errors included, passes unchanged.",
        '    {"error": {"message": ..., "type": ..., "param": ..., "code": ..., "details": {...},\n'
        '               "request_id": ..., "timestamp": ...}}',
        "`code` is one of those below: it is also the `outcome` of the metrics. `type` is what OpenAI's SDKs know. "
        "`param` names the field or header that is wrong. `details` of an exceeded limit are `limit`, `per`, `unit`, "
        "`ceiling`, `used` and `window`, with `seconds`, `time_zone`, `burst`, `route`, `model` and `demanded` where "
        "they apply; of a wrong method, `allow`. `message` may be more particular than the one in the table.",
        "With a time to wait come `retry-after`, in whole seconds, rounded up, and `retry-after-ms`. Envoy's own "
        "answers say `retry-after: 1` with 503 and nothing with the others. How limits stand is told in headers "
        "beside them ([quota.md](quota.md#what-a-client-is-told)).",
        "Unknown, wrong, expired and revoked keys look alike, on purpose.",
        table(("code", "status", "type", "worth retrying", "said by", "message"), rows),
    )


def metrics_page() -> str:
    """Every metric that `sidecar.metrics` declares."""
    found = [metric for metric in vars(metrics).values() if isinstance(metric, Counter | Gauge | Histogram)]
    rows = [(f"`{_sample_name(metric)}`", _kind(metric), _labels(metric), metric._documentation) for metric in found]
    return page(
        "Metrics",
        "At `/metrics` on `GATEWAY_OPS_PORT`, in Prometheus' text format, summed over all processes, which "
        "carry their counts over once a second. A tenant's id is never a label: their number is not bounded.",
        table(("name", "kind", "labels", "counts"), rows),
        f"`outcome` of checks is `{metrics.GRANTED}` or `{metrics.PUBLIC}`, of admissions `{metrics.ADMITTED}` or "
        f"`{metrics.REPLAYED}`, of both a code of [errors.md](errors.md); of a cancel `cancelled`, `cancelling` (it "
        "had not ended when its caller was answered), `ended` (before, otherwise) or `unknown`; of a stop at the "
        "Router `stopped`, `unknown` (there is none, or no such path), `failed` or `skipped` (too many waited); of "
        "webhooks `delivered`, `retried`, `dead` or `disabled`.",
        "`state` and `cause` are in [lifecycle.md](lifecycle.md). `usage_source` is `exact` when the Router said both "
        "numbers or nothing was to be charged, otherwise `estimated`. `limit` is a limit's name, `mode` is `enforce` "
        "or `shadow`, `on_outage` the class that decided: they are explained in [quota.md](quota.md).",
    )


def settings() -> str:
    """Every setting, by the command that reads it."""
    parts = []
    for title, words, model, without in SECTIONS:
        inherited = without.model_fields if without is not None else {}
        rows = [_setting(model, name) for name in model.model_fields if name not in inherited]
        parts += [f"## {title}", words, table(("variable", "kind", "default", "what it is"), rows)]
    return page(
        "Settings",
        "Read once, from the environment. All that is wrong is told together, by the names of the variables.",
        *parts,
    )


PAGES: dict[str, Callable[[], str]] = {
    "errors.md": errors,
    "metrics.md": metrics_page,
    "settings.md": settings,
    "lifecycle.md": lifecycle,
    "events.md": events,
}


def made() -> dict[str, str]:
    """Every page and picture, by its path below docs/."""
    return {**{name: make() for name, make in PAGES.items()}, **plots()}


def _codes_of_envoy() -> set[str]:
    config = yaml.safe_load(shipped("envoy.yaml").read_text())
    manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    mappers = manager["local_reply_config"]["mappers"]
    return {mapper["body_format_override"]["json_format"]["error"]["code"] for mapper in mappers}


def _speaker(reason: Reason, by_envoy: set[str]) -> str:
    if reason is Reason.UNKNOWN_PATH:
        return "sidecar, Envoy"
    return "Envoy" if reason.code in by_envoy else "sidecar"


def _sample_name(metric: Counter | Gauge | Histogram) -> str:
    return f"{metric._name}_total" if isinstance(metric, Counter) else metric._name


def _kind(metric: Counter | Gauge | Histogram) -> str:
    return type(metric).__name__.lower()


def _labels(metric: Counter | Gauge | Histogram) -> str:
    return ", ".join(f"`{label}`" for label in metric._labelnames)


def _setting(model: type[BaseSettings], name: str) -> tuple[str, str, str, str]:
    field = model.model_fields[name]
    variable = _variable(model, name, field)
    description = field.description or ""
    return f"`{variable}`", _type(field), _default(field), description


def _variable(model: type[BaseSettings], name: str, field: FieldInfo) -> str:
    if isinstance(field.validation_alias, AliasChoices):
        return str(field.validation_alias.choices[0])
    return f"{model.model_config['env_prefix']}{name}".upper()


def _type(field: FieldInfo) -> str:
    kind = field.annotation
    if get_origin(kind) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(kind))
    if isinstance(kind, EnumType):
        return " or ".join(f"`{choice}`" for choice in kind)
    choices = get_args(kind) if get_origin(kind) in {Union, UnionType} else (kind,)
    return next(_named(choice) for choice in choices if choice is not NoneType) + _bounds(field)


def _named(kind: Any) -> str:
    # An alias such as Port stands in a union with its bounds around it.
    bare = get_args(kind)[0] if get_args(kind) else kind
    names = {SecretStr: "secret", Path: "path", HttpUrl: "URL", int: "integer", float: "number", str: "text"}
    return {**names, bool: "yes or no", TcpAddress: "address"}.get(bare, "JSON list")


def _bounds(field: FieldInfo) -> str:
    signs = {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "below {}"}
    found = [
        words.format(getattr(bound, sign))
        for bound in field.metadata
        for sign, words in signs.items()
        if hasattr(bound, sign)
    ]
    return f", {' '.join(found)}" if found else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None or field.default == () or field.default_factory is not None:
        return ""  # made at the start; the description says of what
    return f"`{field.default}`"


def main() -> None:
    """Write every page and picture."""
    for name, text in made().items():
        (DOCS / name).write_text(text)
        sys.stdout.write(f"docs/{name}\n")


if __name__ == "__main__":
    main()
