"""Files written whole or not at all: text, JSON, and tensors with a JSON header (safetensors)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hhmpn_fast.errors import InputError


def dumps(values: Mapping[str, Any]) -> str:
    """JSON as every file of a run is written: indented, in the given order, with a closing newline."""
    return json.dumps(values, indent=2) + "\n"


def write_text(path: Path, text: str) -> None:
    """Writes a text file by renaming a finished sibling over it."""
    with _beside(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Writes tensors and a JSON header by renaming a finished sibling over `path`."""
    whole = {k: v.detach().contiguous() for k, v in tensors.items()}
    with _beside(path) as beside:
        save_file(whole, beside, {"json": json.dumps(header)})
        with open(beside, "rb") as file:
            os.fsync(file.fileno())


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A sibling of `path` that takes its place when the block ends well, and is gone when it does not."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read_tensors(path: Path, what: str, entries: Sequence[str] = ()) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the host, and the JSON header of a file that `write_tensors` wrote.

    Args:
        path: the file.
        what: what it is called in an error.
        entries: what the header must hold.

    Raises:
        InputError: no such file, a truncated one, or one without such a header.
    """
    if not path.is_file():
        raise InputError(f"{what} '{path}': no such file; expected one that `hhmpn-fast train` wrote.")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("json", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{what} '{path}': cannot be read ({error}); expected a whole safetensors file.") from None
    if not isinstance(header, dict):
        raise InputError(f"{what} '{path}': has no header of this project; expected one `hhmpn-fast train` wrote.")
    missing = [e for e in entries if e not in header]
    if missing:
        raise InputError(
            f"{what} '{path}': entry '{missing[0]}' is missing; expected a {what} that `hhmpn-fast train` wrote."
        )
    return tensors, header


@contextmanager
def decoding(path: Path, what: str) -> Iterator[None]:
    """Turns whatever a header or tensors of other shape raise into one sentence; an `InputError` passes as it is."""
    try:
        yield
    except InputError:
        raise
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        found = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"{what} '{path}': does not hold what `hhmpn-fast train` writes ({found}); expected a whole file of it."
        ) from None


def check_folder(path: Path) -> None:
    """Refuses an output file whose folder is not there, before anything is computed for it."""
    if not path.parent.is_dir():
        raise InputError(f"output '{path}': its folder does not exist; expected one that does.")
