"""Runs from data set to results, of one seed, several seeds, or the folds of a cross validation.

A run's directory holds run.json (all it was made from), metrics.jsonl, checkpoint.safetensors, weights.safetensors and
results.json; several seeds or folds each have a directory of their own below it, and a summary above them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import hhmpn_fast
from hhmpn_fast.backends import current
from hhmpn_fast.config import HHMPNConfig, TrainingConfig, replace
from hhmpn_fast.data.pool import Pool
from hhmpn_fast.data.pool import folds as fold_views
from hhmpn_fast.data.shards import read_metadata
from hhmpn_fast.data.store import Dataset
from hhmpn_fast.errors import InputError
from hhmpn_fast.files import dumps, write_text
from hhmpn_fast.train.evaluate import evaluate
from hhmpn_fast.train.predict import probabilities
from hhmpn_fast.train.report import Curves
from hhmpn_fast.train.trainer import CHECKPOINT, Trainer


@dataclass(frozen=True)
class Driving:
    """How a run is driven and watched; none of it belongs to what is trained.

    Attributes:
        device: where the model lies.
        checkpoint_every: steps between checkpoints, besides every epoch's end.
        progress: show a progress bar.
        tensorboard: write curves, where tensorboard is installed.
        graph: whether steps are replayed from CUDA graphs (`hhmpn_fast.train.captured`).
        on_start: called with a line that says where the batches come from and, at the end, how the steps ran, on a GPU.
        on_epoch: called with every epoch's metrics.
    """

    device: torch.device | str = "cpu"
    checkpoint_every: int | None = None
    progress: bool = False
    tensorboard: bool = False
    graph: str = "auto"
    on_start: Callable[[str], None] | None = None
    on_epoch: Callable[[dict[str, Any]], None] | None = None


PLAIN = Driving()


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
    driving: Driving = PLAIN,
    *,
    splits: Splits | None = None,
    resume: bool = False,
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
        "device": str(driving.device),
        "threads": torch.get_num_threads(),
    }
    if (directory / "run.json").exists() and not resume:
        raise InputError(f"run '{directory}': exists already; expected a new directory, or --resume to continue it.")
    trainer = Trainer(
        config, training, splits.train, splits.valid, directory, device=driving.device, progress=driving.progress
    )
    trainer.use_graph(driving.graph)
    if resume and (directory / CHECKPOINT).exists():
        trainer.resume()
    # What a backend refuses is refused on one sample, before anything is written.
    probabilities(trainer.model, splits.valid.subset(torch.tensor([0])))
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / "run.json", dumps(about))
    curves = Curves(directory) if driving.tensorboard else None
    watchers = [w for w in (curves and curves.add, driving.on_epoch) if w is not None]
    trainer.on_epoch = lambda line: [watch(line) for watch in watchers]
    said = [words for feed in trainer.feeds if (words := feed.describe())]
    if driving.on_start is not None and said:
        driving.on_start("; ".join(said))
    began = time.perf_counter()
    model = trainer.fit(driving.checkpoint_every)
    seconds = time.perf_counter() - began
    if driving.on_start is not None and trainer.describe():
        driving.on_start(trainer.describe())
    weights = trainer.weights()
    weights.save(directory / "weights.safetensors")
    if curves is not None:
        curves.close()
    results = evaluate(weights, splits.test, splits.train)
    at = trainer.progress
    results |= {"best_epoch": at.best.epoch, "epochs": at.epoch, "seconds": round(seconds, 1)}
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
    for name, kind in {"data": str, "config": dict, "training": dict}.items():
        if not isinstance(about, dict) or not isinstance(about.get(name), kind):
            raise InputError(f"run '{directory}': run.json has no entry '{name}'; expected what `train` wrote.")
    return about


def train_seeds(
    data: Path,
    directory: Path,
    config: HHMPNConfig,
    training: TrainingConfig,
    seeds: Iterable[int],
    driving: Driving = PLAIN,
) -> list[dict[str, Any]]:
    """One run a seed, in seed-K below the directory; a finished one is kept, an interrupted one resumed."""
    out = []
    for seed in seeds:
        own, place = replace(training, seed=seed), directory / f"seed-{seed}"
        finished = place / "results.json"
        if finished.exists() and read_run(place)["training"] == own.to_dict():
            out.append(json.loads(finished.read_text(encoding="utf-8")))
        else:
            out.append(train(data, place, config, own, driving, resume=place.exists()))
    return out


def train_folds(
    data: Path,
    directory: Path,
    config: HHMPNConfig,
    training: TrainingConfig,
    folds: int,
    driving: Driving = PLAIN,
) -> list[dict[str, Any]]:
    """K-fold cross validation over train, valid and test together: one run a fold, in fold-K below the directory."""
    out = []
    whole = Splits.open(data, config, training.standardise)
    for k, parts in enumerate(fold_views(Pool((whole.train, whole.valid, whole.test)), folds, training.seed)):
        place, views = directory / f"fold-{k}", Splits(*parts)
        out.append(train(data, place, config, training, driving, splits=views, resume=place.exists()))
    return out
