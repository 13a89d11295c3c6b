"""How does a connection begin, and what may be set on it? RFC 9113 sections 3.4, 6.5, 6.7 and 6.9."""

import pytest

from tests.transport.hostile import connected, greeted
from tests.transport.hostile_outcome import Closed, Passed, Reset, case, holds, holds_from_the_start
from tests.transport.hostile_server import Attacked, victim
from tests.transport.hostile_wire import (
    ACK,
    DEFAULT_FRAME,
    LARGEST_WINDOW,
    PREFACE,
    Code,
    Kind,
    Setting,
    frame,
    opening,
    reset,
    settings,
    window_update,
)

__all__ = ["victim"]

_OPEN = opening(1)
_PROTOCOL, _SIZE, _FLOW = Closed(Code.PROTOCOL_ERROR), Closed(Code.FRAME_SIZE_ERROR), Closed(Code.FLOW_CONTROL_ERROR)
# Section 3.4: "A GOAWAY frame MAY be omitted in this case".
_NO_PREFACE = (_PROTOCOL, Closed(None))
# A size that no server announces.
_LARGEST_FRAME = 2**24 - 1

GREETINGS = {
    "HTTP/1.1": case(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", *_NO_PREFACE),
    "another last octet": case(PREFACE[:-1] + b"\r" + settings(), *_NO_PREFACE),
    "another first octet": case(b"p" + PREFACE[1:] + settings(), *_NO_PREFACE),
    "no preface": case(settings(), *_NO_PREFACE),
    "the preface twice": case(PREFACE + PREFACE + settings(), *_NO_PREFACE, _SIZE),
    "PING first": case(PREFACE + frame(Kind.PING, payload=bytes(8)) + settings(), *_NO_PREFACE),
    "HEADERS first": case(PREFACE + _OPEN + settings(), *_NO_PREFACE),
    "WINDOW_UPDATE first": case(PREFACE + window_update(0, 1) + settings(), *_NO_PREFACE),
    "an unknown type first": case(PREFACE + frame(Kind.UNKNOWN) + settings(), *_NO_PREFACE),
    "empty SETTINGS": case(PREFACE + settings(), Passed()),
}

SETTINGS = {
    "ENABLE_PUSH of 2": case(settings((Setting.ENABLE_PUSH, 2)), _PROTOCOL),
    "INITIAL_WINDOW_SIZE of 2^31": case(settings((Setting.INITIAL_WINDOW_SIZE, 2**31)), _FLOW),
    "INITIAL_WINDOW_SIZE of 2^32-1": case(settings((Setting.INITIAL_WINDOW_SIZE, 2**32 - 1)), _FLOW),
    "MAX_FRAME_SIZE too small": case(settings((Setting.MAX_FRAME_SIZE, DEFAULT_FRAME - 1)), _PROTOCOL),
    "MAX_FRAME_SIZE too large": case(settings((Setting.MAX_FRAME_SIZE, 2**24)), _PROTOCOL),
    "wrong, then right": case(settings((Setting.ENABLE_PUSH, 2), (Setting.ENABLE_PUSH, 0)), _PROTOCOL),
    "every largest": case(
        settings(
            (Setting.HEADER_TABLE_SIZE, 2**32 - 1),
            (Setting.ENABLE_PUSH, 1),
            (Setting.MAX_CONCURRENT_STREAMS, 2**32 - 1),
            (Setting.INITIAL_WINDOW_SIZE, LARGEST_WINDOW),
            (Setting.MAX_FRAME_SIZE, 2**24 - 1),
            (Setting.MAX_HEADER_LIST_SIZE, 2**32 - 1),
        ),
        Passed(),
    ),
    # No window, no table and no push; a client that takes no streams is pushed none.
    "every smallest": case(
        settings(
            (Setting.HEADER_TABLE_SIZE, 0),
            (Setting.ENABLE_PUSH, 0),
            (Setting.MAX_CONCURRENT_STREAMS, 0),
            (Setting.INITIAL_WINDOW_SIZE, 0),
            (Setting.MAX_FRAME_SIZE, DEFAULT_FRAME),
        )
        + settings((Setting.INITIAL_WINDOW_SIZE, 1000)),
        Passed(),
    ),
    "unknown": case(settings((0, 1), (0x1234, 2**32 - 1), (0xFFFF, 0)), Passed()),
    # An acknowledgement that nobody waits for. The text is silent.
    "one ACK too many": case(frame(Kind.SETTINGS, flags=ACK), Passed(), _PROTOCOL),
}

WINDOWS = {
    "0 on the connection": case(window_update(0, 0), _PROTOCOL),
    "0 on a stream": case(_OPEN + window_update(1, 0), Reset(Code.PROTOCOL_ERROR)),
    # The first bit is reserved and ignored.
    "0 beside the reserved bit": case(_OPEN + window_update(1, 2**31), Reset(Code.PROTOCOL_ERROR)),
    "overflow of the connection": case(window_update(0, LARGEST_WINDOW), _FLOW),
    "overflow of a stream": case(_OPEN + window_update(1, LARGEST_WINDOW), Reset(Code.FLOW_CONTROL_ERROR)),
    # Section 6.9.2: "any flow-control window", by a change of what all begin with.
    "overflow by SETTINGS": case(
        settings((Setting.INITIAL_WINDOW_SIZE, 1000))
        + _OPEN
        + window_update(1, LARGEST_WINDOW - 1000)
        + settings((Setting.INITIAL_WINDOW_SIZE, 1001)),
        _FLOW,
    ),
    "the largest of a stream": case(
        settings((Setting.INITIAL_WINDOW_SIZE, 0))
        + _OPEN
        + window_update(1, LARGEST_WINDOW)
        + reset(1)
        + settings((Setting.INITIAL_WINDOW_SIZE, 1000)),
        Passed(),
    ),
}


@pytest.mark.parametrize("name", GREETINGS)
async def test_a_connection_begins_with_the_preface_and_settings(victim: Attacked, name: str) -> None:
    await holds_from_the_start(victim, GREETINGS[name])


@pytest.mark.parametrize("name", SETTINGS)
async def test_a_setting_is_in_its_range_or_unknown(victim: Attacked, name: str) -> None:
    await holds(victim, SETTINGS[name])


@pytest.mark.parametrize("name", WINDOWS)
async def test_a_window_grows_by_something_and_to_its_limit(victim: Attacked, name: str) -> None:
    await holds(victim, WINDOWS[name])


async def test_ping_is_echoed_and_settings_are_acknowledged_each_and_in_order(victim: Attacked) -> None:
    sent = [bytes(range(8)), b"\xff" * 8, b"another?"]
    async with greeted(victim.path) as client:
        await client.send(*(frame(Kind.PING, payload=payload) + settings() for payload in sent))
        await client.until(lambda: len(client.pongs) == len(sent))
        assert await client.echo()
        assert client.pongs[: len(sent)] == sent
        assert client.settings_acks == 1 + len(sent)


async def test_the_server_announces_only_what_a_server_may(victim: Attacked) -> None:
    async with connected(victim.path) as client:
        await client.greet()
        said = client.settings
    assert said.get(Setting.ENABLE_PUSH, 0) == 0
    assert DEFAULT_FRAME <= said.get(Setting.MAX_FRAME_SIZE, DEFAULT_FRAME) <= _LARGEST_FRAME
    assert said.get(Setting.INITIAL_WINDOW_SIZE, 0) <= LARGEST_WINDOW
    # Section 10.5.1 and CVE-2023-44487: without limits a client may make a server hold anything.
    assert said[Setting.MAX_CONCURRENT_STREAMS] >= 1_024
    assert said[Setting.MAX_HEADER_LIST_SIZE] >= 8_192
