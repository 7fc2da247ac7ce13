"""The command `train`: its options, and the runs they ask for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hhmpn_fast.config import PRESETS, HHMPNConfig, TrainingConfig
from hhmpn_fast.errors import InputError
from hhmpn_fast.files import dumps, write_text
from hhmpn_fast.train import captured, device, report, runs
from hhmpn_fast.train.options import add_fields, given

GIVEN_BY_DATA = ("modalities", "labels")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `train`: the run's own, and one a field of `HHMPNConfig` and of `TrainingConfig`."""
    parser.add_argument("data", type=Path, nargs="?", help="data set directory, made by convert (not with --resume)")
    parser.add_argument("--out", type=Path, help="the run's directory, a new one")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="continue a run where its checkpoint stands")
    parser.add_argument("--preset", choices=PRESETS, default="paper")
    parser.add_argument("--use", nargs="+", metavar="MODALITY", help="read only these modalities")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="S", help="train once a seed and print mean and sd")
    parser.add_argument("--folds", type=int, metavar="K", help="K-fold cross validation over all splits instead")
    parser.add_argument("--checkpoint-every", type=int, metavar="STEPS", help="besides every epoch's end")
    parser.add_argument("--tensorboard", action=argparse.BooleanOptionalAction, default=True, help="if it is installed")
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no line an epoch")
    add_fields(parser, HHMPNConfig, GIVEN_BY_DATA)
    add_fields(parser, TrainingConfig)
    device.add_arguments(parser, "auto, or with --resume the run's own")
    captured.add_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Runs `train` as parsed, and prints the results."""
    with device.settings(args):
        if args.resume is not None:
            _resume(args)
        elif args.data is None or args.out is None:
            raise InputError("train: found no data set or no --out; expected `hhmpn-fast train DATA --out RUN`.")
        else:
            _train(args)


def _resume(args: argparse.Namespace) -> None:
    changes, options = given(args, HHMPNConfig), given(args, TrainingConfig)
    if args.data or args.out or args.use or args.seeds or args.folds or changes or set(options) - {"epochs"}:
        raise InputError("--resume: found other options beside it; expected the run alone, or with --epochs.")
    about = runs.read_run(args.resume)
    config = HHMPNConfig.from_dict(about["config"])
    training = TrainingConfig.from_dict(about["training"] | options)
    # The run's own device: another one may round otherwise.
    driving = _driving(args, config, args.device or about.get("device", "cpu"))
    print(report.render(runs.train(Path(about["data"]), args.resume, config, training, driving, resume=True)))


def _train(args: argparse.Namespace) -> None:
    config = runs.config_for(args.data, PRESETS[args.preset] | given(args, HHMPNConfig), args.use)
    training = TrainingConfig.from_dict(given(args, TrainingConfig))
    driving = _driving(args, config, args.device)
    if args.folds is not None:
        many = runs.train_folds(args.data, args.out, config, training, args.folds, driving)
    elif args.seeds:
        many = runs.train_seeds(args.data, args.out, config, training, args.seeds, driving)
    else:
        print(report.render(runs.train(args.data, args.out, config, training, driving)))
        return
    summary = report.summarise(many)
    write_text(args.out / "summary.json", dumps(summary))
    print(report.render_summary(summary, len(many)))


def _driving(args: argparse.Namespace, config: HHMPNConfig, place: str | None) -> runs.Driving:
    return runs.Driving(
        device=device.pick(place, config.dim),
        checkpoint_every=args.checkpoint_every,
        progress=not args.quiet and sys.stderr.isatty(),
        tensorboard=args.tensorboard,
        graph=args.graph,
        on_start=None if args.quiet else print,
        on_epoch=None if args.quiet else report.print_epoch,
    )
