"""Does the gateway learn of a model how long its tokens and answers are, and reserve by it?"""

import asyncio
from uuid import uuid4

import httpx
import msgspec
import pytest

from extproc.record import Admission
from tests.e2e.bodies import CHAT
from tests.e2e.counted import counted
from tests.support.gateway import Gateway, until

SIZE = 4000
# Eight bytes to a token, and answers of a hundred.
INPUT, OUTPUT = SIZE // 8, 100
# Fewer tell nothing yet (quota/estimate.py); of one tenant no more than 4 count in a second.
TENANTS, REQUESTS = 6, 4
BY_DEFAULT = (SIZE // 4, 512)
# Answers are counted in buckets, and 112 is the most of theirs.
LEARNED = (INPUT, 112)


def encoded(model: str) -> bytes:
    """A body of `SIZE` bytes that names no maximum."""
    asked = {"model": model, "messages": [{"role": "user", "content": ""}]}
    rest = SIZE - len(msgspec.json.encode(asked))
    return msgspec.json.encode(asked | {"messages": [{"role": "user", "content": "x" * rest}]})


async def ask(gateway: Gateway, client: httpx.AsyncClient, model: str) -> Admission:
    """What was reserved for a request; it is in the ledger by now."""
    headers = {"content-type": "application/json", "x-demo-usage": f"{INPUT},{OUTPUT}"}
    answer = await client.post(CHAT, content=encoded(model), headers=headers)
    assert answer.status_code == 200, answer.text
    return (await gateway.row(answer.headers["x-request-id"])).admission


def reserved(admission: Admission) -> tuple[int, int]:
    return admission.input_estimate, admission.output_reserved


async def ratios(gateway: Gateway, direction: str, most: str = "+Inf") -> float:
    return await counted(gateway, "gateway_estimate_ratio_bucket", direction=direction, le=most)


@pytest.fixture
async def learned(gateway: Gateway) -> str:
    """A model of which enough has been seen, and which every worker knows."""
    model = f"l-{uuid4().hex[:12]}"

    async def some() -> None:
        async with gateway.client(await gateway.tenant()) as client:
            for _ in range(REQUESTS):
                assert reserved(await ask(gateway, client, model)) in {BY_DEFAULT, LEARNED}

    await asyncio.gather(*(some() for _ in range(TENANTS)))
    async with gateway.client(await gateway.tenant()) as client:

        async def known() -> bool:
            found = await asyncio.gather(*(ask(gateway, client, model) for _ in range(6)))
            return {reserved(one) for one in found} == {LEARNED}

        await until(known)
    return model


async def test_a_model_is_estimated_by_what_it_has_shown(gateway: Gateway, learned: str) -> None:
    async with gateway.client(await gateway.tenant()) as client:
        assert reserved(await ask(gateway, client, learned)) == LEARNED
        # Of another nothing is known, whatever is known of this one.
        assert reserved(await ask(gateway, client, f"{learned}-other")) == BY_DEFAULT
        # A maximum of the caller's own comes before what was learned.
        answer = await client.post(
            CHAT, content=encoded(learned)[:-1] + b',"max_tokens":7}', headers={"content-type": "application/json"}
        )
        assert (await gateway.row(answer.headers["x-request-id"])).admission.output_reserved == 7


async def test_the_error_of_the_estimates_is_counted(gateway: Gateway, learned: str) -> None:
    before = {direction: await ratios(gateway, direction) for direction in ("input", "output")}
    near = await ratios(gateway, "input", "1.0") - await ratios(gateway, "input", "0.9")
    far = await ratios(gateway, "input", "2.0") - await ratios(gateway, "input", "1.5")
    async with gateway.client(await gateway.tenant()) as client:
        await asyncio.gather(*(ask(gateway, client, learned) for _ in range(5)))
        await asyncio.gather(*(ask(gateway, client, f"{learned}-{number}") for number in range(5)))

    async def seen() -> bool:
        return all([await ratios(gateway, direction) >= before[direction] + 10 for direction in before])

    await until(seen)
    # Of the model that is known, as many tokens were reserved as were used; of the others, twice as many.
    assert await ratios(gateway, "input", "1.0") - await ratios(gateway, "input", "0.9") >= near + 5
    assert await ratios(gateway, "input", "2.0") - await ratios(gateway, "input", "1.5") >= far + 5
