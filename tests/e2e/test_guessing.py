"""Are guesses slowed, over all workers, and does who is known behind the same address go on?"""

from authz import api_key
from tests.e2e import callers
from tests.e2e.callers import code, everywhere
from tests.support.gateway import Gateway, running, until

LIMIT = 10


async def _guess(gateway: Gateway) -> str:
    async with gateway.client(headers={"x-api-key": api_key.generate("test").text}) as client:
        return await code(client)


async def test_guesses_from_one_address_end_early() -> None:
    with running(env={"GATEWAY_FAILURE_LIMIT": str(LIMIT)}) as gateway:
        known, silent = await gateway.tenant(), await gateway.tenant()

        async def both_workers() -> bool:
            return await gateway.healthy_workers() == gateway.workers

        await until(both_workers)
        async with gateway.client(known) as client:
            await everywhere(client, "200")
        guesses = [await _guess(gateway) for _ in range(LIMIT)]
        assert set(guesses) == {"invalid_api_key"}

        async def refused_early() -> bool:
            return await _guess(gateway) == "too_many_failures"

        for _ in range(6):  # each worker learns the shared number by one failure of its own
            await until(refused_early)
        async with gateway.client(headers={"x-api-key": api_key.generate("test").text}) as client:
            answer = await client.post("/v1/infer", json=callers.INFER)
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        async with gateway.client(known) as client:
            await everywhere(client, "200")
        async with gateway.client(silent) as client:
            assert await code(client) == "too_many_failures"
        async with gateway.client() as client:
            assert await code(client) == "missing_credentials"
