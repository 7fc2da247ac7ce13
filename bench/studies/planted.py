"""The planted check: the full model against its four ablations on generated sets, several seeds, one table.

    python -m bench.studies.planted            5 seeds x (full, w/o F2F, F2L, L2L, M2L), a new set for every seed
    python -m bench.studies.planted --json F   the same, results to F as well
    python -m bench.studies.planted --first 5  the same with seeds 5 to 9

Seeds run side by side, one thread each. Every seed draws its own set and its own initial weights, and trains all five
variants on them. A gap is the mean over seeds of (full - ablation) in test micro-F1 at threshold 0.5, beside its
standard error; the check holds, exit code 0, when every gap is larger than two standard errors. The constant predictor
and the planted optimum stand beside.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from hhmpn_fast import metrics
from hhmpn_fast.config import ABLATIONS, HHMPNConfig, TrainingConfig
from hhmpn_fast.data.planted import OPTIMUM, Plan, generate, preset
from hhmpn_fast.data.store import Dataset
from hhmpn_fast.train.predict import probabilities
from hhmpn_fast.train.trainer import Trainer

FULL, CONSTANT, BEST = "full", "constant predictor", "planted optimum"
VARIANTS = (FULL, *ABLATIONS)
SHOWN = ("accuracy", "hamming_loss", "micro_f1", "macro_f1")
# One label step: from the second on, the next step's network compares what the readout should have (docs/data.md).
MODEL = {"dim": 64, "steps": 1, "dropout": 0.0}
TRAINING = {
    "epochs": 8,
    "batch_size": 64,
    "lr": 4e-3,
    "warmup_steps": 60,
    "lr_decay": "cosine",
    "average": 0.99,
}

Scores = dict[str, dict[str, float]]


def one_seed(plan: Plan, seed: int, model: dict, training: dict, variants: Sequence[str] = VARIANTS) -> Scores:
    """Test metrics of every variant trained on the set of this seed, of the constant predictor and of the optimum."""
    with tempfile.TemporaryDirectory() as place:
        path = generate(plan, Path(place) / "set", seed=seed)
        train, valid, test = (Dataset.open(path, s, standardise=True) for s in ("train", "valid", "test"))
        targets = test.labels.numpy()
        constant = metrics.constant_predictors(train.labels.numpy(), len(targets))["constant (best set)"]
        out = {
            CONSTANT: metrics.scores(targets, constant),
            BEST: metrics.scores(targets, metrics.decisions(test.extra(OPTIMUM).numpy(), 0.5)),
        }
        for variant in variants:
            without = () if variant == FULL else (variant,)
            config = HHMPNConfig(dict(zip(train.names, train.sizes)), train.label_names, without=without, **model)
            began = time.perf_counter()
            fitted = Trainer(config, TrainingConfig(seed=seed, **training), train, valid).fit()
            out[variant] = metrics.scores(targets, metrics.decisions(probabilities(fitted, test), 0.5))
            out[variant]["seconds"] = time.perf_counter() - began
            print(
                f"seed {seed}  {title(variant):12s} micro-F1 {out[variant]['micro_f1']:.4f}",
                file=sys.stderr,
                flush=True,
            )
    return out


def gaps(runs: Sequence[Scores], metric: str = "micro_f1") -> dict[str, tuple[float, float]]:
    """For every ablation trained: mean and standard error over seeds of (full - ablation)."""
    found = {}
    for variant in ABLATIONS:
        if variant in runs[0]:
            found[variant] = mean_se([run[FULL][metric] - run[variant][metric] for run in runs])
    return found


def mean_se(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error of the mean; the error of a single value is infinite."""
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return float(np.mean(values)), spread


def holds(runs: Sequence[Scores]) -> bool:
    """Whether the full model beats every ablation by more than two standard errors."""
    return all(mean > 2 * error for mean, error in gaps(runs).values())


def title(variant: str) -> str:
    """A row's name as Table 2 of the paper prints it."""
    return f"w/o {variant.upper()}" if variant in ABLATIONS else variant


def render(runs: Sequence[Scores]) -> str:
    """The table: mean and standard error of every metric, and each ablation's gap to the full model."""
    found = gaps(runs)
    lines = [f"{len(runs)} seeds".ljust(20) + "".join(f"{m:>20s}" for m in SHOWN) + "   full - this, micro-F1"]
    for row in (CONSTANT, *(v for v in VARIANTS if v in runs[0]), BEST):
        cells = "".join("{:11.4f} +-{:6.4f}".format(*mean_se([r[row][m] for r in runs])) for m in SHOWN)
        gap = ""
        if row in found:
            mean, error = found[row]
            gap = f"   {mean:+.4f} +-{error:.4f} ({mean / error if error else math.inf:.1f} standard errors)"
        lines.append(title(row).ljust(20) + cells + gap)
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the check; 0 when it holds, 1 when it does not."""
    parser = argparse.ArgumentParser(prog="python -m bench.studies.planted", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N", help="seeds at once")
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--samples", metavar="TRAIN,VALID,TEST")
    for name, value in (MODEL | TRAINING).items():
        if name != "lr_decay":
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    samples = [int(s) for s in args.samples.split(",")] if args.samples else None
    plan = preset(args.preset, samples=samples)
    model = {k: getattr(args, k) for k in MODEL}
    training = TRAINING | {k: getattr(args, k) for k in TRAINING if k != "lr_decay"}
    began = time.perf_counter()
    seeds = range(args.first, args.first + args.seeds)
    start = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, start, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        runs = list(pool.map(one_seed, *zip(*((plan, seed, model, training) for seed in seeds))))
    print(render(runs))
    print(
        f"{time.perf_counter() - began:.0f} s; every gap beyond two standard errors: {'yes' if holds(runs) else 'NO'}"
    )
    if args.json is not None:
        args.json.write_text(json.dumps({"model": model, "training": training, "runs": runs}, indent=1) + "\n")
    return 0 if holds(runs) else 1


if __name__ == "__main__":
    sys.exit(main())
