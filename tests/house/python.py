"""What the measures read from Python: subscripts by number, parameter lists, imports; all from the syntax tree."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

# Names that hold results or arguments of an op: even their first item is a record's field.
RECORDS = set("saved kept rest args inputs reads writes made grads gradients output outputs result results".split())
SIZES = {"shape", "sizes", "strides", "stride", "size", "groups"}
# What cuts a text makes no record.
TEXTS = {"hexdigest", "strftime", "split", "partition", "rpartition"}
MATCHES = {"match", "fullmatch", "search"}


@cache
def tree(file: Path) -> ast.Module:
    """The syntax tree."""
    return ast.parse(file.read_text())


def _literals(index: ast.expr | None) -> list[int]:
    """Integer literals of an index that is one, or that is computed from one."""
    return [n.value for n in ast.walk(index) if isinstance(n, ast.Constant) and type(n.value) is int] if index else []


def _position(index: ast.expr) -> str | None:
    """The place a subscript names by number, as text; None for tuples, steps, neighbours (i + 1) and variables."""
    if isinstance(index, ast.Slice):
        found = [] if index.step else [b for b in (index.lower, index.upper) if _numbered(b)]
        return ast.unparse(index) if any(abs(n) > 1 for b in found for n in _literals(b)) else None
    return ast.unparse(index) if _numbered(index) else None


def _numbered(index: ast.expr | None) -> bool:
    if isinstance(index, ast.BinOp):
        return any(n > 1 for n in _literals(index))
    if isinstance(index, ast.UnaryOp):
        index = index.operand
    return isinstance(index, ast.Constant) and type(index.value) is int


def _last_name(base: ast.expr) -> str:
    if isinstance(base, ast.Call):
        base = base.func
    return base.attr if isinstance(base, ast.Attribute) else base.id if isinstance(base, ast.Name) else ""


def _from_pattern(scope: ast.AST) -> set[str]:
    """Names of regular expressions' matches: their groups are numbered by the pattern."""
    bound = [n for n in ast.walk(scope) if isinstance(n, ast.Assign | ast.NamedExpr)]
    made = [n for n in bound if isinstance(n.value, ast.Call) and _last_name(n.value) in MATCHES]
    return {_last_name(t) for n in made for t in (n.targets if isinstance(n, ast.Assign) else [n.target])}


def numbered(file: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every item that is read from a record by its number.

    A record is what a function subscripts at two literal places, or at one that is neither the first nor the last, and
    whatever has a record's name. Not counted: shapes, texts, matches of a pattern, tuples as index (arrays), types.
    """
    owner: dict[ast.AST, ast.AST] = {}
    for scope in ast.walk(tree(file)):
        if isinstance(scope, ast.Module | ast.FunctionDef):
            owner |= {n: scope for n in ast.walk(scope) if isinstance(n, ast.Subscript)}
    for shown in ast.walk(tree(file)):
        if isinstance(shown, ast.JoinedStr):  # the head of a long text in a message
            heads = {n for n in ast.walk(shown) if isinstance(n, ast.Subscript) and isinstance(n.slice, ast.Slice)}
            owner = {n: s for n, s in owner.items() if n not in heads}
    places: dict[Any, list[tuple[ast.Subscript, str]]] = defaultdict(list)
    for node, scope in owner.items():
        name, position = _last_name(node.value), _position(node.slice)
        if position is not None and name not in SIZES | TEXTS | _from_pattern(scope):
            places[scope, ast.unparse(node.value)].append((node, position))
    for (_, base), found in places.items():
        ends = {p for _, p in found} <= {"0", "-1"}
        if not ends or (base in RECORDS and {p for _, p in found} != {"-1"}):
            yield from ((node.lineno, ast.unparse(node)) for node, _ in found)


def parameters(file: Path) -> Iterator[tuple[int, str, list[str], list[str]]]:
    """Line, name, parameters and, among them, compile-time ones of every function and lambda; self and cls are none."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            a = node.args
            every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *(x for x in (a.vararg, a.kwarg) if x)]
            kept = [x for x in every if x.arg not in ("self", "cls")]
            fixed = [x.arg for x in kept if x.annotation and ast.unparse(x.annotation).endswith("constexpr")]
            yield node.lineno, getattr(node, "name", "lambda"), [x.arg for x in kept], fixed


def is_kernel(file: Path, line: int) -> bool:
    """Whether the function on this line is compiled by Triton."""
    found = next(n for n in ast.walk(tree(file)) if isinstance(n, ast.FunctionDef) and n.lineno == line)
    return any("jit" in ast.unparse(d) for d in found.decorator_list)


def texts(file: Path) -> Iterator[tuple[int, str]]:
    """Line and value of every string."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def imports(module: str, file: Path, known: set[str]) -> Iterator[tuple[int, str]]:
    """Line and name of the `known` modules that a file imports, at its head or inside functions.

    `from package import module` is an arrow to the module. `if TYPE_CHECKING:` and importlib are none.
    """
    skipped = {
        inner
        for node in ast.walk(tree(file))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree(file)):
        if node in skipped or not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        for alias in node.names:
            base = alias.name if isinstance(node, ast.Import) else f"{node.module}.{alias.name}"
            while base and base not in known:
                base = base.rpartition(".")[0]
            if base and base != module:
                yield node.lineno, base
