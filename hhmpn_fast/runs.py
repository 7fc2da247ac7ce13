"""A run from data set to results: train one or several seeds, evaluate, predict; what the command line calls.

A run's directory holds run.json (all it was made from), metrics.jsonl, checkpoint.safetensors, weights.safetensors and
results.json; several seeds or folds each have a directory of their own below it, and a summary above them.
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hhmpn_fast
from hhmpn_fast import metrics
from hhmpn_fast.backends import current
from hhmpn_fast.checkpoint import Weights, write_text
from hhmpn_fast.config import HHMPNConfig, TrainingConfig, dumps, replace
from hhmpn_fast.data.pool import Pool
from hhmpn_fast.data.pool import folds as fold_views
from hhmpn_fast.data.store import Dataset, read_metadata
from hhmpn_fast.errors import InputError
from hhmpn_fast.training import Trainer, probabilities

OURS, TUNED = "HHMPN, threshold {:.2f}", "HHMPN, tuned threshold {:.2f}"


@dataclass(frozen=True)
class Splits:
    """The three splits of a run, with the run's modalities and standardisation."""

    train: Dataset | Pool
    valid: Dataset | Pool
    test: Dataset | Pool

    @classmethod
    def open(cls, path: Path, config: HHMPNConfig, standardise: tuple[str, ...]) -> Splits:
        """The data set's own train, valid and test."""
        names = tuple(config.modalities)
        return cls(*(open_split(path, s, names, standardise) for s in ("train", "valid", "test")))


def open_split(path: Path, split: str, modalities: tuple[str, ...], standardise: tuple[str, ...]) -> Dataset:
    """One split with some of its modalities; samples without a node in any of them are left out."""
    data = Dataset.open(path, split)
    data = data if data.names == modalities else data.select(modalities, empty="drop")
    return data.standardise(modalities if standardise == ("all",) else standardise)


def config_for(path: Path, preset: Mapping[str, Any], modalities: Iterable[str] | None) -> HHMPNConfig:
    """A configuration whose modalities, sizes and labels are the data set's."""
    metadata = read_metadata(path)
    sizes = {m["name"]: m["size"] for m in metadata["modalities"]}
    for name in modalities or ():
        if name not in sizes:
            raise InputError(f"modality '{name}': not in '{path}'; expected any of {', '.join(sizes)}.")
    chosen = {n: sizes[n] for n in modalities or sizes}
    if not metadata["labels"]:
        raise InputError(f"data set '{path}': has no labels; training needs them.")
    return HHMPNConfig.from_dict({"modalities": chosen, "labels": metadata["labels"], **preset})


def train(
    data: Path,
    directory: Path,
    config: HHMPNConfig,
    training: TrainingConfig,
    *,
    splits: Splits | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    progress: bool = False,
    tensorboard: bool = False,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Trains one model, keeps its best epoch and evaluates it on the test split; returns what results.json holds."""
    splits = splits or Splits.open(data, config, training.standardise)
    about = {
        "data": os.path.abspath(data),
        "fingerprint": splits.train.metadata["fingerprint"],
        "config": config.to_dict(),
        "training": training.to_dict(),
        "version": hhmpn_fast.__version__,
        "torch": torch.__version__,
        "backend": current(),
        "threads": torch.get_num_threads(),
    }
    if (directory / "run.json").exists() and not resume:
        raise InputError(f"run '{directory}': exists already; expected a new directory, or --resume to continue it.")
    trainer = Trainer(config, training, splits.train, splits.valid, directory, progress=progress)
    if resume and (directory / "checkpoint.safetensors").exists():
        trainer.resume()
    # What a backend refuses is refused on one sample, before anything is written.
    probabilities(trainer.model, splits.valid.subset(torch.tensor([0])))
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / "run.json", dumps(about))
    writer = _tensorboard(directory) if tensorboard else None

    def report(line: dict[str, Any]) -> None:
        if writer is not None:
            for name, value in line.items():
                if name not in ("epoch", "step", "best_epoch"):
                    writer.add_scalar(name.replace("_", "/", 1), value, line["epoch"])
        if on_epoch is not None:
            on_epoch(line)

    trainer.on_epoch = report
    began = time.perf_counter()
    model = trainer.fit(checkpoint_every)
    seconds = time.perf_counter() - began
    weights = trainer.weights()
    weights.save(directory / "weights.safetensors")
    if writer is not None:
        writer.close()
    results = evaluate(weights, splits.test, splits.train)
    results |= {"best_epoch": trainer.best["epoch"], "epochs": trainer.epoch, "seconds": round(seconds, 1)}
    results["parameters"] = sum(p.numel() for p in model.parameters())
    write_text(directory / "results.json", dumps(results))
    return results


def read_run(directory: Path) -> dict[str, Any]:
    """run.json of a run: all it was made from."""
    file = directory / "run.json"
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"run '{directory}': run.json cannot be read ({error}); expected a run's directory.") from None
    return about


def train_seeds(
    data: Path, directory: Path, config: HHMPNConfig, training: TrainingConfig, seeds: Iterable[int], **options: Any
) -> list[dict[str, Any]]:
    """One run a seed, in seed-K below the directory; a finished one is kept, an interrupted one resumed."""
    out = []
    for seed in seeds:
        own, place = replace(training, seed=seed), directory / f"seed-{seed}"
        finished = place / "results.json"
        if finished.exists() and read_run(place)["training"] == own.to_dict():
            out.append(json.loads(finished.read_text(encoding="utf-8")))
        else:
            out.append(train(data, place, config, own, resume=place.exists(), **options))
    return out


def train_folds(
    data: Path, directory: Path, config: HHMPNConfig, training: TrainingConfig, folds: int, **options: Any
) -> list[dict[str, Any]]:
    """K-fold cross validation over train, valid and test together: one run a fold, in fold-K below the directory."""
    out = []
    whole = Splits.open(data, config, training.standardise)
    for k, parts in enumerate(fold_views(Pool((whole.train, whole.valid, whole.test)), folds, training.seed)):
        place = directory / f"fold-{k}"
        out.append(train(data, place, config, training, resume=place.exists(), splits=Splits(*parts), **options))
    return out


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


def render(results: Mapping[str, Any]) -> str:
    """`evaluate`'s results as text."""
    tuned = results["thresholds"]["tuned"]
    return "\n".join(
        [
            f"{results['split']} split, {results['samples']} samples",
            metrics.table(results["rows"]),
            f"mean average precision {results['mean_average_precision']:.4f}, mean AUC {results['mean_auc']:.4f}",
            "",
            f"per label, threshold {tuned:.2f} (tuned on validation for micro-F1)",
            metrics.label_table(results["per_label"]),
            "Acc: mean example Jaccard, an empty union counts 0. P, R and F1 without support or decisions count 0.",
        ]
    )


def summarise(runs: list[dict[str, Any]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Mean and standard deviation over runs of every headline metric, at both thresholds, and of the mean AUC."""
    out: dict[str, dict[str, tuple[float, float]]] = {}
    for prefix, name in (("HHMPN, threshold", "threshold"), ("HHMPN, tuned", "tuned threshold")):
        rows = [next(v for k, v in r["rows"].items() if k.startswith(prefix)) for r in runs]
        out[name] = {k: _mean_sd([row[k] for row in rows]) for k in metrics.HEADLINE}
    both = ("mean_average_precision", "mean_auc", "seconds")
    return out | {"either": {k: _mean_sd([r[k] for r in runs]) for k in both}}


def render_summary(summary: Mapping[str, Mapping[str, tuple[float, float]]], count: int) -> str:
    """`summarise` as text: mean and standard deviation."""
    lines = [f"{count} runs, mean (sd)".ljust(24) + "".join(t.rjust(16) for t in metrics.TITLES)]
    for name in ("threshold", "tuned threshold"):
        cells = "".join(f"{m:9.4f} ({s:.3f})".rjust(16) for m, s in (summary[name][k] for k in metrics.HEADLINE))
        lines.append(name.ljust(24) + cells)
    ap, auc = summary["either"]["mean_average_precision"], summary["either"]["mean_auc"]
    lines.append(f"mean average precision {ap[0]:.4f} ({ap[1]:.3f}), mean AUC {auc[0]:.4f} ({auc[1]:.3f})")
    return "\n".join(lines)


def predict(weights: Weights, data: Dataset, out: Path, threshold: str = "tuned") -> int:
    """Writes probabilities and decisions of every sample to a .csv or .json file; returns how many samples."""
    if out.suffix not in (".csv", ".json"):
        raise InputError(f"output '{out}': ends in '{out.suffix}'; expected .csv or .json.")
    p = probabilities(weights.model, data)
    made = metrics.decisions(p, weights.thresholds[threshold])
    labels = weights.model.config.labels
    if out.suffix == ".json":
        samples = [
            {
                "id": name,
                "labels": [label for label, m in zip(labels, row) if m],
                "probabilities": dict(zip(labels, map(float, ps))),
            }
            for name, ps, row in zip(data.ids, p, made)
        ]
        text = json.dumps({"threshold": weights.thresholds[threshold], "samples": samples}, indent=1) + "\n"
    else:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["id", *(f"p({label})" for label in labels), *labels])
        for name, ps, row in zip(data.ids, p, made):
            writer.writerow([name, *(f"{x:.6f}" for x in ps), *map(int, row)])
        text = buffer.getvalue()
    write_text(out, text)
    return len(p)


def open_for(weights: Weights, path: Path, split: str) -> Dataset:
    """A split as the model was trained to read it: its modalities, its training set's mean and sd."""
    modalities = tuple(weights.model.config.modalities)
    data = Dataset.open(path, split, statistics=weights.statistics)
    missing = [n for n in modalities if n not in data.names]
    if missing:
        raise InputError(f"modality '{missing[0]}': not in '{path}'; expected {', '.join(modalities)}.")
    for name, size in zip(data.names, data.sizes):
        expected = weights.model.config.modalities.get(name, size)
        if size != expected:
            raise InputError(f"modality '{name}': features of size {size} in '{path}'; expected {expected}.")
    data = data if data.names == modalities else data.select(modalities)
    return data.standardise(tuple(weights.statistics))


def _mean_sd(values: list[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _tensorboard(directory: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory / "tensorboard"))
