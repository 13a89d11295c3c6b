"""Instances of Envoy's betterproto dataclasses, filled in every way their schema allows."""

import dataclasses
import random
import typing
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import betterproto2
from envoy_data_plane.google.protobuf import Duration, Timestamp

from wire.schema import message_fields

Dataclass = type[betterproto2.Message]

# The ends of each type, and something between.
SCALARS: dict[str, tuple[Any, ...]] = {
    "bool": (True, False),
    "int32": (-(2**31), -1, 1, 2**31 - 1),
    "int64": (-(2**63), -1, 1, 2**63 - 1),
    "uint32": (1, 2**31, 2**32 - 1),
    "uint64": (1, 2**63, 2**64 - 1),
    "double": (-1.5, 5e-324, 1.7976931348623157e308, float("inf"), 2.0**53),
    "string": ("x", "\N{SNOWMAN}\0\n", "y" * 300),
    "bytes": (b"x", bytes(range(256)), b"\xff" * 300),
}
EMPTY = {"bool": False, "double": 0.0, "string": "", "bytes": b""}
DEEPEST = 4


class Filling:
    """Makes instances. `chance` is how likely a field is set; below `DEEPEST` none is."""

    def __init__(self, seed: int, *, chance: float = 1.0) -> None:
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._chance = chance

    def instance(self, dataclass: Dataclass, *, depth: int = 0, only: str | None = None) -> Any:
        """An instance; of a oneof, `only` names the member to set."""
        hints, messages = typing.get_type_hints(dataclass), message_fields(dataclass)
        chosen = self._chosen(dataclass, only)
        values = {}
        for field in dataclasses.fields(dataclass):  # type: ignore[arg-type]
            meta = betterproto2.FieldMetadata.get(field)
            is_recursive = field.name in messages and depth >= DEEPEST
            unset = field.name not in chosen if meta.group else self._random.random() >= self._chance
            if not unset and not is_recursive:
                values[field.name] = self._value(meta, hints[field.name], messages.get(field.name), depth)
        return dataclass(**values)

    def _chosen(self, dataclass: Dataclass, only: str | None) -> set[str]:
        chosen = {self._random.choice(members) for members in oneofs(dataclass).values()}
        if only is None:
            return {member for member in chosen if self._random.random() < self._chance}
        group = next(name for name, members in oneofs(dataclass).items() if only in members)
        return chosen - set(oneofs(dataclass)[group]) | {only}

    def _value(self, meta: betterproto2.FieldMetadata, hint: object, message: Dataclass | None, depth: int) -> Any:
        if meta.map_meta is not None:
            return {
                self._scalar(meta.map_meta[0], hint): self._single(meta.map_meta[1], hint, message, depth)
                for _ in range(2)
            }
        if meta.repeated:
            return [self._single(meta, hint, message, depth) for _ in range(3)]
        return self._single(meta, hint, message, depth)

    def _single(self, meta: betterproto2.FieldMetadata, hint: object, message: Dataclass | None, depth: int) -> Any:
        if message is None:
            return self._scalar(meta, hint)
        if meta.unwrap is not None:
            return self._unwrapped(message)
        return self.instance(message, depth=depth + 1)

    def _scalar(self, meta: betterproto2.FieldMetadata, hint: object) -> Any:
        if meta.proto_type == betterproto2.TYPE_ENUM:
            return self._random.choice(list(_enum_in(hint)))
        if (meta.optional or meta.group) and self._random.random() < 1 / 4:
            return EMPTY.get(meta.proto_type, 0)  # set to its zero, which is not unset
        return self._random.choice(SCALARS[meta.proto_type])

    def _unwrapped(self, message: Dataclass) -> Any:
        """betterproto shows a wrapped message as a plain value."""
        if message is Timestamp:
            return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=self._random.randrange(10**15))
        if message is Duration:
            return timedelta(microseconds=self._random.randrange(10**12))  # betterproto errs below zero, by a second
        [value] = dataclasses.fields(message)  # type: ignore[arg-type]
        return self._random.choice(SCALARS[betterproto2.FieldMetadata.get(value).proto_type])


def oneofs(dataclass: Dataclass) -> dict[str, list[str]]:
    """The members of each oneof."""
    found: dict[str, list[str]] = {}
    for field in dataclasses.fields(dataclass):  # type: ignore[arg-type]
        if group := betterproto2.FieldMetadata.get(field).group:
            found.setdefault(group, []).append(field.name)
    return found


def instances(dataclass: Dataclass) -> Iterator[Any]:
    """Nothing set; all set, once for each member of each oneof; and a few at random."""
    yield dataclass()
    members = [member for group in oneofs(dataclass).values() for member in group]
    for seed, only in enumerate([None, *members]):
        yield Filling(seed).instance(dataclass, only=only)
    for seed in range(8):
        yield Filling(seed, chance=0.5).instance(dataclass)


def _enum_in(hint: object) -> Any:
    is_enum: Callable[[object], bool] = lambda leaf: isinstance(leaf, type) and issubclass(leaf, betterproto2.Enum)  # noqa: E731
    return next(leaf for leaf in [hint, *typing.get_args(hint)] if is_enum(leaf))
