"""Reads what a data set's directory holds: metadata.json, checked, and memory-mapped shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hhmpn_fast.data.writer import FORMAT, VERSION
from hhmpn_fast.errors import InputError

Statistics = Mapping[str, tuple[Tensor, Tensor]]
# What metadata.json says of each modality, split and file, as far as reading depends on it.
ENTRIES: dict[str, dict[str, type | tuple[type, ...]]] = {
    "modalities": {"name": str, "size": int, "fixed_nodes": (int, type(None))},
    "splits": {"samples": int},
    "files": {"bytes": int},
}


def read_metadata(path: str | Path) -> dict[str, Any]:
    """metadata.json of a data set, checked for its format."""
    path = Path(path)
    file = path / "metadata.json"
    if not file.is_file():
        raise InputError(f"data set '{path}': found no metadata.json; expected a directory that `convert` made.")
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"'{file}': cannot be read ({error}); expected the JSON that `convert` wrote.") from None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise InputError(f"'{file}': not a data set of this project; expected format '{FORMAT}'.")
    if metadata.get("version") != VERSION:
        raise InputError(f"'{file}': format version {metadata.get('version')}; expected {VERSION}.")
    missing = [k for k in ("modalities", "labels", "splits", "files", "fingerprint") if k not in metadata]
    if missing:
        raise InputError(f"'{file}': entry '{missing[0]}' is missing; expected the JSON that `convert` wrote.")
    for key, entries in ENTRIES.items():
        held = metadata[key]
        items = list(held.values()) if isinstance(held, dict) else held
        whole = isinstance(items, list) and all(
            isinstance(item, dict) and all(isinstance(item.get(n, ...), kind) for n, kind in entries.items())
            for item in items
        )
        if not whole or isinstance(held, dict) != (key != "modalities"):
            raise InputError(f"'{file}': entry '{key}' is not whole; expected the JSON that `convert` wrote.")
    return metadata


def read_shard(path: Path, name: str, metadata: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of one shard, memory-mapped."""
    file, known = path / name, metadata["files"].get(name)
    if known is None or not file.is_file():
        raise InputError(f"'{file}': missing; expected every shard that metadata.json names.")
    if file.stat().st_size != known["bytes"]:
        found = file.stat().st_size
        raise InputError(f"'{file}': found {found} bytes; expected {known['bytes']}: truncated or altered.")
    try:
        with safe_open(file, framework="pt") as shard:
            return {key: shard.get_tensor(key) for key in shard.keys()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"'{file}': cannot be read ({error}); expected a safetensors file.") from None


def check_shard(path: Path, shard: dict[str, Tensor], modality: dict[str, Any], sizes: dict[str, Any]) -> None:
    """Refuses a modality's shard that does not fit the metadata."""
    name, n = modality["name"], sizes["samples"]
    values, offsets = shard.get("values"), shard.get("offsets")
    if values is None or offsets is None or values.dim() != 2 or values.shape[1] != modality["size"]:
        raise InputError(f"modality '{name}' of '{path}': expected values (nodes, {modality['size']}) and offsets.")
    fits = offsets.shape == (n + 1,) and int(offsets[0]) == 0 and int(offsets[-1]) == values.shape[0]
    if not fits or bool((offsets.diff() < 0).any()):
        raise InputError(
            f"modality '{name}' of '{path}': offsets of shape {tuple(offsets.shape)} do not fit {values.shape[0]} "
            f"nodes; expected ({n + 1},) rising from 0 to the number of nodes."
        )


def read_statistics(path: Path, metadata: dict[str, Any]) -> Statistics:
    """Mean and sd of every modality over the training split; nothing where there is none."""
    if "statistics.safetensors" not in metadata["files"]:
        return {}
    held = read_shard(path, "statistics.safetensors", metadata)
    names = [m["name"] for m in metadata["modalities"]]
    return {name: (held[f"{name}.mean"], held[f"{name}.sd"]) for name in names}
