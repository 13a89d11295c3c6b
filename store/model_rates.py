"""What does a token of each model weigh and cost? By model pattern, set by an administrator."""

import asyncpg
import msgspec

from quota import model_pattern
from quota.charges import THOUSANDTHS, Rates
from quota.rate_card import ModelRates, RateCard
from store.audit import AnyConnection, Change, Trail
from store.database import Pool, outages_named
from store.difference import Facts, difference
from store.field_error import FieldError

EVERY_MODEL = "*"
MAX_WEIGHT = 1000 * THOUSANDTHS
MAX_PRICE = 10_000 * 1_000_000
"""Micro-dollars for a million tokens: a cent for a token."""
MAX_OUTPUT_TOKENS = 1_000_000
_RATES = Rates.__struct_fields__
_COLUMNS = ("pattern", *_RATES, "output_tokens")
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM model_rates"  # noqa: S608 - constants
# In the order of their bytes a model's name stands before the same with a `*`, and of the two it counts.
_LIST = f'{_SELECT} ORDER BY pattern COLLATE "C"'
_LOCK = f"{_SELECT} WHERE pattern = $1 FOR UPDATE"
_PLACES = ", ".join(f"${number}" for number in range(1, len(_COLUMNS) + 1))
_INSERT = f"INSERT INTO model_rates ({', '.join(_COLUMNS)}) VALUES ({_PLACES}) ON CONFLICT (pattern) DO NOTHING"  # noqa: S608 - constants
_UPDATE = f"UPDATE model_rates SET ({', '.join(_COLUMNS)}) = ROW ({_PLACES}) WHERE pattern = $1"  # noqa: S608 - constants


async def load(pool: Pool) -> RateCard:
    """The rates of all models, in one query; raises `DatabaseOutage`."""
    return RateCard(await list_rates(pool))


async def list_rates(pool: Pool) -> list[ModelRates]:
    """Every pattern with its rates."""
    with outages_named():
        return [_rates(row) for row in await pool.fetch(_LIST)]


async def put(pool: Pool, rates: ModelRates, *, trail: Trail) -> None:
    """Give the models of the pattern these rates, for requests that are admitted from now on. Raises `FieldError`."""
    _check(rates)
    with outages_named():
        async with pool.acquire() as connection, connection.transaction():
            if await connection.execute(_INSERT, *_values(rates)) == "INSERT 0 1":
                await trail.append(connection, _audited("set", rates.pattern, after=_facts(rates)))
                return
            old, new = difference(_facts(await _locked(connection, rates.pattern)), _facts(rates))
            if new:
                await connection.execute(_UPDATE, *_values(rates))
                await trail.append(connection, _audited("set", rates.pattern, old, new))


async def remove(pool: Pool, pattern: str, *, trail: Trail) -> ModelRates:
    """Leave the models of the pattern to the next shorter one, or the default; raises `FieldError` when it has none."""
    with outages_named():
        async with pool.acquire() as connection, connection.transaction():
            gone = await _locked(connection, pattern)
            await connection.execute("DELETE FROM model_rates WHERE pattern = $1", pattern)
            await trail.append(connection, _audited("remove", pattern, before=_facts(gone)))
    return gone


async def _locked(connection: AnyConnection, pattern: str) -> ModelRates:
    row = await connection.fetchrow(_LOCK, pattern)
    if row is None:
        raise FieldError("model", f"{pattern[:110]!r} has no rates of its own")
    return _rates(row)


def _check(rates: ModelRates) -> None:
    try:
        if rates.pattern != EVERY_MODEL:
            model_pattern.parse(rates.pattern)
    except ValueError as error:
        raise FieldError("model", str(error)) from None
    for name, value in msgspec.structs.asdict(rates.rates).items():
        most = MAX_WEIGHT if name.endswith("weight") else MAX_PRICE
        if not 0 <= value <= most:
            raise FieldError(name, f"must be from 0 to {most:,} {_UNITS[most]}, not {value:,}")
    if not 1 <= rates.output_tokens <= MAX_OUTPUT_TOKENS:
        raise FieldError("output_tokens", f"must be from 1 to {MAX_OUTPUT_TOKENS:,}, not {rates.output_tokens:,}")


_UNITS = {MAX_WEIGHT: "thousandths of a token", MAX_PRICE: "micro-dollars for a million tokens"}


def _values(rates: ModelRates) -> tuple[str | int, ...]:
    return rates.pattern, *msgspec.structs.astuple(rates.rates), rates.output_tokens


def _facts(rates: ModelRates) -> Facts:
    return {**msgspec.structs.asdict(rates.rates), "output_tokens": rates.output_tokens}


def _audited(action: str, pattern: str, before: Facts | None = None, after: Facts | None = None) -> Change:
    return Change(action=f"model.{action}", subject=f"model:{pattern}", before=before, after=after)


def _rates(row: asyncpg.Record) -> ModelRates:
    rates = Rates(**{name: row[name] for name in _RATES})
    return ModelRates(pattern=row["pattern"], rates=rates, output_tokens=row["output_tokens"])
