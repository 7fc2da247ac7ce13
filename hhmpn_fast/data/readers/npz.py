"""Arrays in .npz files: padded, flat or packed.

Padded sequences, one vector a sample, or packed values with offsets become modalities. SOURCE is a file (keys with
{split} or an array of --folds tell the splits apart), or a folder of train.npz, valid.npz, test.npz with the same keys.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hhmpn_fast.data.formats.npz import load_npz
from hhmpn_fast.data.nodes import from_offsets, trim_padding
from hhmpn_fast.data.parsing import pairs, ranges
from hhmpn_fast.data.splits import SPLITS, Contents, Modality, Split
from hhmpn_fast.errors import InputError

SUFFIXES = (".npz",)


@dataclass(frozen=True)
class ArraySpec:
    """Where a modality's nodes lie: key `values`, and key `offsets` for packed ones; `{split}` stands for the split."""

    name: str
    values: str
    offsets: str | None = None

    @classmethod
    def parse(cls, text: str) -> ArraySpec:
        """Reads NAME=KEY or NAME=VALUES_KEY@OFFSETS_KEY."""
        name, equals, rest = text.partition("=")
        values, at, offsets = rest.partition("@")
        if not equals or not name or not values or (at and not offsets):
            raise InputError(f"modality '{text}': expected NAME=KEY or NAME=VALUES_KEY@OFFSETS_KEY.")
        return cls(name, values, offsets or None)


@dataclass(frozen=True)
class Options:
    """How arrays become samples.

    Attributes:
        modalities: what to read. (n, T, e) arrays are padded sequences, (n, e) arrays are one node a sample, and
            values (N, e) with offsets (n+1,) are packed.
        labels: key of an (n, L) array; None for samples without labels.
        label_names: a key, or the names themselves; by default label-0, label-1, ...
        threshold: a label is present where the array lies above it; without one the array must hold 0 and 1.
        ids: key of the samples' names; by default SPLIT-0, SPLIT-1, ...
        folds: key of an (n,) array that names every sample's split.
        fold_names: value in `folds` to split, "" to leave such samples out; by default itself.
        splits: the splits to look for in keys with `{split}` or in a folder; those without arrays are skipped.
        trim: which all-zero rows of padded sequences are padding: "both" ends, "left", "right" or "none", for all or by
            modality. Zero rows in the middle always stay.
        drop_columns: modality to columns, "7" or "0-1,5", to leave out.
    """

    modalities: Sequence[ArraySpec | str]
    labels: str | None = None
    label_names: str | Sequence[str] | None = None
    threshold: float | None = None
    ids: str | None = None
    folds: str | None = None
    fold_names: Mapping[str, str] | None = None
    splits: Sequence[str] = SPLITS
    trim: str | Mapping[str, str] = "both"
    drop_columns: Mapping[str, str] | None = None


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `convert npz`."""
    parser.add_argument(
        "--modality",
        action="append",
        default=[],
        metavar="NAME=KEY[@OFFSETS]",
        help="where its nodes lie; {split} in a key stands for train, valid, test",
    )
    parser.add_argument("--labels", metavar="KEY", help="key of the labels; without it the samples have none")
    parser.add_argument("--label-names", metavar="KEY|A,B", help="key of the names, or the names")
    parser.add_argument("--threshold", type=float, metavar="X", help="a label is present above X")
    parser.add_argument("--ids", metavar="KEY")
    parser.add_argument("--folds", metavar="KEY", help="array that names every sample's split")
    parser.add_argument("--fold", action="append", default=[], metavar="VALUE=SPLIT", help="rename a value of --folds")
    parser.add_argument("--trim", default="both", metavar="both|left|right|none", help="where zero rows are padding")
    parser.add_argument(
        "--drop-columns", action="append", default=[], metavar="NAME:0-1,7", help="columns to leave out"
    )


def options(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `Options`."""
    drop = pairs("--drop-columns", args.drop_columns, ":")
    names = args.label_names.split(",") if args.label_names and "," in args.label_names else args.label_names
    return {
        "modalities": args.modality,
        "labels": args.labels,
        "label_names": names,
        "threshold": args.threshold,
        "ids": args.ids,
        "folds": args.folds,
        "fold_names": pairs("--fold", args.fold),
        "trim": pairs("--trim", args.trim.split(",")) if "=" in args.trim else args.trim,
        "drop_columns": drop,
    }


def read(source: Path, options: Options) -> Contents:
    """Reads an .npz file, or a folder of them named after the splits."""
    specs = [s if isinstance(s, ArraySpec) else ArraySpec.parse(s) for s in options.modalities]
    if not specs:
        raise InputError("npz: found no modality; expected at least one NAME=KEY.")
    unknown = [m for m in (options.drop_columns or {}) if m not in [s.name for s in specs]]
    listed = ", ".join(s.name for s in specs)
    if unknown:
        raise InputError(f"drop_columns: '{unknown[0]}' is no modality; expected one of {listed}.")
    arrays = _Arrays(specs, options)
    found = [arrays.split(name, held) for name, held in _per_split(source, specs, options.splits)]
    if options.folds is not None:
        if len(found) != 1:
            raise InputError(
                f"folds '{options.folds}': found {len(found)} splits already; expected one file without splits."
            )
        found = arrays.by_fold(found[0], options.folds, options.fold_names or {})
    modalities = [Modality(s.name, arrays.sizes[s.name]) for s in specs]
    return Contents(found, modalities, arrays.names, arrays.notes)


def _per_split(
    source: Path, specs: Sequence[ArraySpec], splits: Sequence[str]
) -> list[tuple[str, dict[str, np.ndarray]]]:
    if source.is_dir():
        found = [(s, load_npz(source / f"{s}.npz")) for s in splits if (source / f"{s}.npz").is_file()]
        if not found:
            listed = ", ".join(f"{s}.npz" for s in splits)
            raise InputError(f"'{source}': found none of {listed}; expected at least one.")
        return found
    arrays = load_npz(source)
    if not any("{split}" in s.values for s in specs):
        return [("train", arrays)]
    chosen = [s for s in splits if any(spec.values.replace("{split}", s) in arrays for spec in specs)]
    if not chosen:
        key = specs[0].values
        raise InputError(f"'{source}': no key '{key}' for any of {', '.join(splits)}; found {', '.join(arrays)}.")
    return [(s, arrays) for s in chosen]


class _Arrays:
    """Turns the arrays of one split into a `Split`, and remembers widths, label names and notes."""

    def __init__(self, specs: Sequence[ArraySpec], options: Options) -> None:
        self.specs, self.options = specs, options
        self.sizes: dict[str, int] = {}
        self.names: tuple[str, ...] = ()
        self.notes: list[str] = []
        self.arrays: dict[str, np.ndarray] = {}

    def split(self, name: str, arrays: dict[str, np.ndarray]) -> Split:
        self.arrays = arrays
        values, lengths = {}, {}
        for spec in self.specs:
            values[spec.name], lengths[spec.name] = self._modality(name, spec)
        counts = {m: len(row) for m, row in lengths.items()}
        if len(set(counts.values())) > 1:
            raise InputError(f"split '{name}': the modalities hold {counts} samples; expected one count for all.")
        n = next(iter(counts.values()))
        key = self.options.ids
        ids = [f"{name}-{i}" for i in range(n)] if key is None else [str(i) for i in self._key(key, name)]
        if len(ids) != n:
            raise InputError(f"ids '{key}' of split '{name}': found {len(ids)}; expected {n}.")
        return Split(name, values, lengths, self._labels(name, n), ids)

    def by_fold(self, whole: Split, key: str, names: Mapping[str, str]) -> list[Split]:
        folds = np.array([names.get(str(f), str(f)) for f in self._key(key, whole.name)])
        if folds.shape != (len(whole),):
            raise InputError(f"folds '{key}': shape {folds.shape}; expected ({len(whole)},).")
        found = sorted(set(folds.tolist()) - {""}, key=lambda f: (SPLITS.index(f) if f in SPLITS else len(SPLITS), f))
        return [whole.subset(np.flatnonzero(folds == f), f) for f in found]

    def _key(self, key: str, split: str) -> np.ndarray:
        name = key.replace("{split}", split)
        if name not in self.arrays:
            held = ", ".join(self.arrays)
            raise InputError(f"key '{name}': not in the file of split '{split}'; expected one of {held}.")
        return self.arrays[name]

    def _modality(self, split: str, spec: ArraySpec) -> tuple[np.ndarray, np.ndarray]:
        array = self._key(spec.values, split)
        if array.dtype.kind not in "fiub":
            raise InputError(f"modality '{spec.name}': values are {array.dtype}; expected numbers.")
        array = self._without_columns(spec.name, array.astype(np.float32, copy=False))
        if spec.offsets is not None:
            values, lengths = from_offsets(spec.name, array, self._key(spec.offsets, split))
        elif array.ndim == 2:
            values, lengths = array, np.ones(len(array), dtype=np.int64)
        elif array.ndim == 3:
            trim = self.options.trim
            trim = trim if isinstance(trim, str) else trim.get(spec.name, "both")
            values, lengths = trim_padding(array, trim)
            rows, kept = array.shape[0] * array.shape[1], len(values)
            self.notes.append(
                f"modality '{spec.name}', split '{split}': {rows - kept} of {rows} rows were zero padding (trimmed "
                f"'{trim}'); {int((lengths == 0).sum())} of {len(lengths)} samples have none left."
            )
        else:
            raise InputError(
                f"modality '{spec.name}': shape {array.shape}; expected (n, T, e), (n, e), or (N, e) with offsets."
            )
        if self.sizes.setdefault(spec.name, values.shape[1]) != values.shape[1]:
            raise InputError(
                f"modality '{spec.name}': nodes of split '{split}' are {values.shape[1]} wide; expected "
                f"{self.sizes[spec.name]} as in the first split."
            )
        return values, lengths

    def _without_columns(self, name: str, array: np.ndarray) -> np.ndarray:
        columns = (self.options.drop_columns or {}).get(name)
        if columns is None or array.ndim < 2:
            return array
        drop = ranges(columns, f"modality '{name}'")
        width = array.shape[-1]
        if max(drop) >= width or len(set(drop)) >= width:
            raise InputError(f"modality '{name}': columns {columns} to drop; expected some of 0..{width - 1}.")
        note = f"modality '{name}': dropped columns {columns} of {width}."
        if note not in self.notes:
            self.notes.append(note)
        return np.delete(array, drop, axis=-1)

    def _labels(self, split: str, n: int) -> np.ndarray | None:
        key, threshold = self.options.labels, self.options.threshold
        if key is None:
            return None
        array = self._key(key, split)
        if array.ndim != 2 or len(array) != n:
            raise InputError(f"labels '{key}' of split '{split}': shape {array.shape}; expected ({n}, L).")
        if array.dtype.kind not in "fiub":
            raise InputError(f"labels '{key}' of split '{split}': values are {array.dtype}; expected numbers.")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"labels '{key}' of split '{split}': found NaN or inf; expected finite numbers.")
        given = self.options.label_names
        if isinstance(given, str):
            names = [str(x) for x in self._key(given, split)]
        else:
            names = list(given) if given is not None else [f"label-{i}" for i in range(array.shape[1])]
        if len(names) != array.shape[1]:
            raise InputError(f"labels '{key}': found {array.shape[1]} columns and {len(names)} names.")
        self.names = tuple(names)
        return array if threshold is None else (array > threshold).astype(np.uint8)
