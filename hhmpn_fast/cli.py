"""The command line: train, evaluate, predict, info, convert.

Bad input ends with one sentence on standard error and exit code 2, a run that diverged with exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import signal
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hhmpn_fast.errors import InputError

GIVEN_BY_DATA = ("modalities", "labels")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage text."""

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"{self.prog}: {message}; see '{self.prog} --help'.\n")


def _value(text: str) -> Any:
    """A field's value from the command line: JSON where it reads as such, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return None if text == "none" else text


def _add_fields(parser: argparse.ArgumentParser, cls: type, skip: Sequence[str] = ()) -> None:
    """An option for every field of a config dataclass; what is not given is not set."""
    group = parser.add_argument_group(f"{cls.__name__} (one option a field; see its documentation)")
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name in skip:
            continue
        option, hint = f"--{field.name.replace('_', '-')}", hints[field.name]
        shown = "none" if field.default in (None, ()) else field.default
        common: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": f"default {shown}"}
        if hint is bool:
            group.add_argument(option, action=argparse.BooleanOptionalAction, **common)
        elif typing.get_origin(hint) is tuple:
            kind = float if float in typing.get_args(hint) else str
            group.add_argument(option, nargs="*", type=kind, **common)
        else:
            kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
            kind = str if str in kinds else _value if type(None) in kinds else kinds[0]
            group.add_argument(option, type=kind, **common)


def _given(args: argparse.Namespace, cls: type) -> dict[str, Any]:
    return {f.name: getattr(args, f.name) for f in dataclasses.fields(cls) if hasattr(args, f.name)}


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    from hhmpn_fast.backends import NAMES
    from hhmpn_fast.config import PRESETS, HHMPNConfig, TrainingConfig

    parser = _Parser("hhmpn-fast", description="Trains and runs HHMPN on packed ragged multi-modal data.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    train = commands.add_parser("train", help="train one or several seeds and evaluate on the test split")
    train.add_argument("data", type=Path, nargs="?", help="data set directory, made by convert (not with --resume)")
    train.add_argument("--out", type=Path, help="the run's directory, a new one")
    train.add_argument("--resume", type=Path, metavar="RUN", help="continue a run where its checkpoint stands")
    train.add_argument("--preset", choices=PRESETS, default="paper")
    train.add_argument("--use", nargs="+", metavar="MODALITY", help="read only these modalities")
    train.add_argument("--seeds", nargs="+", type=int, metavar="S", help="train once a seed and print mean and sd")
    train.add_argument("--folds", type=int, metavar="K", help="K-fold cross validation over all splits instead")
    train.add_argument("--checkpoint-every", type=int, metavar="STEPS", help="besides every epoch's end")
    train.add_argument("--tensorboard", action=argparse.BooleanOptionalAction, default=True, help="if it is installed")
    train.add_argument("--quiet", action="store_true", help="no progress bar and no line an epoch")
    _add_fields(train, HHMPNConfig, GIVEN_BY_DATA)
    _add_fields(train, TrainingConfig)

    evaluate = commands.add_parser("evaluate", help="metrics of a trained model on a labelled split")
    predict = commands.add_parser("predict", help="probabilities and labels of new samples to CSV or JSON")
    for command in (evaluate, predict):
        command.add_argument("run", type=Path, help="run directory or weights file")
        command.add_argument("data", type=Path, help="data set directory")
        command.add_argument("--split", default="test" if command is evaluate else None)
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    predict.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .csv or .json file")
    predict.add_argument("--threshold", choices=("tuned", "fixed"), default="tuned")
    for command in (train, evaluate, predict):
        command.add_argument("--backend", choices=("auto", *NAMES), help="default: HHMPN_FAST_BACKEND, else auto")
        command.add_argument("--threads", type=int, metavar="N", help="processor threads; default: torch's")

    commands.add_parser("info", help="versions, processor, and which backends can run")
    convert = commands.add_parser("convert", help="make a data set from Mulan, .npz or TSV files, or a planted one")
    from hhmpn_fast.data.arguments import add_convert_arguments

    add_convert_arguments(convert)
    return parser


@contextlib.contextmanager
def _settings(args: argparse.Namespace) -> Iterator[None]:
    import torch

    from hhmpn_fast.backends import current, use_backend

    if args.threads is not None:
        if args.threads < 1:
            raise InputError(f"--threads: found {args.threads}; expected an integer of at least 1.")
        torch.set_num_threads(args.threads)
    with use_backend(args.backend or current()):
        yield


def _train(args: argparse.Namespace) -> None:
    from hhmpn_fast import runs
    from hhmpn_fast.config import PRESETS, HHMPNConfig, TrainingConfig, dumps

    changes, options = _given(args, HHMPNConfig), _given(args, TrainingConfig)
    show = None if args.quiet else _print_epoch
    common = {"checkpoint_every": args.checkpoint_every, "progress": not args.quiet and sys.stderr.isatty()}
    common |= {"tensorboard": args.tensorboard, "on_epoch": show}
    if args.resume is not None:
        if args.data or args.out or args.use or args.seeds or args.folds or changes or set(options) - {"epochs"}:
            raise InputError("--resume: found other options beside it; expected the run alone, or with --epochs.")
        about = runs.read_run(args.resume)
        config = HHMPNConfig.from_dict(about["config"])
        training = TrainingConfig.from_dict(about["training"] | options)
        results = runs.train(Path(about["data"]), args.resume, config, training, resume=True, **common)
        print(runs.render(results))
        return
    if args.data is None or args.out is None:
        raise InputError("train: found no data set or no --out; expected `hhmpn-fast train DATA --out RUN`.")
    config = runs.config_for(args.data, PRESETS[args.preset] | changes, args.use)
    training = TrainingConfig.from_dict(options)
    if args.folds is not None:
        many = runs.train_folds(args.data, args.out, config, training, args.folds, **common)
    elif args.seeds:
        many = runs.train_seeds(args.data, args.out, config, training, args.seeds, **common)
    else:
        print(runs.render(runs.train(args.data, args.out, config, training, **common)))
        return
    summary = runs.summarise(many)
    runs.write_text(args.out / "summary.json", dumps(summary))
    print(runs.render_summary(summary, len(many)))


def _print_epoch(line: dict[str, Any]) -> None:
    shown = ("train_loss", "valid_accuracy", "valid_micro_f1", "valid_macro_f1", "valid_micro_f1_tuned")
    cells = "  ".join(f"{k.replace('valid_', '')} {line[k]:.4f}" for k in shown)
    print(f"epoch {line['epoch']:3d}  {cells}  best {line['best_epoch']}", flush=True)


def _weights(path: Path) -> Any:
    from hhmpn_fast.checkpoint import Weights

    return Weights.load(path / "weights.safetensors" if path.is_dir() else path)


def _evaluate(args: argparse.Namespace) -> None:
    from hhmpn_fast import runs
    from hhmpn_fast.config import dumps
    from hhmpn_fast.data.store import Dataset, read_metadata

    weights = _weights(args.run)
    data = runs.open_for(weights, args.data, args.split)
    train_split = Dataset.open(args.data, "train") if "train" in read_metadata(args.data)["splits"] else None
    results = runs.evaluate(weights, data, train_split)
    if args.json is not None:
        runs.write_text(args.json, dumps(results))
    print(runs.render(results))


def _predict(args: argparse.Namespace) -> None:
    from hhmpn_fast import runs
    from hhmpn_fast.data.store import read_metadata

    weights, splits = _weights(args.run), list(read_metadata(args.data)["splits"])
    if args.split is None and len(splits) > 1:
        raise InputError(f"--split: missing; '{args.data}' holds {', '.join(splits)}.")
    data = runs.open_for(weights, args.data, args.split or splits[0])
    count = runs.predict(weights, data, args.out, args.threshold)
    print(f"{count} samples to {args.out}, threshold {weights.thresholds[args.threshold]:.2f} ({args.threshold})")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["info"]:
        from hhmpn_fast import info

        return info.main()
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    args = build_parser().parse_args(arguments)
    from hhmpn_fast.training import Diverged

    try:
        if args.command == "convert":
            from hhmpn_fast.data.arguments import run_convert

            return run_convert(args)
        with _settings(args):
            {"train": _train, "evaluate": _evaluate, "predict": _predict}[args.command](args)
    except InputError as error:
        print(f"hhmpn-fast: {error}", file=sys.stderr)
        return 2
    except Diverged as error:
        print(f"hhmpn-fast: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("hhmpn-fast: stopped; `hhmpn-fast train --resume RUN` continues.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
