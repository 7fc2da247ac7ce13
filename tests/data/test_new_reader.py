"""To add a reader is to add one file: a toy reader in a copy of the package runs, and nothing else was touched."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "hhmpn_fast"

READER = '''"""Numbers in lines: one node a line, a blank line between samples.

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
    samples = [[line.split() for line in s.splitlines()] for s in source.read_text().strip().split("\\n\\n")]
    nodes = [[float(x) for x in words[-2:]] for sample in samples for words in sample]
    labels = np.array([[sample[0][0] == "yes"] for sample in samples], dtype=np.uint8)
    lengths = np.array([len(sample) for sample in samples])
    ids = [f"toy-{i}" for i in range(len(samples))]
    values = options.scale * np.array(nodes, dtype=np.float32)
    split = Split("train", {"numbers": values}, {"numbers": lengths}, labels, ids)
    return Contents([split], [Modality("numbers", 2)], ("yes",), ["read by a toy"])
'''


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package without its compiled parts, which no reader needs."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "kernels")
    return Path(shutil.copytree(PACKAGE, tmp_path / "copy" / "hhmpn_fast", ignore=ignored))


def digests(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.rglob("*.py")}


def command(copy: Path, *words: object) -> str:
    """What `hhmpn-fast WORDS` of the copy prints."""
    env = os.environ | {"PYTHONPATH": str(copy.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    line = [sys.executable, "-m", "hhmpn_fast.cli", *map(str, words)]
    done = subprocess.run(line, cwd=copy.parent, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_reader_is_one_file(copy: Path, tmp_path: Path) -> None:
    before = digests(copy)
    (copy / "data" / "readers" / "toy.py").write_text(READER)
    (tmp_path / "a.toy").write_text("yes 1 2\n3 4\n\nno 5 6\n\nyes 7 8\n")
    printed = command(copy, "convert", "toy", tmp_path / "a.toy", tmp_path / "o", "--scale", 2, "--valid-fraction", 0)
    assert "3 samples" in printed and "numbers 1.3 x 2" in printed and "note: read by a toy" in printed
    after = digests(copy)
    assert after.keys() - before.keys() == {os.path.join("data", "readers", "toy.py")}
    assert all(after[name] == digest for name, digest in before.items())

    from hhmpn_fast import Dataset  # the data set is like any other, whoever made it

    data = Dataset.open(tmp_path / "o", "train")
    assert data.batch([1, 0]).features.values[0].tolist() == [[10, 12], [2, 4], [6, 8]]
    assert data.labels.tolist() == [[1], [0], [1]] and data.metadata["provenance"]["kind"] == "toy"
    assert list(data.metadata["provenance"]["sources"]) == ["a.toy"]


def test_help_lists_it(copy: Path) -> None:
    (copy / "data" / "readers" / "toy.py").write_text(READER)
    assert "Numbers in lines: one node a line" in command(copy, "convert", "--help")
    own = command(copy, "convert", "toy", "--help")
    assert "--scale" in own and "--valid-fraction" in own and "first word" in own
