"""Where is the routing policy that a person means: on the command line, or in a file?"""

from pathlib import Path
from typing import Annotated

import typer

from store.field_error import FieldError

FIELD = "--routing-policy"
_LONGEST = 64 * 1024

Policy = Annotated[
    str | None,
    typer.Option(FIELD, metavar="JSON", help="The policy for the Router: JSON, or @ and the name of a file with it."),
]


def read_policy(given: str | None) -> str | None:
    """Return the JSON text; raises `FieldError` for a file that cannot be read."""
    if given is None or not given.startswith("@"):
        return given
    path = Path(given.removeprefix("@"))
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(_LONGEST)  # of a device there is no end
    except OSError as error:
        raise FieldError(FIELD, f"cannot read {path}: {error.strerror}") from None
    except ValueError:  # not UTF-8, or a name that no file can have
        raise FieldError(FIELD, f"{path} is not a file of text") from None
