"""Arrays in .npz files: padded sequences, one vector a sample, or packed values with offsets become modalities."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hhmpn_fast.data.mulan import parse_ranges
from hhmpn_fast.data.splits import Modality, Split
from hhmpn_fast.errors import InputError

TRIMS = ("both", "left", "right", "none")


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


def load_npz(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; object arrays (pickles) are refused."""
    path = Path(path)
    try:
        with path.open("rb") as raw:
            file = np.load(raw, allow_pickle=False)
            found = None if isinstance(file, np.ndarray) else {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise InputError(f"'{path}': cannot be read ({error}); expected an .npz file without pickles.") from None
    if found is None:
        raise InputError(f"'{path}': holds one bare array; expected an .npz file of named arrays.")
    return found


def read_npz(
    source: str | Path,
    *,
    modalities: Sequence[ArraySpec | str],
    labels: str | None = None,
    label_names: str | Sequence[str] | None = None,
    threshold: float | None = None,
    ids: str | None = None,
    folds: str | None = None,
    fold_names: Mapping[str, str] | None = None,
    splits: Sequence[str] = ("train", "valid", "test"),
    trim: str | Mapping[str, str] = "both",
    drop_columns: Mapping[str, str] | None = None,
) -> tuple[list[Split], list[Modality], tuple[str, ...], list[str]]:
    """Reads an .npz file, or a directory of them named after the splits.

    Args:
        source: the file (keys with `{split}` or an array of `folds` tell the splits apart), or a directory that holds
            train.npz, valid.npz, test.npz with the same keys.
        modalities: what to read. (n, T, e) arrays are padded sequences, (n, e) arrays are one node a sample, and
            values (N, e) with offsets (n+1,) are packed.
        labels: key of an (n, L) array; None for samples without labels.
        label_names: a key, or the names themselves; by default label-0, label-1, ...
        threshold: a label is present where the array lies above it; without one the array must hold 0 and 1.
        ids: key of the samples' names; by default SPLIT-0, SPLIT-1, ...
        folds: key of an (n,) array that names every sample's split.
        fold_names: value in `folds` to split, "" to leave such samples out; by default itself.
        splits: the splits to look for in keys with `{split}` or in a directory; those without arrays are skipped.
        trim: which all-zero rows of padded sequences are padding: "both" ends, "left", "right" or "none", for all or by
            modality. Zero rows in the middle always stay.
        drop_columns: modality to columns, "7" or "0-1,5", to leave out.

    Returns:
        (splits, modalities, label names, notes).
    """
    specs = [s if isinstance(s, ArraySpec) else ArraySpec.parse(s) for s in modalities]
    if not specs:
        raise InputError("npz: found no modality; expected at least one NAME=KEY.")
    unknown = [m for m in (drop_columns or {}) if m not in [s.name for s in specs]]
    listed = ", ".join(s.name for s in specs)
    if unknown:
        raise InputError(f"drop_columns: '{unknown[0]}' is no modality; expected one of {listed}.")
    reader = _Reader(specs, labels, label_names, threshold, ids, trim, drop_columns or {})
    found = [reader.split(name, arrays) for name, arrays in _per_split(source, specs, labels, splits)]
    if folds is not None:
        if len(found) != 1:
            raise InputError(f"folds '{folds}': found {len(found)} splits already; expected one file without splits.")
        found = reader.by_fold(found[0], folds, fold_names or {})
    return found, [Modality(s.name, reader.sizes[s.name]) for s in specs], reader.names, reader.notes


def _per_split(
    source: str | Path, specs: Sequence[ArraySpec], labels: str | None, splits: Sequence[str]
) -> list[tuple[str, dict[str, np.ndarray]]]:
    source = Path(source)
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


class _Reader:
    """Turns the arrays of one split into a `Split`, and remembers widths, label names and notes."""

    def __init__(
        self,
        specs: Sequence[ArraySpec],
        labels: str | None,
        label_names: str | Sequence[str] | None,
        threshold: float | None,
        ids: str | None,
        trim: str | Mapping[str, str],
        drop_columns: Mapping[str, str],
    ) -> None:
        self.specs, self.labels, self.label_names, self.threshold = specs, labels, label_names, threshold
        self.ids, self.trim, self.drop_columns = ids, trim, drop_columns
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
        ids = [f"{name}-{i}" for i in range(n)] if self.ids is None else [str(i) for i in self._key(self.ids, name)]
        if len(ids) != n:
            raise InputError(f"ids '{self.ids}' of split '{name}': found {len(ids)}; expected {n}.")
        return Split(name, values, lengths, self._labels(name, n), ids)

    def by_fold(self, whole: Split, key: str, names: Mapping[str, str]) -> list[Split]:
        folds = np.array([names.get(str(f), str(f)) for f in self._key(key, whole.name)])
        if folds.shape != (len(whole),):
            raise InputError(f"folds '{key}': shape {folds.shape}; expected ({len(whole)},).")
        usual = ("train", "valid", "test")
        found = sorted(set(folds.tolist()) - {""}, key=lambda f: (usual.index(f) if f in usual else 3, f))
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
            values, lengths = _packed(spec.name, array, self._key(spec.offsets, split))
        elif array.ndim == 2:
            values, lengths = array, np.ones(len(array), dtype=np.int64)
        elif array.ndim == 3:
            trim = self.trim if isinstance(self.trim, str) else self.trim.get(spec.name, "both")
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
        if name not in self.drop_columns or array.ndim < 2:
            return array
        drop = parse_ranges(self.drop_columns[name], f"modality '{name}'")
        width = array.shape[-1]
        if max(drop) >= width or len(set(drop)) >= width:
            found = self.drop_columns[name]
            raise InputError(f"modality '{name}': columns {found} to drop; expected some of 0..{width - 1}.")
        note = f"modality '{name}': dropped columns {self.drop_columns[name]} of {width}."
        if note not in self.notes:
            self.notes.append(note)
        return np.delete(array, drop, axis=-1)

    def _labels(self, split: str, n: int) -> np.ndarray | None:
        if self.labels is None:
            return None
        array = self._key(self.labels, split)
        if array.ndim != 2 or len(array) != n:
            raise InputError(f"labels '{self.labels}' of split '{split}': shape {array.shape}; expected ({n}, L).")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"labels '{self.labels}' of split '{split}': found NaN or inf; expected finite numbers.")
        given = self.label_names
        if isinstance(given, str):
            names = [str(x) for x in self._key(given, split)]
        else:
            names = list(given) if given is not None else [f"label-{i}" for i in range(array.shape[1])]
        if len(names) != array.shape[1]:
            raise InputError(f"labels '{self.labels}': found {array.shape[1]} columns and {len(names)} names.")
        self.names = tuple(names)
        return array if self.threshold is None else (array > self.threshold).astype(np.uint8)


def trim_padding(array: np.ndarray, trim: str) -> tuple[np.ndarray, np.ndarray]:
    """Packs padded sequences (n, T, e): returns values (N, e) and lengths (n,) without the all-zero rows at the ends.

    Rows with NaN count as data; all-zero rows between data stay.
    """
    if trim not in TRIMS:
        raise InputError(f"trim: found '{trim}'; expected one of {', '.join(TRIMS)}.")
    n, steps = array.shape[:2]
    filled = (array != 0).any(-1)
    some = filled.any(1)
    first = filled.argmax(1) if trim in ("both", "left") else np.zeros(n, dtype=np.int64)
    last = steps - filled[:, ::-1].argmax(1) if trim in ("both", "right") else np.full(n, steps)
    if trim != "none":
        last = np.where(some, last, first)
    place = np.arange(steps)
    keep = (place >= first[:, None]) & (place < last[:, None])
    return array[keep], (last - first).astype(np.int64)


def _packed(name: str, array: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if array.ndim != 2 or offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) < 2:
        raise InputError(
            f"modality '{name}': values of shape {array.shape} and {offsets.dtype} offsets of shape {offsets.shape}; "
            "expected (N, e) and whole numbers (n+1,)."
        )
    lengths = np.diff(offsets.astype(np.int64))
    if offsets[0] != 0 or offsets[-1] != len(array) or (lengths < 0).any():
        raise InputError(
            f"modality '{name}': offsets run {offsets[0]}..{offsets[-1]} over {len(array)} nodes; expected them to "
            "rise from 0 to the number of nodes."
        )
    return array, lengths
