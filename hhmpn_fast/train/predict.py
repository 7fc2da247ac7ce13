"""The command `predict`: a trained model's probabilities and decisions of new samples, to a CSV or JSON file."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from hhmpn_fast import metrics
from hhmpn_fast.data.pool import Pool
from hhmpn_fast.data.shards import read_metadata
from hhmpn_fast.data.store import Dataset
from hhmpn_fast.errors import InputError
from hhmpn_fast.files import check_folder, write_text
from hhmpn_fast.model import HHMPN
from hhmpn_fast.train import device, report
from hhmpn_fast.train.checkpoint import Weights
from hhmpn_fast.train.feed import Feed


@torch.no_grad()
def probabilities(model: HHMPN, data: Dataset | Pool, batch_size: int = 256, *, feed: Feed | None = None) -> np.ndarray:
    """Eq 17 for every sample, computed where the model lies: float64 (n, L). `feed`: one of `data` that is at hand."""
    was_training, place = model.training, model.label_embedding.device
    model.eval()
    # Samples of like length together: no padding to save, but tasks of like cost for the kernels.
    order = torch.argsort(data.lengths.sum(0), stable=True)
    feed = Feed(data, place) if feed is None else feed
    logits = [model(batch.features)[-1] for batch in feed(order.split(batch_size))]
    out = torch.zeros(len(data), len(model.config.labels), dtype=torch.float64)
    if logits:
        out[order] = torch.cat([torch.sigmoid(part.cpu().double()) for part in logits])
    model.train(was_training)
    return out.numpy()


def predict(weights: Weights, data: Dataset, out: Path, threshold: str = "tuned") -> int:
    """Writes probabilities and decisions of every sample to a .csv or .json file; returns how many samples."""
    if out.suffix not in (".csv", ".json"):
        raise InputError(f"output '{out}': ends in '{out.suffix}'; expected .csv or .json.")
    check_folder(out)
    p = probabilities(weights.model, data)
    made = metrics.decisions(p, weights.thresholds[threshold])
    labels = weights.model.config.labels
    if out.suffix == ".json":
        text = report.predictions_json(data.ids, labels, p, made, weights.thresholds[threshold])
    else:
        text = report.predictions_csv(data.ids, labels, p, made)
    write_text(out, text)
    return len(p)


def load(run: Path, name: str | None = None) -> Weights:
    """The weights of a run's directory, or of a weights file, with the model on the device that --device names."""
    weights = Weights.load(run / "weights.safetensors" if run.is_dir() else run)
    weights.model.to(device.pick(name, weights.model.config.dim))
    return weights


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


def add_source(parser: argparse.ArgumentParser, split: str | None = None) -> None:
    """What a trained model is asked about: the run, the data set, its split."""
    parser.add_argument("run", type=Path, help="run directory or weights file")
    parser.add_argument("data", type=Path, help="data set directory")
    parser.add_argument("--split", default=split)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `predict`."""
    add_source(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .csv or .json file")
    parser.add_argument("--threshold", choices=("tuned", "fixed"), default="tuned")
    device.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Runs `predict` as parsed."""
    with device.settings(args):
        weights, splits = load(args.run, args.device), list(read_metadata(args.data)["splits"])
        if args.split is None and len(splits) > 1:
            raise InputError(f"--split: missing; '{args.data}' holds {', '.join(splits)}.")
        data = open_for(weights, args.data, args.split or splits[0])
        count = predict(weights, data, args.out, args.threshold)
    print(f"{count} samples to {args.out}, threshold {weights.thresholds[args.threshold]:.2f} ({args.threshold})")
