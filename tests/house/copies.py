"""A copy of the tree, in which something is added and the files that this takes are counted."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOYS = Path(__file__).parent / "toys"  # a folder a toy: its files, where they go in the tree
FOLDERS = ("hhmpn_fast", "kernels", "csrc", "build_backend", "tests")
FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE")


class Copy:
    """The tree's sources below `root`, without anything compiled; `compiled` brings the extension along."""

    def __init__(self, root: Path, *, compiled: bool = False) -> None:
        self.root = root
        left = ("__pycache__", "toys", "*manifest*.json", *(() if compiled else ("*.so",)))
        for folder in FOLDERS:
            skip = shutil.ignore_patterns(*left, *(["kernels"] if folder == "hhmpn_fast" else []))
            shutil.copytree(ROOT / folder, root / folder, ignore=skip)
        for file in FILES:
            shutil.copy(ROOT / file, root / file)
        (root / "hhmpn_fast" / "kernels").symlink_to("../kernels")
        if not compiled:  # an editable install would lend its own; one built here goes before this file
            (root / "hhmpn_fast" / "_C.py").write_text("raise ImportError(\"No module named 'hhmpn_fast._C'\")\n")
        self.start()

    def start(self) -> None:
        """Counts from what is there now."""
        self.before = self._texts()

    def _texts(self) -> dict[str, str]:
        suffixes = (".py", ".h", ".cpp", ".cu", ".cuh", ".toml")
        found = [f for f in self.root.rglob("*") if f.suffix in suffixes and "build" not in f.parts]
        return {str(f.relative_to(self.root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in found}

    def add(self, toy: str, *patterns: str) -> None:
        """The files of a toy that match the patterns, all without any; none of them may be there."""
        for file in sorted(f for p in patterns or ("**/*",) for f in (TOYS / toy).glob(p) if f.is_file()):
            if "__pycache__" not in file.parts:
                target = self.root / file.relative_to(TOYS / toy)
                assert not target.exists(), target
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)

    def edit(self, file: str, changes: dict[str, str]) -> None:
        """Replaces texts that each stand in the file once."""
        text = (self.root / file).read_text()
        for old, new in changes.items():
            assert text.count(old) == 1, f"{file} holds {old!r} {text.count(old)} times; expected once."
            text = text.replace(old, new)
        (self.root / file).write_text(text)

    @property
    def added(self) -> list[str]:
        """Files that were not there."""
        return sorted(self._texts().keys() - self.before.keys())

    @property
    def edited(self) -> list[str]:
        """Files that were there and are no longer what they were."""
        now = self._texts()
        return sorted(name for name, digest in self.before.items() if now.get(name) != digest)

    def python(self, *words: object, **environment: str) -> str:
        """What `python WORDS` prints in the copy."""
        line = [sys.executable, *map(str, words)]
        env = {**os.environ, "PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "1", **environment}
        done = subprocess.run(line, cwd=self.root, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-4000:]
        return done.stdout

    def pytest(self, file: str, choose: str, **environment: str) -> str:
        """The closing line of the tests in a file that `choose` picks: all pass and none is skipped."""
        words = ("-m", "pytest", "-p", "no:cacheprovider", "--rootdir", self.root, file, "-k", choose)
        printed = self.python(*words, **environment)
        assert " passed" in printed and "skipped" not in printed, printed[-2000:]
        return printed.strip().splitlines()[-1]
