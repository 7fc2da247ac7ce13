"""Arrows between modules: data knows nothing of models, nothing below knows the trainer, no module is in a circle."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    ".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f
    for f in (ROOT / "hhmpn_fast").rglob("*.py")
    if "kernels" not in f.parts
}


def arrows(module: str) -> set[str]:
    """The modules of the package that this one imports, wherever in its text, type hints' imports left out."""
    tree = ast.parse(MODULES[module].read_text())
    hints = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    left_out = {id(inner) for hint in hints for inner in ast.walk(hint)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "hhmpn_fast":
            found |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in MODULES else node.module for a in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name in MODULES}
    return found - {module}


def reached(module: str) -> set[str]:
    """All modules that importing this one may import."""
    seen, todo = set(), [module]
    while todo:
        for next_one in arrows(todo.pop()) - seen:
            seen.add(next_one)
            todo.append(next_one)
    return seen


def test_data_knows_nothing_of_models() -> None:
    allowed = {"hhmpn_fast"} | {f"hhmpn_fast.{m}" for m in ("errors", "metrics", "ragged")}
    for module in (m for m in MODULES if m.startswith("hhmpn_fast.data")):
        above = {m for m in arrows(module) if not m.startswith("hhmpn_fast.data")} - allowed
        assert not above, f"{module} imports {', '.join(sorted(above))}"


def test_no_circle() -> None:
    for module in MODULES:
        if module.startswith(("hhmpn_fast.data.", "hhmpn_fast.train", "hhmpn_fast.cli")):
            assert module not in reached(module), f"{module} imports itself through others"


def test_nothing_below_knows_the_trainer() -> None:
    for module in MODULES:
        if not module.startswith(("hhmpn_fast.train", "hhmpn_fast.cli")):
            above = {m for m in arrows(module) if m.startswith(("hhmpn_fast.train", "hhmpn_fast.cli"))}
            assert not above, f"{module} imports {', '.join(sorted(above))}"
