"""The README's table of real results: every set, its settings, five seeds, and every ablation where asked.

    python -m bench.studies.real emotions --root DATA --out runs/real [--seeds 5] [--ablations]

DATA holds the folders that `hhmpn_fast.data.recipes` names. Settings were chosen on training and validation samples
only.
A finished run is read back, an interrupted one resumed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hhmpn_fast.config import ABLATIONS, TrainingConfig
from hhmpn_fast.data.recipes import RECIPES
from hhmpn_fast.files import dumps
from hhmpn_fast.train import report, runs

FULL = "full"

# A few hundred samples: strong decay, averaged weights, no epoch chosen by a validation split of 40 to 100 samples.
SMALL = {
    "epochs": 40,
    "batch_size": 32,
    "lr": 1e-3,
    "lr_decay": "cosine",
    "weight_decay": 10.0,
    "average": 0.99,
    "select_by": "last",
}

SETTINGS: dict[str, tuple[dict, dict]] = {
    "emotions": (
        {"dim": 64, "dropout": 0.1},
        SMALL,
    ),
    "mosei_text": (
        {"dropout": 0.3},
        {
            "epochs": 6,
            "lr": 3e-4,
            "lr_decay": "cosine",
            "weight_decay": 2.0,
            "average": 0.998,
            "standardise": ("context", "timing"),
            "select_by": "micro_f1_tuned",
        },
    ),
    "mosei_video922": (
        {"dim": 64, "dropout": 0.1},
        SMALL | {"epochs": 10, "lr": 3e-4},
    ),
    "pom": (
        {"dim": 64, "dropout": 0.1},
        SMALL | {"epochs": 10, "lr": 3e-4},
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Trains what is missing and prints one table a variant."""
    parser = argparse.ArgumentParser(prog="python -m bench.studies.real", description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=SETTINGS)
    parser.add_argument("--root", type=Path, required=True, help="the folder that holds the sets' own folders")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("--ablations", action="store_true", help="also w/o F2F, F2L, L2L and M2L")
    args = parser.parse_args(argv)
    data, (model, training) = args.out / "data" / args.set, SETTINGS[args.set]
    if not data.exists():
        data.parent.mkdir(parents=True, exist_ok=True)
        RECIPES[args.set](args.root, data)
    found = {}
    for variant in (FULL, *ABLATIONS) if args.ablations else (FULL,):
        without = () if variant == FULL else (variant,)
        config = runs.config_for(data, model | {"without": without}, None)
        place = args.out / args.set / variant
        many = runs.train_seeds(data, place, config, TrainingConfig.from_dict(training), range(args.seeds))
        found[variant] = report.summarise(many)
        title = FULL if variant == FULL else f"w/o {variant.upper()}"
        print(f"{args.set}, {title}, {many[0]['parameters']} parameters", flush=True)
        print(report.render_summary(found[variant], len(many)), flush=True)
    (args.out / f"{args.set}.json").write_text(dumps({"model": model, "training": training, "found": found}))
    constants = {k: v for k, v in many[0]["rows"].items() if k.startswith("constant")}
    print(report.table(constants))
    return 0


if __name__ == "__main__":
    sys.exit(main())
