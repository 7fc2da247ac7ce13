"""Reads ARFF tables, dense and sparse, and Mulan's XML list of labels."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hhmpn_fast.errors import InputError

_TOKEN = re.compile(r"""\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|([^,{}%'"]*))\s*""")
_ENTRY = re.compile(r"""\s*(\S+)\s+('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^,]*)\s*(?:,|$)""")
_NUMERIC = ("numeric", "real", "integer")


@dataclass(frozen=True)
class Table:
    """A parsed ARFF file: `columns`, the attribute names, and `values`, float64 (rows, columns)."""

    columns: tuple[str, ...]
    values: np.ndarray


def read_arff(path: str | Path) -> Table:
    """Parses an ARFF file of numeric and nominal attributes.

    A nominal value becomes its number where it reads as one ("0", "1"), else its place in the attribute's list. A value
    that a sparse row leaves out is 0, or the attribute's first nominal value.

    Raises:
        InputError: no such file, no header or data, a string or date attribute, a missing value ("?"), a row of the
            wrong width, a value that does not read; the sentence names the file and the line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"'{path}': cannot be read ({error}); expected an ARFF file.") from None
    columns: list[str] = []
    nominal: list[dict[str, float] | None] = []
    at = 0
    for at, line in enumerate(lines, 1):
        word = line.strip()
        if not word or word.startswith("%"):
            continue
        if word.lower().startswith("@data"):
            break
        if word.lower().startswith("@attribute"):
            name, values = _attribute(path, at, word[len("@attribute") :])
            columns.append(name)
            nominal.append(values)
        elif not word.lower().startswith("@relation"):
            raise InputError(f"'{path}' line {at}: found '{word[:40]}'; expected @relation, @attribute or @data.")
    else:
        raise InputError(f"'{path}': found no @data line in {at} lines; expected an ARFF file: cut short?")
    if len(set(columns)) != len(columns):
        raise InputError(f"'{path}': an attribute name stands twice; expected distinct names.")
    default = np.array([0.0 if n is None else next(iter(n.values())) for n in nominal])
    rows = [
        _row(path, number, line.strip(), columns, nominal, default)
        for number, line in enumerate(lines[at:], at + 1)
        if line.strip() and not line.strip().startswith("%")
    ]
    if not columns or not rows:
        raise InputError(f"'{path}': found {len(columns)} attributes and {len(rows)} rows; expected both.")
    return Table(tuple(columns), np.stack(rows))


def _tokens(text: str) -> list[str]:
    found, at = [], 0
    while True:
        match = _TOKEN.match(text, at)
        quoted = next((g for g in (match[1], match[2]) if g is not None), None) if match else None
        found.append(re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else match[3].strip() if match else "")
        at = match.end() if match else at
        if at >= len(text) or text[at] != ",":
            return found if at >= len(text) or text[at] == "%" else [*found, text[at:]]
        at += 1


def _attribute(path: Path, number: int, text: str) -> tuple[str, dict[str, float] | None]:
    match = re.match(r"""\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|(\S+))\s+(.+)$""", text)
    if match is None:
        raise InputError(f"'{path}' line {number}: found '@attribute{text[:40]}'; expected a name and a type.")
    name, kind = next(g for g in match.groups()[:3] if g is not None), match[4].strip()
    if kind.split()[0].lower() in _NUMERIC:
        return name, None
    if kind.startswith("{") and "}" in kind:
        names = _tokens(kind[1 : kind.index("}")])
        numbers = [_number(n) for n in names]
        if all(n is not None for n in numbers):
            return name, dict(zip(names, numbers))  # type: ignore[arg-type]
        return name, {n: float(i) for i, n in enumerate(names)}
    raise InputError(f"'{path}' line {number}: attribute '{name}' has type '{kind}'; expected numeric or nominal.")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _row(
    path: Path,
    number: int,
    line: str,
    columns: list[str],
    nominal: list[dict[str, float] | None],
    default: np.ndarray,
) -> np.ndarray:
    if line.startswith("{"):
        if "}" not in line:
            raise InputError(f"'{path}' line {number}: a sparse row without its '}}'; the file may be cut short.")
        row, body, at = default.copy(), line[1 : line.rindex("}")].strip(), 0
        while at < len(body):
            entry = _ENTRY.match(body, at)
            index = entry[1] if entry else body[at:]
            if entry is None or not index.isdigit() or int(index) >= len(columns):
                raise InputError(f"'{path}' line {number}: sparse index '{index}'; expected 0..{len(columns) - 1}.")
            i, at = int(index), entry.end()
            row[i] = _value(path, number, columns[i], nominal[i], _tokens(entry[2])[0])
        return row
    cells = _tokens(line)
    if len(cells) != len(columns):
        raise InputError(f"'{path}' line {number}: found {len(cells)} values; expected {len(columns)}: cut short?")
    return np.array([_value(path, number, c, n, cell) for c, n, cell in zip(columns, nominal, cells)])


def _value(path: Path, number: int, column: str, nominal: dict[str, float] | None, cell: str) -> float:
    if cell == "?":
        raise InputError(f"'{path}' line {number}: '{column}' is missing ('?'); expected a value.")
    if nominal is not None:
        if cell not in nominal:
            raise InputError(f"'{path}' line {number}: '{column}' is '{cell}'; expected one of {', '.join(nominal)}.")
        return nominal[cell]
    value = _number(cell)
    if value is None:
        raise InputError(f"'{path}' line {number}: '{column}' is '{cell}'; expected a number.")
    return value


def read_label_names(path: str | Path) -> tuple[str, ...]:
    """The label names of a Mulan XML file, nested ones included, in the file's order."""
    path = Path(path)
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise InputError(f"'{path}': cannot be read ({error}); expected Mulan's XML list of labels.") from None
    names = tuple(e.get("name", "") for e in root.iter() if e.tag.rpartition("}")[2] == "label")
    if not names or not all(names):
        raise InputError(f"'{path}': found {len(names)} labels with names; expected at least one <label name=...>.")
    return names
