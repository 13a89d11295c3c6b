"""What do the long-running commands of the CLI start? The one place that hands the gateway to its supervisors."""

import asyncio
from functools import partial

from sidecar import serve as serving
from sidecar.envoy_config import EnvoyAddresses, render
from sidecar.settings import UpSettings


def serve() -> int:
    """Start the sidecar; returns the exit code."""
    return serving.main()


def up() -> int:
    """Start everything on embedded servers; returns the exit code."""
    # The servers come with the extra `embedded`, which a sidecar in production does without.
    from sidecar.demo_data import ensure_demo  # noqa: PLC0415
    from sidecar.embedded.certificates import Certificates  # noqa: PLC0415
    from sidecar.embedded.envoy_server import EnvoyOptions  # noqa: PLC0415
    from sidecar.up import Product  # noqa: PLC0415
    from sidecar.up import up as run_up  # noqa: PLC0415

    def render_envoy(options: EnvoyOptions, *, settings: UpSettings) -> str:
        return render(
            EnvoyAddresses(
                port=options.port,
                address="127.0.0.1",
                tls_dir=options.tls,
                socket_dir=options.socket_dir,
                workers=options.workers,
                router=f"{options.router_host}:{options.router_port}",
                admin_socket=options.admin_socket,
                max_body_bytes=settings.max_body_bytes,
                client_ca=Certificates(options.tls).client_ca,
                cors_origins=settings.cors_origins,
            )
        )

    settings = UpSettings()
    rendering = partial(render_envoy, settings=settings)
    return asyncio.run(run_up(settings, Product(ensure_demo=ensure_demo, render_envoy=rendering)))
