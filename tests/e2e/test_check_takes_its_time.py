"""Is a Check given the time that it has, and does a burst of guesses harm nobody else?"""

import asyncio

import asyncpg

from authz import api_key
from tests.e2e.callers import code
from tests.support.gateway import Gateway

# Far longer than Envoy once gave each try, far shorter than the directory's deadline.
HELD_SECONDS = 0.4


async def test_a_slow_answer_of_the_directory_is_waited_for(gateway: Gateway) -> None:
    connection = await asyncpg.connect(gateway.dsn)
    try:
        async with gateway.client(headers={"x-api-key": api_key.generate("test").text}) as client:
            async with connection.transaction():
                # Whoever looks up a key waits for as long as this transaction holds the table.
                await connection.execute("LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE")
                asked = asyncio.create_task(code(client))
                done, _ = await asyncio.wait({asked}, timeout=HELD_SECONDS)
                assert not done
            assert await asked == "invalid_api_key"
    finally:
        await connection.close()


async def test_a_burst_of_nonsense_is_answered_and_harms_nobody(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    nonsense = {"authorization": "Bearer nonsense"}
    async with gateway.client(http2=True, headers=nonsense) as guesser, gateway.client(tenant) as honest:
        burst = [asyncio.create_task(code(guesser)) for _ in range(400)]
        answers = [await code(honest) for _ in range(20)]
        assert set(await asyncio.gather(*burst)) == {"invalid_api_key"}
    assert set(answers) == {"200"}
