"""Reads .npz files: arrays by name, no pickles."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from hhmpn_fast.errors import InputError


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
