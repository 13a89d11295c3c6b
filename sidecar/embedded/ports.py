"""Is a port free, and does something answer on it? Asked before anything starts, and while it starts."""

import asyncio
import contextlib
import errno
import os
import socket
import ssl

from sidecar.process import StartError

HIGHEST_PORT = 65535
ANSWER_SECONDS = 2.0


def require_free(port: int, *, variable: str) -> None:
    """Raise StartError, naming the variable that sets the port, when it cannot be listened on."""
    if port > HIGHEST_PORT:
        raise StartError(f"port {port} does not exist: set {variable} to one below {HIGHEST_PORT + 1}")
    with socket.socket() as listener:
        # Without SO_REUSEPORT, which Envoy uses: two Envoys would silently share the port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("0.0.0.0", port))  # noqa: S104 - clashes with a listener on any address; never listens
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise StartError(
                    f"port {port} is taken by another program: end it, or set {variable} to a free port "
                    f"(who it is: ss -ltnp 'sport = :{port}')"
                ) from error
            raise StartError(
                f"cannot listen on port {port} ({os.strerror(error.errno or 0)}): set {variable}"
            ) from error


def free_port() -> int:
    """Return a port of this machine that nobody uses at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


async def accepts(port: int) -> bool:
    """Tell whether something takes connections on this port of 127.0.0.1."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def http_status(port: int, path: str, *, tls: ssl.SSLContext | None = None) -> int | None:
    """GET the path from 127.0.0.1; None when there is no answer (yet)."""
    try:
        return await asyncio.wait_for(_status(port, path, tls), ANSWER_SECONDS)
    except (OSError, ValueError, IndexError):
        return None


async def _status(port: int, path: str, tls: ssl.SSLContext | None) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n".encode())
        return int((await reader.readline()).split()[1])
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
