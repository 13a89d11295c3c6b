"""How is the Router started by hand? `python -m demo --host 127.0.0.1 --port 9000`."""

import argparse
import asyncio
import os
import signal
import sys

import uvloop

from demo.router import DEFAULT_INTERVAL_MS, running


async def _serve(host: str, port: int, interval_ms: float) -> int:
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    try:
        async with running(host=host, port=port, interval_ms=interval_ms) as base_url:
            sys.stdout.write(f"router listening on {base_url}\n")
            sys.stdout.flush()
            await stop.wait()
    except OSError as error:
        sys.stderr.write(f"router cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}\n")
        return 1
    return 0


def main() -> int:
    """Read the command line and serve until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="a stand-in model Router")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9000, help="0 takes any free port")
    parser.add_argument(
        "--interval-ms", type=float, default=DEFAULT_INTERVAL_MS, help="pause between the events of a stream"
    )
    options = parser.parse_args()
    return uvloop.run(_serve(options.host, options.port, options.interval_ms))


if __name__ == "__main__":
    sys.exit(main())
