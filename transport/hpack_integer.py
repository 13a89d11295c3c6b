"""How does HPACK write an integer? RFC 7541 section 5.1.

It begins in the low bits of a byte, `bits` being that byte's mask (0x7F for seven of them), and goes on in further
bytes when all of those are set.
"""

from transport.error_code import CompressionFault

# Integers "that exceed implementation limits -- in value or octet length -- MUST be treated as decoding errors".
_LARGEST = 2**32
_SHIFTS = (0, 7, 14, 21, 28)
_CONTINUED, _SEVEN_BITS = 0x80, 0x7F


def read(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """The integer there, and where it ends; raises IndexError when the block ends first."""
    value = block[at] & bits
    if value < bits:
        return value, at + 1
    for shift in _SHIFTS:
        at += 1
        byte = block[at]
        value += (byte & _SEVEN_BITS) << shift
        if byte < _CONTINUED:
            break
    else:
        raise CompressionFault("an integer has too many bytes")
    if value > _LARGEST:
        raise CompressionFault(f"an integer of {value}")
    return value, at + 1


def write(value: int, bits: int, pattern: int = 0) -> bytes:
    """The integer, after a pattern in the first byte's other bits."""
    if value < bits:
        return bytes((pattern | value,))
    written = bytearray((pattern | bits,))
    value -= bits
    while value >= _CONTINUED:
        written.append(value & _SEVEN_BITS | _CONTINUED)
        value >>= 7
    written.append(value)
    return bytes(written)
