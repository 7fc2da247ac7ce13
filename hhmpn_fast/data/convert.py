"""One call from source files to a data set on disk: read, drop, carve a validation split, check, write."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import hhmpn_fast
from hhmpn_fast.data.arrays import read_npz
from hhmpn_fast.data.mulan import read_mulan
from hhmpn_fast.data.splits import Modality, Split, carve_validation, drop_empty_samples
from hhmpn_fast.data.text import read_tsv
from hhmpn_fast.data.writer import write
from hhmpn_fast.errors import InputError

Read = tuple[list[Split], list[Modality], tuple[str, ...], list[str]]
Reader = Callable[..., Any]
READERS: dict[str, Reader] = {"mulan": read_mulan, "npz": read_npz, "tsv": read_tsv}


def convert(
    kind: str,
    source: str | Path,
    out: str | Path,
    *,
    valid_fraction: float = 0.1,
    seed: int = 0,
    drop_labels: Sequence[str] = (),
    drop_empty: bool = False,
    dtype: str = "float32",
    overwrite: bool = False,
    **options: Any,
) -> Path:
    """Converts source files to the project's form and returns the data set's directory.

    Args:
        kind: "mulan" (ARFF and XML), "npz" or "tsv".
        source: the file or directory.
        out: the directory to make.
        valid_fraction: the share of "train" that becomes "valid", by iterative stratification, where the source has
            labels but no "valid" of its own; 0 leaves training whole.
        seed: of that cut.
        drop_labels: labels to leave out.
        drop_empty: leave out samples whose every modality is empty instead of refusing them.
        dtype: how values are stored, "float32" or "float16".
        overwrite: replace what stands at `out`.
        **options: those of `read_mulan`, `read_npz` or `read_tsv`.

    Raises:
        InputError: an unknown kind or option, a source that does not read, or whatever `write` refuses.
    """
    if kind not in READERS:
        raise InputError(f"convert: unknown kind '{kind}'; expected one of {', '.join(READERS)}.")
    reader = READERS[kind]
    known = [p for p in inspect.signature(reader).parameters if p != "source"]
    unknown = [o for o in options if o not in known]
    if unknown:
        raise InputError(f"convert {kind}: unknown option '{unknown[0]}'; expected some of {', '.join(known)}.")
    if not Path(source).exists():
        raise InputError(f"source '{source}': does not exist; expected a file or a directory.")
    splits, modalities, labels, *rest = reader(source, **options)
    notes: list[str] = list(rest[0]) if rest else []
    splits, labels = _without_labels(splits, labels, drop_labels, notes)
    if drop_empty:
        splits = [_without_empty(s, notes) for s in splits]
    if labels:
        splits = _with_validation(splits, valid_fraction, seed, notes)
    elif [s.name for s in splits] == ["train"]:
        splits[0].name = "predict"
    provenance = {
        "kind": kind,
        "sources": _digests(Path(source)),
        "options": {k: _plain(v) for k, v in options.items()},
        "valid_fraction": valid_fraction,
        "seed": seed,
        "hhmpn_fast": hhmpn_fast.__version__,
    }
    return write(out, splits, modalities, labels, dtype=dtype, provenance=provenance, notes=notes, overwrite=overwrite)


def _without_labels(
    splits: list[Split], labels: tuple[str, ...], drop: Sequence[str], notes: list[str]
) -> tuple[list[Split], tuple[str, ...]]:
    unknown = [d for d in drop if d not in labels]
    if unknown:
        raise InputError(f"drop_labels: '{unknown[0]}' is no label; expected some of {', '.join(labels)}.")
    if not drop:
        return splits, labels
    keep = [i for i, name in enumerate(labels) if name not in drop]
    if not keep:
        raise InputError("drop_labels: found every label; expected at least one to stay.")
    for split in splits:
        assert split.labels is not None
        split.labels = np.asarray(split.labels)[:, keep]
    notes.append(f"labels left out: {', '.join(drop)}.")
    return splits, tuple(labels[i] for i in keep)


def _without_empty(split: Split, notes: list[str]) -> Split:
    kept, dropped = drop_empty_samples(split)
    if dropped:
        notes.append(f"split '{split.name}': left out {dropped} samples whose every modality is empty.")
    return kept


def _with_validation(splits: list[Split], fraction: float, seed: int, notes: list[str]) -> list[Split]:
    names = [s.name for s in splits]
    if "train" not in names or "valid" in names or fraction == 0:
        return splits
    at = names.index("train")
    train, valid = carve_validation(splits[at], fraction, seed)
    notes.append(
        f"validation: {len(valid)} of {len(splits[at])} training samples by iterative stratification (seed {seed})."
    )
    return [*splits[:at], train, valid, *splits[at + 1 :]]


def _digests(source: Path) -> dict[str, str]:
    """SHA-256 of the source file, or of the table files in a source directory, by bare name."""
    kinds = (".arff", ".xml", ".npz", ".tsv")
    files: Iterable[Path] = [source] if source.is_file() else sorted(f for f in source.iterdir() if f.suffix in kinds)
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def _plain(value: Any) -> Any:
    """An option as JSON: paths by their bare name, dataclasses by their text."""
    if isinstance(value, Path):
        return value.name
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return Path(value).name if "/" in value and Path(value).exists() else value
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return repr(value)
