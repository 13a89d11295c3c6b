"""How is an answer compressed? Piece by piece, each flushed, so that an event can be read as soon as it is written."""

import zlib
from collections.abc import Mapping
from enum import StrEnum
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

HEADER = "x-demo-encoding"
_GZIP_WINDOW = 16 + zlib.MAX_WBITS  # zlib: 16 on top asks for gzip's header and trailer


class Encoding(StrEnum):
    """The codings of RFC 9110 section 8.4.1, RFC 7932 and RFC 8878."""

    GZIP = "gzip"
    BROTLI = "br"
    ZSTD = "zstd"


class Compressor(Protocol):
    """Compresses one answer; what each call gives can be read without the next."""

    def take(self, data: bytes) -> bytes:
        """Compress a piece."""
        ...

    def finish(self) -> bytes:
        """What ends the answer."""
        ...


_PACKAGES = {Encoding.BROTLI: "brotli", Encoding.ZSTD: "zstandard"}


def read_encoding(text: str) -> Encoding:
    """Read the steering header; `ValueError` for what is unknown or not installed."""
    found = Encoding(text)
    package = _PACKAGES.get(found)
    if package is not None and find_spec(package) is None:
        raise ValueError(text)
    return found


def asked_encoding(headers: Mapping[str, str]) -> Encoding | None:
    """The encoding that the headers of a request ask for; None for one that cannot be had."""
    text = headers.get(HEADER)
    try:
        return None if text is None else read_encoding(text)
    except ValueError:
        return None


def compressor(encoding: Encoding | None) -> Compressor:
    """Return a compressor; without an encoding one that changes nothing."""
    return _PLAIN if encoding is None else _COMPRESSORS[encoding]()


def encoding_header(encoding: Encoding | None) -> dict[str, str]:
    """The header that says how an answer is compressed."""
    return {} if encoding is None else {"Content-Encoding": encoding.value}


class _Plain:
    def take(self, data: bytes) -> bytes:
        return data

    def finish(self) -> bytes:
        return b""


class _Gzip:
    def __init__(self) -> None:
        self._inner = zlib.compressobj(wbits=_GZIP_WINDOW)

    def take(self, data: bytes) -> bytes:
        return self._inner.compress(data) + self._inner.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        return self._inner.flush()


class _Brotli:
    def __init__(self) -> None:
        self._inner: Any = import_module("brotli").Compressor(quality=4)

    def take(self, data: bytes) -> bytes:
        return bytes(self._inner.process(data) + self._inner.flush())

    def finish(self) -> bytes:
        return bytes(self._inner.finish())


class _Zstd:
    def __init__(self) -> None:
        self._package: Any = import_module("zstandard")
        self._inner = self._package.ZstdCompressor().compressobj()

    def take(self, data: bytes) -> bytes:
        return bytes(self._inner.compress(data) + self._inner.flush(self._package.COMPRESSOBJ_FLUSH_BLOCK))

    def finish(self) -> bytes:
        return bytes(self._inner.flush())


_PLAIN = _Plain()
_COMPRESSORS: dict[Encoding, type[_Gzip | _Brotli | _Zstd]] = {
    Encoding.GZIP: _Gzip,
    Encoding.BROTLI: _Brotli,
    Encoding.ZSTD: _Zstd,
}
