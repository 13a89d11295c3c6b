"""What do models weigh and cost? `inference-gateway model ...`: set, list and remove the rates of models."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import typer

from quota.charges import Rates
from quota.rate_card import DEFAULT_OUTPUT_TOKENS, ModelRates
from sidecar.commands.fixed_point import dollars, micros, plain, scaled
from sidecar.commands.option_group import grouped
from sidecar.commands.session import trail, with_pool
from sidecar.commands.tenant import AsJson
from sidecar.tables import print_fields, print_json, print_table
from store import model_rates
from store.database import Pool
from store.field_error import FieldError

app = typer.Typer(no_args_is_help=True, help="Set what models weigh under limits, and what they cost.")

Pattern = Annotated[
    str, typer.Argument(metavar="PATTERN", help="A model, gpt-* for all that begin so, or * for all others (quoted).")
]
_CLASSES = ("input", "cached", "output", "reasoning")
# What a class goes by when nothing is said of it.
_FOLLOWED = {"cached": "input", "reasoning": "output"}
_PLACES = 3


def _weight(tokens: str, otherwise: str) -> Any:
    help_text = f"What a token of {tokens} counts as under limits of tokens, such as 0.1; else {otherwise}."
    return typer.Option(metavar="WEIGHT", help=help_text)


def _price(tokens: str, otherwise: str) -> Any:
    return typer.Option(
        metavar="DOLLARS", help=f"Price of a million tokens of {tokens}, such as 2.50; else {otherwise}."
    )


@dataclass(frozen=True, kw_only=True)
class RateOptions:
    """What tokens of each class weigh and cost, and how long an answer is."""

    input_weight: Annotated[str | None, _weight("the input", "1")] = None
    cached_weight: Annotated[str | None, _weight("input read from a cache", "as of the input")] = None
    output_weight: Annotated[str | None, _weight("the output", "1")] = None
    reasoning_weight: Annotated[str | None, _weight("reasoning, which is not shown", "as of the output")] = None
    input_price: Annotated[str | None, _price("the input", "10")] = None
    cached_price: Annotated[str | None, _price("input read from a cache", "as of the input")] = None
    output_price: Annotated[str | None, _price("the output", "30")] = None
    reasoning_price: Annotated[str | None, _price("reasoning, which is not shown", "as of the output")] = None
    output_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="What to reserve for an answer whose request says no maximum, until it is known; "
            f"{DEFAULT_OUTPUT_TOKENS}, if never said.",
        ),
    ] = None

    def of(self, pattern: str, before: ModelRates | None) -> ModelRates:
        """As the store takes them, over those of before, if there were any; raises `FieldError`."""
        known = before.rates if before else None
        rates = Rates(**self._read("weight", _read_weight, known), **self._read("price", _read_price, known))
        known_length = before.output_tokens if before else DEFAULT_OUTPUT_TOKENS
        output_tokens = known_length if self.output_tokens is None else self.output_tokens
        return ModelRates(pattern=pattern, rates=rates, output_tokens=output_tokens)

    def _read(self, kind: str, read: Callable[[str, str], int], known: Rates | None) -> dict[str, int]:
        """The numbers of all classes.

        One that was not given stays; where there was none it is that of the class it follows, or the default.
        """
        numbers: dict[str, int] = {}
        for name in _CLASSES:
            text, field = getattr(self, f"{name}_{kind}"), f"{name}_{kind}"
            followed = numbers.get(f"{_FOLLOWED.get(name)}_{kind}", getattr(Rates(), field))
            otherwise = followed if known is None else getattr(known, field)
            numbers[field] = otherwise if text is None else read(f"--{name}-{kind}", text)
        return numbers


@app.command("set")
@grouped
def set_rates(pattern: Pattern, wanted: RateOptions, *, as_json: AsJson = False) -> None:
    """Set what the models of a pattern weigh and cost.

    What is not given stays as it is. Of several patterns for one model the longest counts. Requests that
    are admitted already stay with the rates of then.
    """

    async def work(pool: Pool) -> ModelRates:
        before = next((each for each in await model_rates.list_rates(pool) if each.pattern == pattern), None)
        rates = wanted.of(pattern, before)
        await model_rates.put(pool, rates, trail=trail())
        return rates

    _show(with_pool(work), as_json=as_json)


@app.command("list")
def list_all(*, as_json: AsJson = False) -> None:
    """List the patterns and their rates.

    Of each class of tokens: the price of a million, and the weight of one.
    """
    found = with_pool(model_rates.list_rates)
    if as_json:
        print_json([_described(rates) for rates in found])
        return
    print_table(
        ("MODELS", *(name.upper() for name in _CLASSES), "ANSWER"),
        [(one.pattern, *_cells(one.rates), one.output_tokens) for one in found],
        empty="No model has rates of its own. Set them: inference-gateway model set PATTERN --input-price 2.50",
    )


@app.command("remove")
def remove(pattern: Pattern, *, as_json: AsJson = False) -> None:
    """Remove the rates of a pattern.

    Its models then go by a shorter pattern, or by the default.
    """

    async def work(pool: Pool) -> ModelRates:
        return await model_rates.remove(pool, pattern, trail=trail())

    gone = with_pool(work)
    if as_json:
        print_json(_described(gone))
    else:
        typer.echo(f"The rates of {gone.pattern} are removed.")


def _read_weight(option: str, text: str) -> int:
    number = scaled(text, _PLACES)
    if number is None:
        raise FieldError(option, f"{text[:60]!r} is no weight like 1 or 0.25, with at most {_PLACES} places")
    return number


def _read_price(option: str, text: str) -> int:
    number = micros(text)
    if number is None:
        raise FieldError(option, f"{text[:60]!r} is no price in dollars like 2.50, with at most 6 places")
    return number


def _cells(rates: Rates) -> list[str]:
    numbers = msgspec.structs.asdict(rates)
    return [f"{dollars(numbers[f'{name}_price'])} x {plain(numbers[f'{name}_weight'], _PLACES)}" for name in _CLASSES]


def _show(rates: ModelRates, *, as_json: bool) -> None:
    if as_json:
        print_json(_described(rates))
        return
    prices = zip(_CLASSES, _cells(rates.rates), strict=True)
    print_fields([("models", rates.pattern), *prices, ("answer", rates.output_tokens)])


def _described(rates: ModelRates) -> dict[str, str | int]:
    """Weights in thousandths of a token, prices in micro-dollars for a million."""
    return {"pattern": rates.pattern, **msgspec.structs.asdict(rates.rates), "output_tokens": rates.output_tokens}
