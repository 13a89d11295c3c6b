"""How do bytes of a fuzzer decide what is tried? Read in their order, so that a small change of them stays small."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

_Value = TypeVar("_Value")


class Choices:
    """Decisions taken from bytes. When they are used up, each decision is the first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether there is another byte."""
        return self._at < len(self._data)

    def byte(self) -> int:
        at = self._at
        self._at = at + 1
        return self._data[at] if at < len(self._data) else 0

    def below(self, bound: int) -> int:
        """A number from 0, of at most 256."""
        return self.byte() % bound

    def yes(self) -> bool:
        return self.byte() & 1 == 1

    def pick(self, values: Sequence[_Value]) -> _Value:
        return values[self.byte() % len(values)]

    def take(self, most: int) -> bytes:
        """Some bytes as they are, fewer than that."""
        size = self.byte() % most
        at = self._at
        self._at = at + size
        return self._data[at : at + size]

    def rest(self) -> bytes:
        at = self._at
        self._at = len(self._data)
        return self._data[at:]


def pieces(data: bytes, sizes: bytes) -> Iterator[bytes]:
    """The data cut into pieces of these sizes, and one more each, over and over."""
    at = turn = 0
    while at < len(data):
        size = 1 + (sizes[turn % len(sizes)] if sizes else 0)
        yield data[at : at + size]
        at += size
        turn += 1
