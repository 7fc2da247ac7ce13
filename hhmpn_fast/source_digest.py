"""A digest of the C++ sources: `setup.py` keeps it beside the extension, so that one of other sources is noticed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

MANIFEST = "cpu_manifest.json"


def digest(csrc: Path) -> str:
    """20 hex digits over names and contents of `csrc`/ops.cpp and `csrc`/cpu/*."""
    found = hashlib.sha256()
    for file in sorted([csrc / "ops.cpp", *(csrc / "cpu").iterdir()]):
        found.update(file.name.encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:20]


def stale(package: Path = Path(__file__).parent) -> str | None:
    """Why the extension in `package` is not the one its checkout's sources give; None if it is or nothing is known."""
    csrc, manifest = package.parent / "csrc", package / MANIFEST
    if not (csrc / "cpu").is_dir() or not manifest.exists():
        return None
    built, now = json.loads(manifest.read_text(encoding="utf-8"))["sources"], digest(csrc)
    if built == now:
        return None
    return (
        f"the C++ extension was built from other sources ({built}) than csrc holds now ({now}): run `pip install -e .`"
    )
