"""What a data set holds, in a few lines, as `convert` prints it."""

from __future__ import annotations

from pathlib import Path

from hhmpn_fast.data.shards import read_metadata
from hhmpn_fast.data.store import Dataset


def summary(path: str | Path) -> str:
    """What a data set holds, in a few lines: splits, modalities with their lengths, label prevalences, notes."""
    metadata = read_metadata(path)
    lines = [f"data set {path}  ({metadata['fingerprint'][:12]})"]
    for name, held in metadata["splits"].items():
        data = Dataset.open(path, name)
        lengths = [
            f"{m} {row.float().mean():.1f} x {e}"
            + (f" ({int((row == 0).sum())} empty)" if bool((row == 0).any()) else "")
            for m, e, row in zip(data.names, data.sizes, data.lengths)
        ]
        lines.append(f"  {name:8s} {held['samples']:7d} samples   mean nodes: {', '.join(lengths)}")
        if "positives" in held:
            shares = [f"{k} {100 * v / held['samples']:.1f}" for k, v in held["positives"].items()]
            lines.append(f"           labels present in %: {', '.join(shares)}")
    return "\n".join([*lines, *(f"  note: {n}" for n in metadata.get("notes", []))])
