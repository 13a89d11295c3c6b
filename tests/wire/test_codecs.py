"""Two codecs, one schema: what betterproto writes upb reads, and the other way round, for every message."""

from typing import Any

import betterproto2
import pytest
from envoy_data_plane.envoy.service.auth import v3 as auth
from envoy_data_plane.envoy.service.ext_proc import v3 as ext_proc
from google.protobuf.unknown_fields import UnknownFieldSet

from tests.wire.filling import instances, oneofs
from wire.messages import CLASSES, ROOTS, CheckRequest, CheckResponse, ProcessingRequest, ProcessingResponse
from wire.schema import build_classes, message_fields

# Field 15000, a varint: in none of Envoy's messages.
UNKNOWN = b"\xc0\xa9\x07\x2a"
# Deprecated fields are part of the schema.
pytestmark = pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning")
MESSAGES = pytest.mark.parametrize("dataclass", list(CLASSES), ids=lambda dataclass: dataclass.__name__)


def _unknown_fields(message: Any) -> int:
    """How many fields of a message, at any depth, upb has no name for."""
    found = len(UnknownFieldSet(message))
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None:
                found += sum(_unknown_fields(value[key]) for key in value)
        else:
            found += sum(map(_unknown_fields, value if field.is_repeated else [value]))
    return found


@MESSAGES
def test_both_codecs_agree(dataclass: type[betterproto2.Message]) -> None:
    for instance in instances(dataclass):
        raw = bytes(instance)
        message: Any = CLASSES[dataclass].FromString(raw)
        assert _unknown_fields(message) == 0
        again = message.SerializeToString()
        assert len(again) == len(raw)
        assert dataclass.parse(again) == dataclass.parse(raw) == instance


@MESSAGES
def test_both_codecs_know_which_member_of_a_oneof_is_set(dataclass: type[betterproto2.Message]) -> None:
    for instance in instances(dataclass):
        message: Any = CLASSES[dataclass].FromString(bytes(instance))
        for group in oneofs(dataclass):
            assert (message.WhichOneof(group) or "") == betterproto2.which_one_of(instance, group)[0]


@MESSAGES
def test_a_field_of_a_newer_envoy_disturbs_neither(dataclass: type[betterproto2.Message]) -> None:
    for instance in instances(dataclass):
        raw = bytes(instance)
        message: Any = CLASSES[dataclass].FromString(raw + UNKNOWN)
        assert UNKNOWN in message.SerializeToString(), "passed on"
        message.DiscardUnknownFields()
        assert dataclass.parse(message.SerializeToString()) == instance


def test_an_enum_number_of_a_newer_envoy_is_kept() -> None:
    message = ProcessingResponse()
    message.immediate_response.status.code = 799
    again = ProcessingResponse.FromString(message.SerializeToString())
    assert again.immediate_response.status.code == 799
    parsed = ext_proc.ProcessingResponse.parse(message.SerializeToString())
    assert parsed.immediate_response is not None
    assert parsed.immediate_response.status is not None
    assert int(parsed.immediate_response.status.code) == 799


def test_every_message_that_is_reached_has_a_class_and_every_root_a_name() -> None:
    assert set(ROOTS) <= set(CLASSES)
    for dataclass in CLASSES:
        assert set(message_fields(dataclass).values()) <= set(CLASSES)
    assert isinstance(CheckRequest(), CLASSES[auth.CheckRequest])
    assert isinstance(ProcessingRequest(), CLASSES[ext_proc.ProcessingRequest])


def test_classes_can_be_built_twice_for_they_are_registered_nowhere() -> None:
    one, other = (build_classes([auth.CheckRequest])[auth.CheckRequest] for _ in range(2))
    assert one is not other
    assert other.FromString(one().SerializeToString()) is not None


def test_messages_in_a_row_are_merged_maps_included() -> None:
    # authz.wire.allow relies on it, and on Envoy's C++ reader doing the same.
    one, other = CheckResponse(), CheckResponse()
    one.dynamic_metadata.fields["grant"].string_value = "g"
    one.ok_response.headers.add().header.key = "a"
    other.dynamic_metadata.fields["arrival"].string_value = "a"
    merged = CheckResponse.FromString(one.SerializeToString() + other.SerializeToString())
    assert {name: value.string_value for name, value in merged.dynamic_metadata.fields.items()} == {
        "grant": "g",
        "arrival": "a",
    }
    assert len(merged.ok_response.headers) == 1


@pytest.mark.parametrize("raw", [b"\xff", b"\x0a\x05ab", b"\x00", b"<html>"])
def test_bytes_that_are_no_message_are_said_to_be_none(raw: bytes) -> None:
    with pytest.raises(Exception, match=r"[Pp]arsing"):
        CheckRequest.FromString(raw)
