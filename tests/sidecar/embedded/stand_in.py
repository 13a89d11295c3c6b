"""What does `up` start when the gateway itself is not the question? These: `python -m ... up|migrate|serve|router`."""

import asyncio
import json
import os
import sys

import asyncpg

from sidecar.embedded.envoy_server import EnvoyOptions
from sidecar.settings import UpSettings
from sidecar.up import Product, up

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
FILTERS = "type.googleapis.com/envoy.extensions.filters"
ITSELF = (sys.executable, "-m", "tests.sidecar.embedded.stand_in")


def render_envoy(options: EnvoyOptions) -> str:
    """Write JSON, which is YAML: one TLS listener that answers every request itself."""
    answer = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
    manager = {
        "@type": f"{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "public",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [answer]}]},
        "http_filters": [
            {
                "name": "router",
                "typed_config": {"@type": f"{FILTERS}.http.router.v3.Router"},
            }
        ],
    }
    pair = {
        "certificate_chain": {"filename": str(options.tls / "server.pem")},
        "private_key": {"filename": str(options.tls / "server.key")},
    }
    tls = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {"tls_certificates": [pair]},
    }
    chain = {
        "transport_socket": {"name": "tls", "typed_config": tls},
        "filters": [{"name": "http", "typed_config": manager}],
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": options.port}}
    listener = {"name": "public", "address": address, "filter_chains": [chain]}
    admin = {"address": {"pipe": {"path": str(options.admin_socket)}}}
    return json.dumps({"admin": admin, "static_resources": {"listeners": [listener]}})


async def ensure_demo(database_url: str, pepper: str, known_key: str | None) -> str:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("INSERT INTO starts VALUES (now())")
    finally:
        await connection.close()
    assert len(pepper) == 64
    return known_key or "key-1"


async def migrate() -> None:
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
    try:
        await connection.execute("CREATE TABLE IF NOT EXISTS starts (at timestamptz)")
    finally:
        await connection.close()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    writer.write(ANSWER)
    writer.close()


async def listen(port: int) -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", port)
    sys.stdout.write(f"listening on {port}\n")
    await server.serve_forever()


def main() -> int:
    match sys.argv[1:]:
        case ["up"]:
            product = Product(
                ensure_demo=ensure_demo, render_envoy=render_envoy, cli=ITSELF, router=(*ITSELF, "router")
            )
            return asyncio.run(up(UpSettings(), product))
        case ["migrate"]:
            asyncio.run(migrate())
        case ["serve"] if os.environ.get("STAND_IN_FAILS"):
            sys.stdout.write("out of luck\n")
            return 3
        case ["serve"]:
            asyncio.run(listen(int(os.environ["GATEWAY_OPS_PORT"])))
        case ["router", "--port", port]:
            asyncio.run(listen(int(port)))
        case _:
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
