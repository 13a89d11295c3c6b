"""Do the gauges tell how many leases are held, and beside them how many requests live?"""

from tests.e2e.counted import counted
from tests.support.gateway import Gateway, streaming, until

LONG = {"x_demo_events": "600", "x_demo_interval_ms": "100"}


async def test_leases_held_are_shown_beside_live_requests(gateway: Gateway) -> None:
    async def shown(count: int) -> bool:
        return {await counted(gateway, name) for name in ("gateway_leases_held", "gateway_live_requests")} == {count}

    tenant = await gateway.tenant()
    await until(lambda: shown(0))
    async with gateway.client(tenant) as client:
        async with streaming(client, {}, **LONG) as (_, one), streaming(client, {}, **LONG) as (_, other):
            await anext(one)
            await anext(other)
            await until(lambda: shown(2))
        await until(lambda: shown(0))
