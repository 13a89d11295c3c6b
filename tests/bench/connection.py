"""How does a load generator speak to Envoy for little CPU? HTTP/1.1 on a TLS socket of OpenSSL, without an event loop.

On asyncio each read and write passes two memory buffers and a protocol in Python; here it is one call into OpenSSL.
What the generator uses is taken from the servers, which share its cores.
"""

import contextlib
import re
import selectors
import socket
import ssl
from collections.abc import Iterator

HOST = "127.0.0.1"
SILENCE_SECONDS = 20.0
_READ = 65_536
_SHOWN = 1000
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_REQUEST_ID = re.compile(rb"\r\nx-request-id: (\S+)\r\n", re.IGNORECASE)


class WrongAnswer(Exception):
    """An answer that is not what was asked for: its costs are worth nothing."""


class Connection:
    """One keep-alive connection."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        raw = socket.create_connection((HOST, port), timeout=SILENCE_SECONDS)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = context.wrap_socket(raw, server_hostname="localhost")
        self.socket.settimeout(0)

    def send(self, request: bytes) -> None:
        if self.socket.send(request) != len(request):
            raise WrongAnswer("the socket did not take a whole request")

    def receive(self) -> bytes:
        """What has come; may be empty, when a TLS record is not whole yet."""
        pieces = []
        with contextlib.suppress(ssl.SSLWantReadError):
            while True:
                pieces.append(self.socket.recv(_READ))
                if not pieces[-1]:
                    raise WrongAnswer("the connection was closed")
                # What stays in the kernel is announced again; what OpenSSL has deciphered already is not.
                if not self.socket.pending():
                    break
        return b"".join(pieces)


class Group:
    """Connections that are waited for together."""

    def __init__(self, port: int, ca: str, number: int) -> None:
        context = ssl.create_default_context(cafile=ca)
        self.connections = [Connection(port, context) for _ in range(number)]
        self._selector = selectors.DefaultSelector()
        for connection in self.connections:
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def readable(self, seconds: float = SILENCE_SECONDS) -> Iterator[Connection]:
        """Wait for bytes; raises WrongAnswer after a long silence."""
        ready = self._selector.select(seconds)
        if not ready and seconds >= SILENCE_SECONDS:
            raise WrongAnswer(f"nothing came for {SILENCE_SECONDS:g} s")
        for key, _ in ready:
            yield key.data

    def leave(self, connection: Connection) -> None:
        """Close the connection, whatever is under way on it."""
        self._selector.unregister(connection.socket)
        connection.socket.close()

    def close(self) -> None:
        self._selector.close()
        for connection in self.connections:
            connection.socket.close()


def request_bytes(key: str, body: bytes, headers: dict[str, str]) -> bytes:
    lines = {"host": "localhost", "authorization": f"Bearer {key}", "content-type": "application/json", **headers}
    lines["content-length"] = str(len(body))
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode() + body


def require_ok(answer: bytes) -> None:
    """Raise WrongAnswer unless the answer, as far as it is here, begins as a 200."""
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise WrongAnswer(answer[:_SHOWN].decode(errors="replace"))


def whole_length(answer: bytes) -> int | None:
    """How long the answer is to be; None while its headers are not whole."""
    head_end = answer.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    length = _LENGTH.search(answer, 0, head_end + 2)
    if length is None:
        raise WrongAnswer(f"no content-length: {answer[:_SHOWN].decode(errors='replace')}")
    return head_end + 4 + int(length[1])


def request_id(head: bytes) -> str:
    found = _REQUEST_ID.search(head)
    if found is None:
        raise WrongAnswer(f"no x-request-id: {head[:_SHOWN].decode(errors='replace')}")
    return found[1].decode()
