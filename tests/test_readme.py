"""The README's Python runs as printed, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hhmpn_fast.cli import build_parser

README = Path(__file__).resolve().parents[1] / "README.md"


def test_python_blocks_run(capsys: pytest.CaptureFixture) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, str(README), "exec"), {})
    assert "attention" in capsys.readouterr().out


def test_commands_parse() -> None:
    lines = re.findall(r"^hhmpn-fast (.*?)(?:\s+#.*)?$", README.read_text(), re.M)
    assert len(lines) >= 5
    for line in lines:
        if line.split()[0] != "info":
            build_parser().parse_args(line.split())


def test_make_targets_exist() -> None:
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z-]+)", README.read_text()):
        assert re.search(rf"^{target}:", makefile, re.M), target
