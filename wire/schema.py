"""How do Envoy's betterproto dataclasses become protobuf classes that parse in microseconds?

envoy-data-plane ships Envoy's schema as betterproto2 dataclasses. As a codec they cost 420 µs for a CheckRequest;
protobuf's C codec (upb) costs 2 µs, but needs descriptors. The dataclasses carry all that a descriptor holds (field
numbers, types, maps, oneofs), so descriptors are built from them here, at import, in a private pool: nothing is
generated, vendored or registered globally (docs/adr/0001-upb-codec-from-betterproto-schema.md).

Enums are carried as int32, which is the same on the wire (https://protobuf.dev/programming-guides/proto3/#enum).
"""

import dataclasses
import typing
from collections.abc import Iterable, Iterator

import betterproto2
from envoy_data_plane.message_pool import default_message_pool
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto
from google.protobuf.message import Message

PACKAGE = "inference_gateway.wire"
_TYPE_URL_PREFIX = "type.googleapis.com/"

BetterprotoType = type[betterproto2.Message]


def build_classes(roots: Iterable[BetterprotoType]) -> dict[BetterprotoType, type[Message]]:
    """Build a protobuf class for each root dataclass and for every message it reaches."""
    reached = _reachable(roots)
    file = descriptor_pb2.FileDescriptorProto(name="inference_gateway/wire.proto", package=PACKAGE, syntax="proto3")
    for dataclass in reached:
        file.message_type.append(_descriptor(dataclass))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        dataclass: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{_name(dataclass)}"))
        for dataclass in reached
    }


def message_fields(dataclass: BetterprotoType) -> dict[str, BetterprotoType]:
    """The fields of a dataclass that hold messages (alone, repeated, or as a map's values), with their types."""
    hints = typing.get_type_hints(dataclass)
    found = {}
    for field in _fields(dataclass):
        meta = betterproto2.FieldMetadata.get(field)
        value = meta.map_meta[1] if meta.map_meta else meta
        if value.proto_type != betterproto2.TYPE_MESSAGE:
            continue
        # A wrapped message (Timestamp, Duration, UInt32Value ...) shows as a plain Python type; `unwrap` tells which.
        found[field.name] = value.unwrap() if value.unwrap else _message_in(hints[field.name])
    return found


def _fields(dataclass: BetterprotoType) -> tuple[dataclasses.Field[object], ...]:
    # betterproto2.Message is not declared a dataclass, though every subclass is one.
    return dataclasses.fields(dataclass)  # type: ignore[arg-type]


def _reachable(roots: Iterable[BetterprotoType]) -> list[BetterprotoType]:
    seen: dict[BetterprotoType, None] = {}
    waiting = list(roots)
    while waiting:
        dataclass = waiting.pop()
        if dataclass not in seen:
            seen[dataclass] = None
            waiting.extend(message_fields(dataclass).values())
    return list(seen)


def _message_in(hint: object) -> BetterprotoType:
    return next(found for found in _leaves(hint) if issubclass(found, betterproto2.Message))


def _leaves(hint: object) -> Iterator[type]:
    arguments = typing.get_args(hint)
    if not arguments and isinstance(hint, type):
        yield hint
    for argument in arguments:
        yield from _leaves(argument)


def _name(dataclass: BetterprotoType) -> str:
    url = default_message_pool.type_to_url[dataclass]
    return url.removeprefix(_TYPE_URL_PREFIX).replace(".", "_")


def _descriptor(dataclass: BetterprotoType) -> DescriptorProto:
    descriptor = DescriptorProto(name=_name(dataclass))
    messages = message_fields(dataclass)
    oneofs: dict[str, int] = {}
    for field in _fields(dataclass):
        meta = betterproto2.FieldMetadata.get(field)
        added = descriptor.field.add()
        if meta.map_meta is not None:
            _fill_map(descriptor, added, field.name, meta)
            _fill_map_entry(descriptor.nested_type[-1], meta.map_meta, messages.get(field.name))
            continue
        _fill(added, field.name, meta, messages.get(field.name))
        if meta.group:
            added.oneof_index = oneofs.setdefault(meta.group, len(oneofs))
    for group in oneofs:
        descriptor.oneof_decl.add(name=group)
    _declare_presence(descriptor, dataclass)
    return descriptor


def _fill(
    field: FieldDescriptorProto, name: str, meta: betterproto2.FieldMetadata, kind: BetterprotoType | None
) -> None:
    field.name = name
    field.number = meta.number
    field.label = FieldDescriptorProto.LABEL_REPEATED if meta.repeated else FieldDescriptorProto.LABEL_OPTIONAL
    if kind is not None:
        field.type = FieldDescriptorProto.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{_name(kind)}"
    elif meta.proto_type == betterproto2.TYPE_ENUM:
        field.type = FieldDescriptorProto.TYPE_INT32
    else:
        field.type = FieldDescriptorProto.Type.Value(f"TYPE_{meta.proto_type.upper()}")


def _fill_map(owner: DescriptorProto, field: FieldDescriptorProto, name: str, meta: betterproto2.FieldMetadata) -> None:
    entry_name = "".join(part.capitalize() for part in name.split("_")) + "Entry"
    owner.nested_type.add(name=entry_name).options.map_entry = True
    field.name = name
    field.number = meta.number
    field.label = FieldDescriptorProto.LABEL_REPEATED
    field.type = FieldDescriptorProto.TYPE_MESSAGE
    field.type_name = f".{PACKAGE}.{owner.name}.{entry_name}"


def _fill_map_entry(
    entry: DescriptorProto,
    metas: tuple[betterproto2.FieldMetadata, betterproto2.FieldMetadata],
    value: BetterprotoType | None,
) -> None:
    _fill(entry.field.add(), "key", metas[0], None)
    _fill(entry.field.add(), "value", metas[1], value)


def _declare_presence(descriptor: DescriptorProto, dataclass: BetterprotoType) -> None:
    """`optional` scalars of proto3 know unset from zero through a oneof of their own (the "synthetic oneof")."""
    by_name = {field.name: field for field in descriptor.field}
    for field in _fields(dataclass):
        meta = betterproto2.FieldMetadata.get(field)
        scalar = by_name[field.name].type != FieldDescriptorProto.TYPE_MESSAGE
        if meta.optional and scalar and not meta.group:
            by_name[field.name].proto3_optional = True
            by_name[field.name].oneof_index = len(descriptor.oneof_decl)
            descriptor.oneof_decl.add(name=f"_{field.name}")
