"""Which bytes make a check fail? `python -m tests.fuzz TARGET --inputs N` looks for them with Atheris.

Atheris is no part of the environment of the tests: `pip install -e .[fuzz]`, in one of its own.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

import atheris

TARGETS = ("huffman", "headers", "frames", "connection", "messages")


def main() -> None:
    arguments = _parser().parse_args()
    # What is to be covered is the product, not the oracle beside it.
    with atheris.instrument_imports(include=["transport"]):
        target = import_module(f"tests.fuzz.{arguments.target}")
    corpus = arguments.corpus or Path(".cache/fuzz") / arguments.target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.SEEDS):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [
        f"-runs={arguments.inputs}",
        f"-max_len={target.LONGEST}",
        f"-artifact_prefix={corpus.parent}/{arguments.target}-",
        f"-seed={arguments.seed}",
        "-len_control=20",
        "-timeout=20",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], target.check)
    atheris.Fuzz()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--inputs", type=int, default=100_000, help="how many are tried (100,000)")
    parser.add_argument("--corpus", type=Path, help="where inputs are kept that reach something new")
    parser.add_argument("--seed", type=int, default=1, help="of the fuzzer's chance (1)")
    return parser


if __name__ == "__main__":
    main()
