"""On which Unix socket does each process listen, unless told otherwise? The same stand in Envoy's configuration."""

from pathlib import Path


def worker_socket(socket_dir: Path, index: int) -> Path:
    """The socket of a worker. Its next life takes the same path, after the former has ended."""
    return socket_dir / f"worker-{index}.sock"


def recorder_socket(socket_dir: Path) -> Path:
    """The socket on which the recorder takes the access log."""
    return socket_dir / "recorder.sock"


def control_socket(socket_dir: Path) -> Path:
    """The socket of the gateway's own HTTP API."""
    return socket_dir / "control.sock"
