"""Rates of models on the command line: what a person types, what they read, and what a program gets."""

import pytest
import typer

from quota.charges import Rates
from quota.rate_card import RateCard
from sidecar.commands import model
from sidecar.commands.session import PlainErrors
from store import model_rates
from tests.support.shell import PEPPER, Shell, row

app = typer.Typer(cls=PlainErrors)
app.add_typer(model.app, name="model")


@pytest.fixture
def shell(database: str, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("GATEWAY_KEY_PEPPER", PEPPER)
    return Shell(app, database)


def card(shell: Shell) -> RateCard:
    return shell.within(model_rates.load)


@pytest.mark.parametrize("command", ["model", "model set", "model list", "model remove"])
def test_every_command_explains_itself(shell: Shell, command: str) -> None:
    text = shell.says(f"{command} --help")
    assert "Usage: " in text
    assert "..." not in text.replace("[ARGS]...", "").replace(":...", "")


def test_rates_are_set_shown_and_removed(shell: Shell) -> None:
    options = "--input-weight 1.5 --cached-weight 0.125 --input-price $2.50 --cached-price 0.25 --output-price 15"
    made = shell.json(f"model set gpt-5* {options} --output-tokens 700")
    assert made == {
        "pattern": "gpt-5*",
        "input_weight": 1500,
        "cached_weight": 125,
        "output_weight": 1000,
        "reasoning_weight": 1000,
        "input_price": 2_500_000,
        "cached_price": 250_000,
        "output_price": 15_000_000,
        "reasoning_price": 15_000_000,
        "output_tokens": 700,
    }
    assert shell.json("model list") == [made]
    table = shell.says("model list")
    for word in ("gpt-5*", "$2.50 x 1.5", "$0.25 x 0.125", "$15.00 x 1", "700"):
        assert word in table
    assert card(shell).of("gpt-5-mini").output_tokens == 700
    assert shell.json("model remove gpt-5*") == made
    assert "model set" in shell.says("model list")
    assert shell.actions() == ["model.set", "model.remove"]


def test_what_is_not_given_follows_or_is_the_default_and_later_stays(shell: Shell) -> None:
    shell.says("model set m --input-price 1 --output-weight 4 --cached-price 0")
    assert card(shell).of("m").rates == Rates(
        input_price=1_000_000, cached_price=0, output_weight=4000, reasoning_weight=4000
    )
    text = shell.says("model set m --output-tokens 64")
    assert (row(text, "cached"), row(text, "answer")) == ("$0.00 x 1", "64")
    assert card(shell).of("m").rates == Rates(
        input_price=1_000_000, cached_price=0, output_weight=4000, reasoning_weight=4000
    )


def test_a_star_alone_is_for_all_others(shell: Shell) -> None:
    shell.says("model set * --input-price 0.5")
    shell.says("model set gpt-* --input-price 4")
    assert [card(shell).of(name).rates.input_price for name in ("gpt-5", "other")] == [4_000_000, 500_000]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("model set a*b", ["model", "a*b"]),
        ("model set m --input-weight 0.0001", ["--input-weight", "0.0001", "3 places"]),
        ("model set m --input-weight 1e3", ["--input-weight", "1e3"]),
        ("model set m --input-weight 1001", ["input_weight", "1,000,000"]),
        ("model set m --reasoning-price $0.0000001", ["--reasoning-price", "6 places"]),
        ("model set m --output-price free", ["--output-price", "free"]),
        ("model set m --output-price 10001", ["output_price", "10,000,000,000"]),
        ("model set m --output-tokens 0", ["output_tokens", "from 1"]),
        ("model remove m", ["model", "'m'", "no rates"]),
    ],
)
def test_what_cannot_be_done_is_one_line(shell: Shell, command: str, words: list[str]) -> None:
    shell.refuses(command, *words)
    assert shell.trail() == []
