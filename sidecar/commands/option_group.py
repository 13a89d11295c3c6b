"""How does a command take more options than a function should have parameters? As one value that holds them.

    @dataclass(frozen=True, kw_only=True)
    class Wanted:
        name: Annotated[str, typer.Option()]
        colour: Annotated[str | None, typer.Option()] = None

    @app.command("paint")
    @grouped
    def paint(wanted: Wanted, *, as_json: AsJson = False) -> None: ...

is the command `paint --name NAME [--colour COLOUR] [--json]`.
"""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Iterator
from inspect import Parameter
from typing import Any


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Give typer a command in which each field of a dataclass among the parameters is a parameter of its own."""
    parameters = list(inspect.signature(command, eval_str=True).parameters.values())
    groups: dict[str, type[Any]] = {
        parameter.name: parameter.annotation for parameter in parameters if _is_group(parameter.annotation)
    }

    @functools.wraps(command)
    def called(**options: Any) -> None:
        for name, group in groups.items():
            options[name] = group(**{field.name: options.pop(field.name) for field in dataclasses.fields(group)})
        command(**options)

    shown = [one for parameter in parameters for one in _expanded(parameter, groups.get(parameter.name))]
    # Typer reads both.
    called.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return called


def _is_group(annotation: object) -> bool:
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


def _expanded(parameter: Parameter, group: type[Any] | None) -> Iterator[Parameter]:
    if group is None:
        yield parameter.replace(kind=Parameter.KEYWORD_ONLY)
        return
    hints = typing.get_type_hints(group, include_extras=True)
    for field in dataclasses.fields(group):
        default = Parameter.empty if field.default is dataclasses.MISSING else field.default
        yield Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name])
