"""The command `convert synthetic`: draws and writes a planted set, with the scores of its optimum."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from hhmpn_fast import metrics
from hhmpn_fast.data.parsing import pairs, real, whole
from hhmpn_fast.data.planted.draw import OPTIMUM, draw
from hhmpn_fast.data.planted.plan import Plan
from hhmpn_fast.data.planted.presets import PRESETS, preset
from hhmpn_fast.data.planted.world import World
from hhmpn_fast.data.splits import SPLITS, Modality, Split
from hhmpn_fast.data.writer import write


def generate(plan: Plan, out: str | Path, *, seed: int = 0, dtype: str = "float32", overwrite: bool = False) -> Path:
    """Draws and writes a set; the planted optimum's scores stand in its metadata, its probabilities in its shards.

    metadata["optimum"][split] holds the headline metrics that thresholding the optimal probabilities at 0.5 reaches on
    the split's labels, and `expected_hamming_loss`, its mean over all draws of the labels.

    Raises:
        InputError: whatever `write` refuses; a label that no training sample drew, for one.
    """
    world, optimum = World(plan, seed), {}

    def splits() -> Iterator[Split]:
        for name, samples in zip(SPLITS, plan.samples):
            split = draw(world, name, samples, seed)
            optimum[name] = optimum_scores(split)
            yield split

    modalities, names = [Modality(s.name, s.size) for s in plan.sources], [x.name for x in plan.labels]
    about = {"provenance": {"kind": "synthetic", "seed": seed, "plan": asdict(plan)}, "optimum": optimum}
    return write(out, splits(), modalities, names, dtype=dtype, overwrite=overwrite, **about)


def optimum_scores(split: Split) -> dict[str, float]:
    """The headline metrics of the planted optimum on one split, and its expected Hamming loss."""
    chance = split.extra[OPTIMUM]
    found = metrics.scores(np.asarray(split.labels), metrics.decisions(chance, 0.5))
    return found | {"expected_hamming_loss": float(np.minimum(chance, 1 - chance).mean(dtype=np.float64))}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `convert synthetic`."""
    parser.add_argument("preset", choices=tuple(PRESETS))
    parser.add_argument("out", help="the data set to make, a directory")
    parser.add_argument("--samples", metavar="TRAIN,VALID,TEST", help="split sizes instead of the preset's")
    parser.add_argument("--size", action="append", default=[], metavar="MODALITY=E", help="width of its nodes")
    parser.add_argument("--length", action="append", default=[], metavar="MODALITY=MEAN", help="mean number of nodes")


def run(args: argparse.Namespace) -> Path:
    """Runs `convert synthetic` as parsed; returns the data set's directory."""
    sizes = {k: whole("--size", v) for k, v in pairs("--size", args.size).items()}
    lengths = {k: real("--length", v) for k, v in pairs("--length", args.length).items()}
    samples = [whole("--samples", s) for s in args.samples.split(",")] if args.samples else None
    plan = preset(args.preset, samples=samples, sizes=sizes, lengths=lengths)
    return generate(plan, args.out, seed=args.seed, dtype=args.dtype, overwrite=args.overwrite)
