"""Where does a server listen? On a Unix socket, or on an address of TCP."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixAddress:
    """A Unix socket of file mode `mode`. The path must be one process's alone."""

    path: Path
    mode: int = 0o600

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpAddress:
    """An IP address and a port; port 0 takes any that is free."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this host reaches it."""
        return ipaddress.ip_address(self.host).is_loopback


Address = UnixAddress | TcpAddress
