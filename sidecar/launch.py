"""What do the long-running commands of the CLI start? The one place that hands the gateway to its supervisors."""

import asyncio

from sidecar import serve as serving
from sidecar.demo_data import ensure_demo
from sidecar.embedded.envoy_server import EnvoyOptions
from sidecar.envoy_config import EnvoyAddresses, render
from sidecar.settings import UpSettings
from sidecar.up import Product
from sidecar.up import up as run_up

_MAX_BODY_BYTES = 4 * 1024 * 1024


def up() -> int:
    """Start everything on embedded servers; returns the exit code."""
    return asyncio.run(run_up(UpSettings(), Product(ensure_demo=ensure_demo, render_envoy=_render)))


def serve() -> int:
    """Start the sidecar; returns the exit code."""
    return serving.main()


def _render(options: EnvoyOptions) -> str:
    return render(
        EnvoyAddresses(
            port=options.port,
            address="127.0.0.1",
            tls_dir=options.tls,
            socket_dir=options.socket_dir,
            workers=options.workers,
            router=f"{options.router_host}:{options.router_port}",
            admin_socket=options.admin_socket,
            max_body_bytes=_MAX_BODY_BYTES,
        )
    )
