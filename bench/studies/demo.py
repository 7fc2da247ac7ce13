"""The demo: draws a planted set, trains HHMPN on it, and prints it between the constant predictor and the optimum.

    python -m bench.studies.demo [--out DIRECTORY]

Every label of the set needs one part of the model (docs/data.md), and its best attainable scores are known exactly.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.studies.planted import MODEL, TRAINING
from hhmpn_fast.backends import Call, choose
from hhmpn_fast.config import TrainingConfig
from hhmpn_fast.data.planted import generate, preset
from hhmpn_fast.train import report, runs


def main(argv: Sequence[str] | None = None) -> int:
    """Generates, trains, evaluates and prints."""
    import torch

    parser = argparse.ArgumentParser(prog="python -m bench.studies.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="keep the data set and the run here; default: a temporary directory")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        place = args.out or Path(temporary)
        began = time.perf_counter()
        data = generate(preset("demo"), place / "data", seed=0)
        config = runs.config_for(data, MODEL, None)
        backend = choose("attention", Call("cpu", torch.float32, config.dim)).__module__
        print(
            f"planted set {data}: drawn in {time.perf_counter() - began:.1f} s; attention runs in {backend}", flush=True
        )

        def show(line: dict) -> None:
            print(f"epoch {line['epoch']}  loss {line['train_loss']:.4f}  valid micro-F1 {line['valid_micro_f1']:.4f}")

        driving = runs.Driving(progress=sys.stderr.isatty(), on_epoch=show)
        results = runs.train(data, place / "run", config, TrainingConfig(**TRAINING), driving)
        print(f"\ntrained {results['parameters']} parameters in {results['seconds']:.0f} s\n")
        print(report.render(results))
        if args.out is not None:
            print(f"\nrun: {place / 'run'}   data: {data}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
