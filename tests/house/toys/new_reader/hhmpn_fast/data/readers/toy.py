"""Numbers in lines: one node a line, a blank line between samples.

SOURCE is a .toy file; the first word of a sample's first line says whether its label is "yes" or "no".
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hhmpn_fast.data.splits import Contents, Modality, Split

SUFFIXES = (".toy",)


@dataclass(frozen=True)
class Options:
    """scale: what every number is multiplied by."""

    scale: float = 1.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `convert toy`."""
    parser.add_argument("--scale", type=float, default=1.0)


def options(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `Options`."""
    return {"scale": args.scale}


def read(source: Path, options: Options) -> Contents:
    """One modality, `numbers`."""
    samples = [[line.split() for line in s.splitlines()] for s in source.read_text().strip().split("\n\n")]
    nodes = [[float(x) for x in words[-2:]] for sample in samples for words in sample]
    labels = np.array([[sample[0][0] == "yes"] for sample in samples], dtype=np.uint8)
    lengths = np.array([len(sample) for sample in samples])
    ids = [f"toy-{i}" for i in range(len(samples))]
    values = options.scale * np.array(nodes, dtype=np.float32)
    split = Split("train", {"numbers": values}, {"numbers": lengths}, labels, ids)
    return Contents([split], [Modality("numbers", 2)], ("yes",), ["read by a toy"])
