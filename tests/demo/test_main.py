import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from tests.demo.conftest import DEADLINE, INFER, STREAM, events


@asynccontextmanager
async def started(port: int = 0) -> AsyncIterator[Process]:
    command = ("-m", "demo", "--host", "127.0.0.1", "--port", str(port), "--interval-ms", "0")
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=PIPE, stderr=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def base_url(process: Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE):
        line = (await process.stdout.readline()).decode()
    assert line.startswith("router listening on http://127.0.0.1:")
    return line.split()[-1]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_it_serves_until_told_to_stop_and_ends_quietly(signum: signal.Signals) -> None:
    headers = {"x-demo-fault": "endless"}
    async with started() as process, httpx.AsyncClient(base_url=await base_url(process)) as client:
        assert len(events((await client.post("/v1/infer", json=INFER | STREAM)).text)) == 12
        # A stream that runs does not keep it from leaving.
        async with client.stream("POST", "/v1/infer", json=INFER | STREAM, headers=headers):
            process.send_signal(signum)
            async with asyncio.timeout(DEADLINE):
                assert await process.communicate() == (b"", b"")
        assert process.returncode == 0


async def read_into(found: bytearray, answer: httpx.Response) -> None:
    async for data in answer.aiter_raw():
        found += data


@pytest.mark.parametrize(("fault", "error"), [("reset", httpx.ReadError), ("close", httpx.RemoteProtocolError)])
async def test_a_broken_stream_looks_the_same_on_uvloop(fault: str, error: type[Exception]) -> None:
    found = bytearray()
    headers = {"x-demo-fault": f"{fault}-mid-stream"}
    async with started() as process, httpx.AsyncClient(base_url=await base_url(process)) as client:
        async with client.stream("POST", "/v1/infer", json=INFER | STREAM, headers=headers) as answer:
            with pytest.raises(error):
                await read_into(found, answer)
        assert found.count(b"inference.delta") == 6
        process.terminate()
        assert (await process.communicate())[1] == b""


async def test_a_taken_port_is_told_in_one_line() -> None:
    async with started() as first:
        url = await base_url(first)
        async with started(httpx.URL(url).port or 0) as second:
            out, err = await second.communicate()
            assert (out, second.returncode) == (b"", 1)
    address = url.removeprefix("http://")
    assert err.decode().splitlines() == [f"router cannot listen on {address}: Address already in use"]
