"""A digest of the C++ sources: `setup.py` keeps it beside the extension, so that one of other sources is noticed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

MANIFEST = "cpu_manifest.json"


def digest(csrc: Path) -> str:
    """20 hex digits over names and contents of all files in `csrc`/cpu."""
    found = hashlib.sha256()
    for file in sorted(f for f in (csrc / "cpu").rglob("*") if f.is_file()):
        found.update(str(file.relative_to(csrc)).encode() + b"\0" + file.read_bytes())
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
