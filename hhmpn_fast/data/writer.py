"""Writes a data set: safetensors shards and metadata.json in a temporary sibling that is renamed at the very end."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from hhmpn_fast.data.splits import Modality, Split, check_split
from hhmpn_fast.errors import InputError

FORMAT = "hhmpn-fast data"
VERSION = 1
DTYPES = {"float32": torch.float32, "float16": torch.float16}


def shard_name(split: str, modality: str | None = None) -> str:
    """The file of a split's labels and ids, or of one modality's nodes."""
    return f"{split}.safetensors" if modality is None else f"{split}.{modality}.safetensors"


def write(
    out: str | Path,
    splits: Iterable[Split],
    modalities: Sequence[Modality],
    label_names: Sequence[str],
    *,
    dtype: str = "float32",
    overwrite: bool = False,
    **about: Any,
) -> Path:
    """Writes a data set and returns its directory; until the last rename nothing of it is visible under `out`.

    Args:
        out: the directory to make.
        splits: the splits, drawn one after another, so that a generator need hold only one in memory.
        modalities: what every split holds.
        label_names: L names; empty for a data set without labels.
        dtype: how values are stored, "float32" or "float16"; they are served as float32.
        overwrite: replace what stands at `out`.
        **about: further entries of metadata.json, JSON-able and read after the last split was drawn: `provenance`,
            where the data came from, `notes`, sentences about what was dropped or changed, and whatever else.

    Raises:
        InputError: bad names, values or labels (`check_split`), a label that is never positive in "train", an id that
            stands in two splits, values beyond the range of float16, or an `out` that exists.
    """
    out = Path(out)
    _check_names("modality", [m.name for m in modalities])
    _check_names("label", label_names, plain=False)
    if dtype not in DTYPES:
        raise InputError(f"dtype: found '{dtype}'; expected one of {', '.join(DTYPES)}.")
    if out.exists() and not overwrite:
        raise InputError(f"output '{out}': exists already; expected a new directory (or the option to overwrite).")
    if out.exists() and not (out / "metadata.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"output '{out}': is not a data set of this project; expected one before overwriting it.")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        metadata = _write_shards(partial, splits, modalities, label_names, dtype)
        metadata |= {"provenance": {}, "notes": [], **about}
        text = json.dumps(metadata, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        (partial / "metadata.json").write_text(text, encoding="utf-8")
        partial.chmod(0o755)
        _move_into_place(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return out


def _move_into_place(partial: Path, out: Path) -> None:
    if out.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.old-", dir=out.parent))
        os.replace(out, aside / "was")
        os.replace(partial, out)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.replace(partial, out)


def _write_shards(
    folder: Path, splits: Iterable[Split], modalities: Sequence[Modality], label_names: Sequence[str], dtype: str
) -> dict[str, Any]:
    sizes: dict[str, Any] = {}
    owner: dict[str, str] = {}
    for split in splits:
        _check_names("split", [split.name])
        if split.name in sizes or split.name == "statistics":
            raise InputError(f"split '{split.name}': the name is taken; expected another.")
        check_split(split, modalities, label_names)
        if (split.labels is None) != (not label_names):
            raise InputError(f"labels of split '{split.name}': expected labels in every split or in none.")
        for i in split.ids:
            if i in owner:
                raise InputError(f"id '{i}': stands in splits '{owner[i]}' and '{split.name}'; expected it in one.")
        owner.update(dict.fromkeys(split.ids, split.name))
        sizes[split.name] = _write_split(folder, split, modalities, label_names, dtype)
    if not sizes:
        raise InputError("data set: found no split; expected at least one.")
    files = {f.name: {"bytes": f.stat().st_size, "sha256": _digest(f)} for f in sorted(folder.glob("*.safetensors"))}
    description = {
        "format": FORMAT,
        "version": VERSION,
        "modalities": [
            {
                "name": m.name,
                "size": m.size,
                "dtype": dtype,
                "fixed_nodes": m.fixed_nodes,
                "indicators": list(m.indicators),
                "node_names": list(m.node_names),
            }
            for m in modalities
        ],
        "labels": list(label_names),
        "splits": sizes,
        "files": files,
    }
    canonical = json.dumps(description, sort_keys=True, ensure_ascii=False)
    return {**description, "fingerprint": hashlib.sha256(canonical.encode()).hexdigest()}


def _write_split(
    folder: Path, split: Split, modalities: Sequence[Modality], label_names: Sequence[str], dtype: str
) -> dict[str, Any]:
    nodes, longest, empty = {}, {}, {}
    statistics: dict[str, Tensor] = {}
    for modality in modalities:
        name = modality.name
        value, lengths = split.values[name], np.asarray(split.lengths[name], dtype=np.int64)
        with np.errstate(over="ignore"):
            stored = torch.from_numpy(np.ascontiguousarray(value, dtype=dtype))
        if dtype == "float16" and not bool(torch.isfinite(stored).all()):
            raise InputError(
                f"modality '{name}': found a value of {float(np.abs(value).max()):.6g} in split '{split.name}'; "
                "expected at most 65504 to store float16: store float32."
            )
        offsets = torch.zeros(len(split) + 1, dtype=torch.int64)
        offsets[1:] = torch.from_numpy(np.cumsum(lengths))
        save_file({"values": stored, "offsets": offsets}, folder / shard_name(split.name, name))
        nodes[name], longest[name], empty[name] = int(lengths.sum()), int(lengths.max()), int((lengths == 0).sum())
        if split.name == "train":
            mean, sd = _statistics(value, modality)
            statistics[f"{name}.mean"], statistics[f"{name}.sd"] = mean, sd
    save_file(_side_tensors(split), folder / shard_name(split.name))
    if statistics:
        save_file(statistics, folder / "statistics.safetensors")
    sizes: dict[str, Any] = {"samples": len(split), "nodes": nodes, "longest": longest, "empty": empty}
    if split.labels is not None:
        positives = np.asarray(split.labels).sum(0, dtype=np.int64)
        if split.name == "train" and (positives == 0).any():
            never = label_names[int((positives == 0).argmax())]
            raise InputError(
                f"label '{never}': never positive in the training split; expected at least one positive sample: drop "
                "the label (drop_labels) or change its threshold."
            )
        sizes["positives"] = dict(zip(label_names, positives.tolist()))
    return sizes


def _side_tensors(split: Split) -> dict[str, Tensor]:
    encoded = [i.encode() for i in split.ids]
    ends = torch.zeros(len(encoded) + 1, dtype=torch.int64)
    ends[1:] = torch.tensor([len(e) for e in encoded]).cumsum(0)
    letters = torch.from_numpy(np.frombuffer(b"".join(encoded) or b"\0", dtype=np.uint8).copy())
    side = {"ids.values": letters, "ids.offsets": ends}
    if split.labels is not None:
        side["labels"] = torch.from_numpy(np.ascontiguousarray(split.labels, dtype=np.uint8))
    for key, value in split.extra.items():
        if value.shape[:1] != (len(split),):
            raise InputError(f"extra '{key}': shape {value.shape}; expected one row for each of {len(split)} samples.")
        side[f"extra.{key}"] = torch.from_numpy(np.ascontiguousarray(value))
    return side


def _statistics(value: np.ndarray, modality: Modality) -> tuple[Tensor, Tensor]:
    """Mean and sd (S, e) over training nodes, S = fixed_nodes or 1; a constant or indicator column gets sd 1."""
    positions = modality.fixed_nodes or 1
    if not value.shape[0]:
        return torch.zeros(positions, modality.size), torch.ones(positions, modality.size)
    table = value.reshape(-1, positions, modality.size)
    mean, sd = table.mean(0, dtype=np.float64), table.std(0, dtype=np.float64)
    sd[sd <= 1e-6 * np.maximum(np.abs(mean), 1e-30)] = 1.0
    columns = list(modality.indicators)
    mean[:, columns], sd[:, columns] = 0.0, 1.0
    return torch.from_numpy(mean).float(), torch.from_numpy(sd).float()


def _check_names(what: str, names: Sequence[str], plain: bool = True) -> None:
    if what == "modality" and not names:
        raise InputError("data set: found no modality; expected at least one.")
    for name in names:
        if not name or (plain and not all(c.isalnum() or c in "_-" for c in name)):
            raise InputError(f"{what} name '{name}': expected letters, digits, '_' and '-' only.")
        if list(names).count(name) > 1:
            raise InputError(f"{what} name '{name}': stands more than once; expected distinct names.")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
