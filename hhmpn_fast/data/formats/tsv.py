"""Reads tab-separated tables: one header line, no quoting, UTF-8."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hhmpn_fast.errors import InputError


def read_rows(path: Path, needed: Sequence[str]) -> dict[str, list[str]]:
    """The columns of a TSV file with a header; refuses a missing column, a row of the wrong width, bad UTF-8."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"'{path}': cannot be read ({error}); expected tab-separated UTF-8 text.") from None
    if len(rows) < 2:
        raise InputError(f"'{path}': found {len(rows)} lines; expected a header and at least one row.")
    header = rows[0]
    missing = [c for c in needed if c not in header]
    if missing:
        raise InputError(f"'{path}': column '{missing[0]}' is missing; found {', '.join(header)}.")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise InputError(f"'{path}' line {number}: found {len(row)} fields; expected {len(header)}: cut short?")
    return {c: [row[header.index(c)] for row in rows[1:]] for c in needed}


def numbers(path: Path, cells: dict[str, list[str]], column: str) -> np.ndarray:
    """A column of `read_rows` as float64 (n,); refuses what is no number or not finite, with its line."""
    try:
        found = np.array([float(c) for c in cells[column]])
    except ValueError as error:
        raise InputError(f"'{path}' column '{column}': {error}; expected numbers.") from None
    if not np.isfinite(found).all():
        row = int((~np.isfinite(found)).argmax())
        raise InputError(f"'{path}' line {row + 2}: column '{column}' is {found[row]}; expected a finite number.")
    return found
