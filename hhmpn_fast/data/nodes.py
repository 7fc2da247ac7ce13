"""From arrays to packed nodes: padded sequences without their padding, and offsets as lengths."""

from __future__ import annotations

import numpy as np

from hhmpn_fast.errors import InputError

TRIMS = ("both", "left", "right", "none")


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


def from_offsets(name: str, array: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values (N, e) and lengths (n,) of packed nodes with offsets (n+1,); refuses offsets that do not fit."""
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
