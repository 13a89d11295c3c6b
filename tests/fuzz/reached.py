"""Which inputs reach the differences between our server and h2? One each; the shortest that are known."""

from collections.abc import Mapping

REACHED: Mapping[str, bytes] = {
    "5.1.1: HEADERS on an even stream, before its block is whole": bytes.fromhex("0000000e080000000f000000"),
    "5.1: an increment of 0 for a closed stream is not looked at": bytes.fromhex(
        "00000000000000000000000b000000000c0000010b00"
    ),
    "5.1: the padding of DATA that is dropped is not looked at": bytes.fromhex(
        "00000000000101000000000600000000000006000800000000011f00"
    ),
    "5.1: the same, when there are as many streams as may be: h2 counts it as one more": bytes.fromhex(
        "0000000000010100000000060000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000e0000000000000000"
    ),
    "5.1: what comes for a stream that was reset is dropped; h2 says again that it was": bytes.fromhex(
        "00000000000101000000000600000000000006000000000000"
    ),
    "5.3.2: priorities are ignored, also of a stream that depends on itself": bytes.fromhex(
        "00000000002000000000010000"
    ),
    "6.2: padding may fill a HEADERS frame": bytes.fromhex("000000000000000000000000000a080000000000001f00"),
    "6.2: padding that leaves no room for the priority": bytes.fromhex(
        "000000000000000000000000000a28000000000000070000ff020a"
    ),
    "6.4: RST_STREAM of an idle stream": bytes.fromhex("00000000000000000000000b000f090000"),
    "6.5.3: every value of a SETTINGS counts, in its order": bytes.fromhex(
        "00000000000000000000000e00010703080300000000"
    ),
    "6.9: the reserved bit of an increment is ignored": bytes.fromhex("00000000000000000000000c0000011000"),
    "8.1.1: a content-length beyond all sizes": bytes.fromhex("000000000000000008050000"),
    "8.1.1: te or content-length twice": bytes.fromhex("0000000000000000080d0000"),
    "8.1.1: the request ends before its content-length is reached": bytes.fromhex("000000000001010008010000"),
    "8.1: te and content-length of trailers mean nothing": bytes.fromhex("000000000000000000000000000a000000080b0000"),
    "8.3.1: a request without :authority and host, or with two that differ, is for the handler": bytes.fromhex(
        "00000000000000000d030000"
    ),
    "8.3.1: an empty :method or :scheme": bytes.fromhex("00000000000000000e000000"),
    "8.3: a cookie before the pseudo-header fields; h2 moves it before it looks": bytes.fromhex(
        "00000000000000000c00090000"
    ),
    "8.4: PUSH_PROMISE, before its block is whole": bytes.fromhex("00000000000000000000000f000500ff0002"),
    "8.5: CONNECT without :authority": bytes.fromhex("000000000a0000000e010000"),
    "RFC 7838 section 4: a server ignores ALTSVC": bytes.fromhex("00000000000000000000000f000a00000000"),
    "RFC 8441 section 3: :protocol, which was not offered": bytes.fromhex("000000000c000000000000"),
    "RFC 8441 section 3: a setting for clients": bytes.fromhex("00000000000000000000000e00000707020900090000"),
}
