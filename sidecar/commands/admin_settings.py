"""Where do the administrative commands find the database? In the environment, or beside a running `up`.

`inference-gateway up` writes the variables of its own database into `admin.env` in its state folder, so that a person
can run `inference-gateway tenant list` beside it and set nothing.
"""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sidecar.settings import StoreSettings

STATE_VARIABLE = "GATEWAY_STATE"
DEFAULT_STATE = ".run"
ADMIN_ENV = "admin.env"
_DATABASE = "DATABASE_URL"
_REDIS = "REDIS_URL"
_PEPPER = "GATEWAY_KEY_PEPPER"
_ALLOW_PRIVATE = "GATEWAY_WEBHOOK_ALLOW_PRIVATE"


def store_settings() -> StoreSettings:
    """Read the settings; raises pydantic's `ValidationError`, see `complaints`."""
    return StoreSettings(**({} if os.environ.get(_DATABASE) else _written_by_up()))


def redis_url() -> str | None:
    """Where the limits are counted, for a command that can do without; None when it is not said."""
    # Counters belong to the database that names whose they are.
    return os.environ.get(_REDIS) or (None if os.environ.get(_DATABASE) else _admin_env().get(_REDIS))


def read_admin_env(path: Path) -> Mapping[str, str]:
    """Read lines like NAME=value or export NAME='value'; a file that cannot be read holds none."""
    try:
        words = shlex.split(path.read_text(), comments=True)
    except (OSError, ValueError):  # not there, not ours, not text, an open quote
        return {}
    return dict(word.split("=", 1) for word in words if "=" in word)


def _written_by_up() -> Mapping[str, Any]:
    written = _admin_env()
    # The pepper belongs to the database: one from elsewhere would make keys that open nothing.
    fields = {_DATABASE: _DATABASE, _PEPPER: "key_pepper", _ALLOW_PRIVATE: "webhook_allow_private"}
    return {field: written[name] for name, field in fields.items() if name in written}


def _admin_env() -> Mapping[str, str]:
    return read_admin_env(Path(os.environ.get(STATE_VARIABLE) or DEFAULT_STATE) / ADMIN_ENV)


def complaints(error: ValidationError) -> list[str]:
    """Say what is wrong with the settings, one line each, by the name of the variable; values are not shown."""
    return [_complaint(details["loc"], details["msg"]) for details in error.errors(include_input=False)]


def _complaint(location: tuple[int | str, ...], message: str) -> str:
    reason = message.removeprefix("Value error, ")
    if not location:
        return reason
    name = str(location[0])
    variable = name if name.isupper() else f"GATEWAY_{name.upper()}"
    if reason == "Field required":
        reason = "not set"
    if variable == _DATABASE:
        reason += "; for example postgresql://user:password@localhost:5432/gateway"
    return f"{variable}: {reason}"
