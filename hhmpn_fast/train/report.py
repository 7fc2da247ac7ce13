"""Results as text: the table of a split, its labels, several runs together, curves for tensorboard, predictions."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hhmpn_fast.metrics import HEADLINE

TITLES = ("Acc", "subset", "HL", "micro-F1", "macro-F1", "micro-P", "micro-R")
SHOWN = ("train_loss", "valid_accuracy", "valid_micro_f1", "valid_macro_f1", "valid_micro_f1_tuned")


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """The headline metrics of several predictors, one aligned line each."""
    width = max(len(name) for name in rows) + 2
    lines = ["".ljust(width) + "".join(t.rjust(10) for t in TITLES)]
    for name, values in rows.items():
        cells = "".join(f"{values[k]:10.4f}" if k in values else "-".rjust(10) for k in HEADLINE)
        lines.append(name.ljust(width) + cells)
    return "\n".join(lines)


def label_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """`metrics.per_label` as aligned lines."""
    width = max([len(r["label"]) for r in rows] + [5]) + 2
    lines = ["label".ljust(width) + "".join(t.rjust(10) for t in ("support", "P", "R", "F1", "AP"))]
    for r in rows:
        cells = "".join(f"{r[k]:10.4f}" for k in ("precision", "recall", "f1", "average_precision"))
        lines.append(r["label"].ljust(width) + f"{r['support']:10d}" + cells)
    return "\n".join(lines)


def render(results: Mapping[str, Any]) -> str:
    """What `evaluate` found, as text."""
    tuned = results["thresholds"]["tuned"]
    return "\n".join(
        [
            f"{results['split']} split, {results['samples']} samples",
            table(results["rows"]),
            f"mean average precision {results['mean_average_precision']:.4f}, mean AUC {results['mean_auc']:.4f}",
            "",
            f"per label, threshold {tuned:.2f} (tuned on validation for micro-F1)",
            label_table(results["per_label"]),
            "Acc: mean example Jaccard, an empty union counts 0. P, R and F1 without support or decisions count 0.",
        ]
    )


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Mean and standard deviation over runs of every headline metric, at both thresholds, and of the mean AUC."""
    out: dict[str, dict[str, tuple[float, float]]] = {}
    for prefix, name in (("HHMPN, threshold", "threshold"), ("HHMPN, tuned", "tuned threshold")):
        rows = [next(v for k, v in r["rows"].items() if k.startswith(prefix)) for r in runs]
        out[name] = {k: _mean_sd([row[k] for row in rows]) for k in HEADLINE}
    both = ("mean_average_precision", "mean_auc", "seconds")
    return out | {"either": {k: _mean_sd([r[k] for r in runs]) for k in both}}


def render_summary(summary: Mapping[str, Mapping[str, tuple[float, float]]], count: int) -> str:
    """`summarise` as text: mean and standard deviation."""
    lines = [f"{count} runs, mean (sd)".ljust(24) + "".join(t.rjust(16) for t in TITLES)]
    for name in ("threshold", "tuned threshold"):
        cells = "".join(f"{m:9.4f} ({s:.3f})".rjust(16) for m, s in (summary[name][k] for k in HEADLINE))
        lines.append(name.ljust(24) + cells)
    either = [f"{m:.4f} ({s:.3f})" for m, s in (summary["either"][k] for k in ("mean_average_precision", "mean_auc"))]
    lines.append("mean average precision {}, mean AUC {}".format(*either))
    return "\n".join(lines)


def _mean_sd(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def print_epoch(line: Mapping[str, Any]) -> None:
    """One line an epoch."""
    cells = "  ".join(f"{k.replace('valid_', '')} {line[k]:.4f}" for k in SHOWN)
    print(f"epoch {line['epoch']:3d}  {cells}  best {line['best_epoch']}", flush=True)


class Curves:
    """Every epoch's metrics as tensorboard curves in DIRECTORY/tensorboard; nothing where it is not installed."""

    def __init__(self, directory: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.writer = None
        else:
            self.writer = SummaryWriter(str(directory / "tensorboard"))

    def add(self, line: Mapping[str, Any]) -> None:
        """One epoch's metrics."""
        for name, value in line.items() if self.writer is not None else ():
            if name not in ("epoch", "step", "best_epoch"):
                self.writer.add_scalar(name.replace("_", "/", 1), value, line["epoch"])

    def close(self) -> None:
        """Ends the file."""
        if self.writer is not None:
            self.writer.close()


def predictions_json(
    ids: Sequence[str], labels: Sequence[str], p: np.ndarray, made: np.ndarray, threshold: float
) -> str:
    """Probabilities p and decisions made, both (n, L), of n samples as JSON."""
    samples = [
        {
            "id": name,
            "labels": [label for label, m in zip(labels, row) if m],
            "probabilities": dict(zip(labels, map(float, ps))),
        }
        for name, ps, row in zip(ids, p, made)
    ]
    return json.dumps({"threshold": threshold, "samples": samples}, indent=1) + "\n"


def predictions_csv(ids: Sequence[str], labels: Sequence[str], p: np.ndarray, made: np.ndarray) -> str:
    """The same as lines of id, probabilities, decisions."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["id", *(f"p({label})" for label in labels), *labels])
    for name, ps, row in zip(ids, p, made):
        writer.writerow([name, *(f"{x:.6f}" for x in ps), *map(int, row)])
    return buffer.getvalue()
