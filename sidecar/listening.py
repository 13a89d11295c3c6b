"""Where may this process listen for Envoy, and with which server? Never where strangers can speak to it.

Whoever reaches a worker can admit requests in anybody's name, whoever reaches the recorder can settle them. A file mode
guards the Unix sockets, the host guards loopback; anywhere else only certificates do.
"""

import ipaddress
import re
import ssl
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from transport.address import TcpAddress
from transport.tls import Tls

_HOST_AND_PORT = re.compile(r"(?P<host>[0-9.]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")
_MAX_PORT = 65_535
_OF_TLS = ("GATEWAY_LISTEN_CERTIFICATE", "GATEWAY_LISTEN_KEY", "GATEWAY_LISTEN_CLIENT_CA")
_ALL_OF_TLS = f"{_OF_TLS[0]}, {_OF_TLS[1]} and {_OF_TLS[2]}"
# What a `serve` inherits from whoever starts it, and must not follow: to be set so, is not to be set.
ON_UNIX_SOCKETS = dict.fromkeys(("GATEWAY_LISTEN", *_OF_TLS), "")


class Transport(StrEnum):
    """Which server carries gRPC."""

    LEAN = "lean"
    GRPCIO = "grpcio"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the parts of `Tls` are; all of them, or none."""

    certificate: Path | None
    key: Path | None
    client_ca: Path | None

    def read(self) -> Tls | None:
        """What they hold; None when none is set. Raises ValueError, which names variables, when it cannot be used."""
        paths = dict(zip(_OF_TLS, (self.certificate, self.key, self.client_ca), strict=True))
        missing = [name for name, path in paths.items() if path is None]
        if len(missing) == len(paths):
            return None
        if self.certificate is None or self.key is None or self.client_ca is None:
            raise ValueError(f"{' and '.join(missing)} not set: TLS needs all of {_ALL_OF_TLS}")
        try:
            _require_usable(self.certificate, self.key, self.client_ca)
            return Tls(
                certificate=self.certificate.read_bytes(),
                key=self.key.read_bytes(),
                client_ca=self.client_ca.read_bytes(),
            )
        except OSError as error:  # of which ssl.SSLError is one
            raise ValueError(f"{_ALL_OF_TLS} cannot be used together: {error}") from error


def parse(text: str) -> TcpAddress:
    """Read HOST:PORT; raises ValueError when it is none."""
    match = _HOST_AND_PORT.fullmatch(text)
    if match is None or not 1 <= int(match["port"]) <= _MAX_PORT:
        raise ValueError("must be HOST:PORT, where HOST is an IP address, of IPv6 in brackets")
    host = match["host"].strip("[]")
    if (ipaddress.ip_address(host).version == 6) != match["host"].startswith("["):  # noqa: PLR2004 - IPv6
        raise ValueError("an IPv6 address stands in brackets, an IPv4 address without")
    return TcpAddress(host=host, port=int(match["port"]))


def require_known_peers(transport: Transport, listen: TcpAddress | None, files: TlsFiles) -> None:
    """Raise ValueError, which names the variables, where strangers could speak to the servers."""
    tls = files.read()
    if listen is None:
        if tls is not None:
            raise ValueError(f"{_ALL_OF_TLS} are for an address in GATEWAY_LISTEN, which is not set")
        return
    if transport is Transport.LEAN:
        _require_lean(listen, tls)
    elif not listen.loopback and tls is None:
        raise ValueError(
            f"GATEWAY_LISTEN={listen} can be reached from elsewhere, and whoever reaches it could admit requests and "
            f"forge settlements: set {_ALL_OF_TLS}"
        )


def require_ports(listen: TcpAddress | None, workers: int, ops_port: int) -> None:
    """Raise ValueError when the workers and the recorder need ports that do not exist, or are given away."""
    if listen is None:
        return
    last = listen.port + workers
    if last > _MAX_PORT:
        raise ValueError(
            f"GATEWAY_LISTEN={listen} leaves no port for each of GATEWAY_WORKERS={workers} and the recorder: the last "
            f"would be {last}"
        )
    if listen.port <= ops_port <= last:
        raise ValueError(
            f"GATEWAY_OPS_PORT={ops_port} is among the ports of the workers and the recorder, from GATEWAY_LISTEN="
            f"{listen} to {last}"
        )


def _require_lean(listen: TcpAddress, tls: Tls | None) -> None:
    if not listen.loopback:
        raise ValueError(
            f"GATEWAY_TRANSPORT=lean serves this host only, not GATEWAY_LISTEN={listen}: "
            "set GATEWAY_TRANSPORT=grpcio, or an address of loopback"
        )
    if tls is not None:
        raise ValueError(f"GATEWAY_TRANSPORT=lean has no TLS: set GATEWAY_TRANSPORT=grpcio, or none of {_ALL_OF_TLS}")


def _require_usable(certificate: Path, key: Path, client_ca: Path) -> None:
    """Raise OSError when a file cannot be read or is no PEM, or when the key is another's.

    grpcio says nothing of a wrong file until it binds, and then not which.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Without a password, OpenSSL would ask for that of an encrypted key at the terminal.
    context.load_cert_chain(certificate, key, password="")
    context.load_verify_locations(client_ca)
