"""The protocol's core alone, bytes in and events and bytes out: what depends on an order that sockets seldom show."""

import h2.config
import h2.connection
import h2.events
import h2.settings
import hyperframe.frame as wire
import pytest

from transport.connection import Connection
from transport.error_code import ErrorCode
from transport.event import Drained, Opened, Received, Reset
from transport.frame import PREFACE
from transport.grpc_status import HEADERS, OK
from transport.limits import Limits

REQUEST = [
    *((":method", "POST"), (":scheme", "http"), (":path", "/a.B/C"), (":authority", "x")),
    *(("te", "trailers"), ("content-type", "application/grpc")),
]
SMALL_WINDOW = 10


class Peer:
    """A client of the h2 package, which hears all that the connection says."""

    def __init__(self, *, window: int = 65_535) -> None:
        self.connection = Connection(Limits())
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.client.initiate_connection()
        self.client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.exchange()

    def exchange(self) -> list[h2.events.Event]:
        self.connection.receive(self.client.data_to_send())
        heard = self.client.receive_data(self.connection.take())
        self.connection.receive(self.client.data_to_send())
        return heard

    def ask(self, *, ended: bool = True) -> None:
        self.client.send_headers(1, REQUEST, end_stream=ended)
        self.exchange()


def _frames(data: bytes) -> list[wire.Frame]:
    found = []
    while data:
        one, length = wire.Frame.parse_frame_header(memoryview(data[:9]))
        one.parse_body(memoryview(data[9 : 9 + length]))
        found.append(one)
        data = data[9 + length :]
    return found


def test_settings_are_acknowledged_before_what_they_let_pass() -> None:
    """Until it has the acknowledgement a peer counts by the old windows, and grpcio's kills the stream."""
    peer = Peer(window=SMALL_WINDOW)
    peer.ask()
    peer.connection.send_headers(1, HEADERS)
    peer.connection.send_data(1, b"x" * 100)
    assert sum(len(each.data) for each in _frames(peer.connection.take()) if isinstance(each, wire.DataFrame)) == 10
    larger = wire.SettingsFrame(settings={wire.SettingsFrame.INITIAL_WINDOW_SIZE: 1000})
    events = peer.connection.receive(larger.serialize())
    acknowledged, data = _frames(peer.connection.take())
    assert isinstance(acknowledged, wire.SettingsFrame)
    assert "ACK" in acknowledged.flags
    assert isinstance(data, wire.DataFrame)
    assert (len(data.data), events) == (90, [Drained(1)])


def test_what_waits_leaves_before_the_end_and_the_end_with_the_last_of_it() -> None:
    peer = Peer(window=SMALL_WINDOW)
    peer.ask()
    peer.connection.send_headers(1, HEADERS)
    peer.connection.send_data(1, b"x" * 15)
    peer.connection.end(1, OK)
    assert [type(event) for event in peer.exchange()] == [h2.events.ResponseReceived, h2.events.DataReceived]
    assert not peer.connection.idle
    peer.client.increment_flow_control_window(5, 1)
    heard = peer.exchange()
    assert [type(event) for event in heard][-2:] == [h2.events.TrailersReceived, h2.events.StreamEnded]
    assert peer.connection.idle


def test_what_waits_and_is_discarded_keeps_neither_the_end_nor_memory() -> None:
    peer = Peer(window=SMALL_WINDOW)
    peer.ask()
    peer.connection.send_headers(1, HEADERS)
    peer.connection.send_data(1, b"x" * 1000)
    assert peer.connection.all_waiting_octets == 990
    peer.connection.discard(1)
    peer.connection.end(1, OK)
    assert [type(event) for event in peer.exchange()][-2:] == [h2.events.TrailersReceived, h2.events.StreamEnded]
    assert (peer.connection.all_waiting_octets, peer.connection.idle) == (0, True)


def test_what_is_said_to_a_stream_that_was_reset_in_the_same_breath_is_not_sent() -> None:
    peer = Peer()
    peer.client.send_headers(1, REQUEST)
    peer.client.reset_stream(1)
    opened, reset = peer.connection.receive(peer.client.data_to_send())
    assert isinstance(opened, Opened)
    assert reset == Reset(1, ErrorCode.NO_ERROR)
    peer.connection.send_headers(1, HEADERS)
    peer.connection.send_data(1, b"x")
    peer.connection.end(1, OK)
    peer.connection.consumed(1, 10)
    assert (peer.connection.take(), peer.connection.is_open(1)) == (b"", False)


@pytest.mark.parametrize("at", range(1, len(PREFACE)))
def test_the_preface_may_come_in_pieces(at: int) -> None:
    connection = Connection(Limits())
    connection.take()
    assert connection.receive(PREFACE[:at]) == []
    assert connection.receive(PREFACE[at:] + wire.SettingsFrame().serialize()) == []
    assert not connection.failed


def test_octets_count_in_the_windows_until_they_are_consumed() -> None:
    peer = Peer()
    peer.ask(ended=False)
    window = peer.client.local_flow_control_window(1)
    half = window // 2 + 1
    sent = 0
    while sent < half:
        piece = bytes(min(16_384, half - sent))
        peer.client.send_data(1, piece)
        sent += len(piece)
    events = peer.connection.receive(peer.client.data_to_send())
    assert sum(event.octets for event in events if isinstance(event, Received)) == half
    assert peer.connection.take() == b""
    peer.connection.consumed(1, half)
    assert peer.exchange()
    assert peer.client.local_flow_control_window(1) == window


def test_an_answer_to_a_ping_that_nobody_sent_ends_nothing() -> None:
    peer = Peer()
    peer.connection.receive(wire.PingFrame(opaque_data=b"draining", flags=["ACK"]).serialize())
    assert (peer.connection.take(), peer.connection.closing) == (b"", False)


def test_a_connection_that_drains_serves_what_was_under_way_and_nothing_after() -> None:
    peer = Peer()
    peer.connection.drain()
    peer.client.send_headers(1, REQUEST, end_stream=True)
    under_way = peer.client.data_to_send()
    assert [type(event) for event in peer.connection.receive(under_way)] == [Opened]
    [first, ping] = _frames(peer.connection.take())
    assert isinstance(first, wire.GoAwayFrame)
    assert (first.last_stream_id, first.error_code) == (2**31 - 1, 0)
    assert isinstance(ping, wire.PingFrame)
    peer.connection.receive(wire.PingFrame(opaque_data=ping.opaque_data, flags=["ACK"]).serialize())
    [last] = _frames(peer.connection.take())
    assert isinstance(last, wire.GoAwayFrame)
    assert (last.last_stream_id, peer.connection.closing, peer.connection.idle) == (1, True, False)
    peer.client.send_headers(3, REQUEST, end_stream=True)
    assert peer.connection.receive(peer.client.data_to_send()) == []
