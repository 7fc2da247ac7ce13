"""The command line: train, evaluate, predict, info, convert.

A command is a module with `add_arguments(parser)` and `run(args)`, beside the code it starts; it is imported when it is
asked for. Bad input ends with one sentence on standard error and exit code 2, a run that diverged with exit code 1.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple, NoReturn

from hhmpn_fast.errors import Diverged, InputError


class Command(NamedTuple):
    """Where a command lives, and what it does."""

    module: str
    help: str


COMMANDS = {
    "train": Command("train.command", "train one or several seeds and evaluate on the test split"),
    "evaluate": Command("train.evaluate", "metrics of a trained model on a labelled split"),
    "predict": Command("train.predict", "probabilities and labels of new samples to CSV or JSON"),
    "info": Command("info", "versions, processor, and which backends can run"),
    "convert": Command("data.convert", "make a data set from Mulan, .npz or TSV files, or a planted one"),
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see '{self.prog} --help'.\n")


def build_parser(chosen: Iterable[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """All commands, and the options of the chosen ones."""
    parser = _Parser("hhmpn-fast", description="Trains and runs HHMPN on packed ragged multi-modal data.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.help)
        if name in chosen:
            module = importlib.import_module(f"hhmpn_fast.{command.module}")
            module.add_arguments(own)
            own.set_defaults(start=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    args = build_parser(arguments[:1]).parse_args(arguments)
    try:
        return args.start(args) or 0
    except InputError as error:
        print(f"hhmpn-fast: {error}", file=sys.stderr)
        return 2
    except Diverged as error:
        print(f"hhmpn-fast: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("hhmpn-fast: stopped; `hhmpn-fast train --resume RUN` continues.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
