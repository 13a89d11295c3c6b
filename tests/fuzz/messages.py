"""Do the messages of a body come out alike however it is cut, and are all octets that are held accounted for?"""

from dataclasses import dataclass

from tests.fuzz.choices import Choices, pieces
from transport.grpc_message import MessageFault, Messages, framed
from transport.grpc_status import Code

LONGEST = 64
_LIMITS = (0, 1, 5, 16, 64, 300, 2**32)
_PREFIX = 5
SEEDS = (
    b"\x05\x00\x00\x00\x00" + framed(b"one") + framed(b"") + framed(b"three"),
    b"\x04\x03\xff\x07\x01" + framed(b"x" * 40) + framed(b"y"),
    b"\x03\x10\x10\x10\x10" + framed(b"x") + b"\1\0\0\0\1x",
    b"\x06\x04\x04\x04\x04\0\xff\xff\xff\xff",
    b"\x02\x01\x08\x01\x08" + framed(b"12345") + framed(b"123456"),
)


@dataclass(slots=True)
class _Body:
    """What a body holds up to its first fault. Each message has the octet after it, the fault that after its prefix."""

    messages: list[tuple[int, bytes]]
    fault: Code | None = None
    fault_at: int = 2**62


def check(data: bytes) -> None:
    choices = Choices(data)
    limit = choices.pick(_LIMITS)
    sizes = bytes(choices.byte() for _ in range(4))
    content = choices.rest()
    body = _read(content, limit)
    held = 0

    def grew(octets: int) -> None:
        nonlocal held
        held += octets

    messages = Messages(limit, grew)
    arrived, known, taken = 0, 0, 0
    code: Code | None = None
    for piece in pieces(content, sizes):
        arrived += len(piece)
        try:
            found = messages.take(piece)
        except MessageFault as fault:
            code = fault.status.code
            break
        assert arrived < body.fault_at
        for message in found:
            known, expected = body.messages[taken]
            taken += 1
            assert message == expected
        assert held == arrived - known <= limit + _PREFIX
        assert taken == len(body.messages) or body.messages[taken][0] > arrived
    assert code == (body.fault if arrived >= body.fault_at else None)
    if code is None:
        _ends(messages, held)
    messages.forget()
    assert held == 0


def _read(content: bytes, limit: int) -> _Body:
    """The whole body at once, by the words of the protocol."""
    body, at = _Body([]), 0
    while len(content) - at >= _PREFIX:
        size = int.from_bytes(content[at + 1 : at + _PREFIX], "big")
        begin = at + _PREFIX
        if content[at] or size > limit:
            body.fault = Code.INTERNAL if content[at] else Code.RESOURCE_EXHAUSTED
            body.fault_at = begin
            break
        at = begin + size
        if at > len(content):
            break
        body.messages.append((at, content[begin:at]))
    return body


def _ends(messages: Messages, held: int) -> None:
    """A body may end between messages only."""
    code = None
    try:
        messages.end()
    except MessageFault as fault:
        code = fault.status.code
    assert code == (Code.INTERNAL if held else None)
