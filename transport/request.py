"""Is a list of header fields a request, and which? RFC 9113 sections 8.2 and 8.3."""

import re
from dataclasses import dataclass
from typing import Any

Fields = tuple[tuple[bytes, bytes], ...]
"""Names and values, in their order."""

_PSEUDO = frozenset({b":method", b":scheme", b":path", b":authority"})
# Section 8.2.2.
_OF_CONNECTIONS = frozenset({b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"})
# Section 8.2.1; a colon begins a pseudo-header field, and stands nowhere else.
_NAME = re.compile(rb":?[\x21-\x39\x3b-\x40\x5b-\x7e]+")
_VALUE = re.compile(rb"(?:[^\x00\x0a\x0d\x20\x09](?:[^\x00\x0a\x0d]*[^\x00\x0a\x0d\x20\x09])?)?")
_DIGITS = re.compile(rb"[0-9]{1,18}")
_NAMED = (
    *(b":method", b":path", b":scheme", b":authority"),
    *(b"content-type", b"content-length", b"grpc-timeout", b"grpc-encoding", b"te"),
)
_MOST_KNOWN = 256


class Malformed(Exception):
    """A stream error of PROTOCOL_ERROR (section 8.1.1)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """The fields that gRPC gives a meaning; absent ones are empty, or None.

    What says the same on one connection is one object: whoever derives something from it may look that up.
    """

    method: bytes
    path: bytes
    content_type: bytes = b""
    content_length: int | None = None
    timeout: bytes = b""
    encoding: bytes = b""


class Requests:
    """Reads lists of fields. What it has read before it knows again: a peer says nearly the same each time.

    Lists that differ in one value, such as a trace's id, cost what that value costs.
    """

    def __init__(self) -> None:
        self._by_fields: dict[Fields, Request] = {}
        self._by_named: dict[tuple[bytes | None, ...], Request] = {}
        self._named_at: dict[tuple[bytes, ...], tuple[int | None, ...]] = {}
        self._values: set[bytes] = set()

    def read(self, fields: Fields) -> Request:
        """The request that the fields are. Raises Malformed."""
        found = self._by_fields.get(fields)
        if found is None:
            found = self._read(fields)
            _make_room(self._by_fields)
            self._by_fields[fields] = found
        return found

    def _read(self, fields: Fields) -> Request:
        for _, value in fields:
            if value not in self._values:
                self._require_value(value)
        names = tuple([name for name, _ in fields])
        places = self._named_at.get(names)
        if places is None:
            places = _places(names)
            _make_room(self._named_at)
            self._named_at[names] = places
        named = tuple([None if at is None else fields[at][1] for at in places])
        found = self._by_named.get(named)
        if found is None:
            found = _request(named)
            _make_room(self._by_named)
            self._by_named[named] = found
        return found

    def _require_value(self, value: bytes) -> None:
        if _VALUE.fullmatch(value) is None:
            raise Malformed("a value that no field may have")
        _make_room(self._values)
        self._values.add(value)


def may_be_trailers(fields: Fields) -> bool:
    """Whether the fields may end a request's body (section 8.1)."""
    return all(
        _VALUE.fullmatch(value) is not None
        and _NAME.fullmatch(name) is not None
        and name[:1] != b":"
        and name not in _OF_CONNECTIONS
        for name, value in fields
    )


def _make_room(known: "dict[Any, Any] | set[Any]") -> None:
    if len(known) >= _MOST_KNOWN:
        known.clear()


def _places(names: tuple[bytes, ...]) -> tuple[int | None, ...]:
    """Where the fields with a meaning stand in a list of these names. Raises Malformed."""
    regular = False
    for at, name in enumerate(names):
        if _NAME.fullmatch(name) is None:
            raise Malformed(f"the name {name!r}")
        if name in _OF_CONNECTIONS:
            raise Malformed(f"{name!r} is of a connection")
        if name[:1] != b":":
            regular = True
        elif regular or name not in _PSEUDO or name in names[:at]:
            raise Malformed(f"{name!r} is unknown, late or twice")
    if names.count(b"content-length") > 1 or names.count(b"te") > 1:
        raise Malformed("content-length or te twice")
    return tuple(names.index(name) if name in names else None for name in _NAMED)


def _request(named: tuple[bytes | None, ...]) -> Request:
    method, path, scheme, authority, content_type, content_length, timeout, encoding, te = named
    if te is not None and te.lower() != b"trailers":
        raise Malformed("te is of a connection")
    if method == b"CONNECT":
        if path is not None or scheme is not None or not authority:
            raise Malformed("CONNECT with a path, or without an authority")
    elif not method or not scheme or not path:
        raise Malformed("no :method, no :scheme or no :path")
    if content_length is not None and _DIGITS.fullmatch(content_length) is None:
        raise Malformed("content-length")
    return Request(
        method=method,
        path=path or b"",
        content_type=content_type or b"",
        content_length=None if content_length is None else int(content_length),
        timeout=timeout or b"",
        encoding=encoding or b"",
    )
