"""Rates of models: what is set holds for the models of its pattern, is announced and audited, and can be removed."""

import asyncio
from typing import Any

import msgspec
import pytest

from quota.charges import Rates
from quota.rate_card import DEFAULT_OUTPUT_TOKENS, ModelRates
from store import model_rates
from store.database import DatabaseOutage, Pool, connect, open_pool
from store.identity_listener import CHANNEL
from store.model_rates import MAX_OUTPUT_TOKENS, MAX_PRICE, MAX_WEIGHT
from tests.support.identity_rows import TRAIL, audited
from tests.support.refused import refused

CHEAP = Rates(input_weight=1500, cached_weight=0, output_price=3, reasoning_price=MAX_PRICE)


def rates(pattern: str = "gpt-*", *, output_tokens: int = 700, **changes: Any) -> ModelRates:
    return ModelRates(pattern=pattern, rates=msgspec.structs.replace(CHEAP, **changes), output_tokens=output_tokens)


async def put(pool: Pool, *every: ModelRates) -> None:
    for one in every:
        await model_rates.put(pool, one, trail=TRAIL)


async def test_without_rates_every_model_has_the_default(pool: Pool) -> None:
    found = (await model_rates.load(pool)).of("anything")
    assert (found.rates, found.output_tokens) == (Rates(), DEFAULT_OUTPUT_TOKENS)


async def test_what_is_set_is_loaded(pool: Pool) -> None:
    await put(pool, rates())
    assert await model_rates.list_rates(pool) == [rates()]
    card = await model_rates.load(pool)
    assert card.of("gpt-5") == rates()
    assert card.of("claude").rates == Rates()


async def test_the_longest_pattern_counts_and_the_name_itself_before_it(pool: Pool) -> None:
    patterns = ("*", "gpt-*", "gpt-5*", "gpt-5", "gpt-5-mini")
    await put(pool, *(rates(pattern) for pattern in reversed(patterns)))
    card = await model_rates.load(pool)
    asked = ("claude", "gpt-4", "gpt-5-pro", "gpt-5", "gpt-5-mini")
    assert tuple(card.of(model).pattern for model in asked) == patterns


async def test_set_again_it_is_as_it_was_set_last(pool: Pool) -> None:
    await put(pool, rates(), rates(), rates(input_price=7), rates(input_price=7))
    assert await model_rates.list_rates(pool) == [rates(input_price=7)]
    first, second = await audited(pool)
    assert (first["action"], first["subject"], first["before"]) == ("model.set", "model:gpt-*", None)
    assert first["after"] == {**msgspec.structs.asdict(CHEAP), "output_tokens": 700}
    assert (second["before"], second["after"]) == ({"input_price": 10_000_000}, {"input_price": 7})


async def test_removed_it_is_gone(pool: Pool) -> None:
    await put(pool, rates())
    assert await model_rates.remove(pool, "gpt-*", trail=TRAIL) == rates()
    assert await model_rates.list_rates(pool) == []
    await refused(model_rates.remove(pool, "gpt-*", trail=TRAIL), "model", "gpt-*")
    change = (await audited(pool))[-1]
    assert (change["action"], change["after"]) == ("model.remove", None)
    assert change["before"]["output_tokens"] == 700


async def test_set_at_once_it_is_set(pool: Pool) -> None:
    await asyncio.gather(*(put(pool, rates(input_price=price)) for price in range(5)))
    [stored] = await model_rates.list_rates(pool)
    changes = await audited(pool)
    assert changes[-1]["after"]["input_price"] == stored.rates.input_price
    assert len(changes) == 5


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (rates("a*b"), "model"),
        (rates(""), "model"),
        (rates("**"), "model"),
        (rates(input_weight=-1), "input_weight"),
        (rates(reasoning_weight=MAX_WEIGHT + 1), "reasoning_weight"),
        (rates(cached_price=-1), "cached_price"),
        (rates(output_price=MAX_PRICE + 1), "output_price"),
        (rates(output_tokens=0), "output_tokens"),
        (rates(output_tokens=MAX_OUTPUT_TOKENS + 1), "output_tokens"),
    ],
    ids=str,
)
async def test_rates_that_make_no_sense(pool: Pool, wrong: ModelRates, field: str) -> None:
    await refused(model_rates.put(pool, wrong, trail=TRAIL), field)
    assert await model_rates.list_rates(pool) == []
    assert await audited(pool) == []


async def test_the_most_that_can_be_set_is_stored(pool: Pool) -> None:
    most = {name: MAX_WEIGHT if name.endswith("weight") else MAX_PRICE for name in Rates.__struct_fields__}
    await put(pool, rates("x" * 200 + "*", output_tokens=MAX_OUTPUT_TOKENS, **most))
    assert [one.rates.cached_price for one in await model_rates.list_rates(pool)] == [MAX_PRICE]


async def test_every_change_is_announced(pool: Pool, database: str) -> None:
    connection = await connect(database)
    said: asyncio.Queue[str] = asyncio.Queue()
    await connection.add_listener(CHANNEL, lambda _, __, ___, what: said.put_nowait(str(what)))
    await put(pool, rates("a:b*"), rates("a:b*", input_price=1))
    await model_rates.remove(pool, "a:b*", trail=TRAIL)
    async with asyncio.timeout(10):
        heard = [await said.get() for _ in range(3)]
    await connection.close()
    assert {text.rpartition(":")[0] for text in heard} == {"model_rates:a:b*"}
    versions = [int(text.rpartition(":")[2]) for text in heard]
    assert versions == sorted(set(versions))


async def test_an_outage_says_so() -> None:
    pool = await open_pool("postgresql://postgres@/gateway?host=/nowhere")
    with pytest.raises(DatabaseOutage):
        await model_rates.load(pool)
    await pool.close()
