"""The command `evaluate`: metrics of a trained model on a labelled split, beside predictors that see no features."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hhmpn_fast import metrics
from hhmpn_fast.data.shards import read_metadata
from hhmpn_fast.data.store import Dataset
from hhmpn_fast.errors import InputError
from hhmpn_fast.files import check_folder, dumps, write_text
from hhmpn_fast.train import device, report
from hhmpn_fast.train.checkpoint import Weights
from hhmpn_fast.train.predict import add_source, load, open_for, probabilities

OURS, TUNED = "HHMPN, threshold {:.2f}", "HHMPN, tuned threshold {:.2f}"


def evaluate(weights: Weights, data: Dataset, train_split: Dataset | None = None) -> dict[str, Any]:
    """The table of a labelled split: constant predictors, the planted optimum if there is one, both thresholds."""
    if data.labels is None:
        raise InputError(f"split '{data.split}' of '{data.path}': has no labels; evaluation needs them.")
    if data.label_names != weights.model.config.labels:
        raise InputError(
            f"data set '{data.path}': labels {', '.join(data.label_names)}; expected the model's, "
            f"{', '.join(weights.model.config.labels)}."
        )
    targets, p = data.labels.numpy(), probabilities(weights.model, data)
    rows = {}
    if train_split is not None:
        constants = metrics.constant_predictors(train_split.labels.numpy(), len(targets))
        rows |= {name: metrics.scores(targets, made) for name, made in constants.items()}
    fixed, tuned = weights.thresholds["fixed"], weights.thresholds["tuned"]
    for title, threshold in ((OURS, fixed), (TUNED, tuned)):
        rows[title.format(threshold)] = metrics.scores(targets, metrics.decisions(p, threshold))
    optimum = data.metadata.get("optimum", {}).get(data.split)
    if optimum is not None:
        rows["planted optimum"] = optimum
    return {
        "split": data.split,
        "samples": len(targets),
        "thresholds": {"fixed": fixed, "tuned": tuned},
        "rows": rows,
        "mean_average_precision": metrics.mean_average_precision(targets, p),
        "mean_auc": metrics.mean_auc(targets, p),
        "per_label": metrics.per_label(targets, metrics.decisions(p, tuned), p, data.label_names),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `evaluate`."""
    add_source(parser, "test")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    device.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Runs `evaluate` as parsed."""
    if args.json is not None:
        check_folder(args.json)
    with device.settings(args):
        weights = load(args.run, args.device)
        data = open_for(weights, args.data, args.split)
        train_split = Dataset.open(args.data, "train") if "train" in read_metadata(args.data)["splits"] else None
        results = evaluate(weights, data, train_split)
    if args.json is not None:
        write_text(args.json, dumps(results))
    print(report.render(results))
