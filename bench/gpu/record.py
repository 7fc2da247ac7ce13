"""What a run of `bench.gpu.measure` leaves as JSON, and the check that it is that.

A run: machine, versions, ceilings, rows, what the budget left out; and, of a run that was measured by hand, tables and
notes. A row is one contestant of one cell, with or without a CUDA graph: figures, or the one line why there are none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hhmpn_fast import InputError

Run = dict[str, Any]
NUMBER, TEXT = (int, float), (str,)
MAYBE = (int, float, type(None))
ROW = {
    "part": TEXT,
    "workload": TEXT,
    "mode": TEXT,
    "dtype": TEXT,
    "batch": NUMBER,
    "length": NUMBER,
    "contestant": TEXT,
    "graph": (bool,),
}
FIGURES = {
    "wall_ms": NUMBER,
    "quartiles_ms": (list, type(None)),
    "rounds": NUMBER,
    "kernel_ms": MAYBE,
    "launches": MAYBE,
    "useful_flop": MAYBE,
    "least_bytes": MAYBE,
    "errors": (dict,),
}
RUN = {
    "name": TEXT,
    "machine": TEXT,
    "commit": TEXT,
    "date": TEXT,
    "versions": (dict,),
    "how": TEXT,
    "ceilings": (list,),
    "rows": (list,),
    "left_out": (list,),
    "tables": (list,),
    "notes": (list,),
}
CEILINGS = {"bf16_flop_s": NUMBER, "tf32_flop_s": NUMBER, "fp32_flop_s": NUMBER, "copy_bytes_s": NUMBER}
TABLE = {"title": TEXT, "columns": (list,), "rows": (list,)}


def checked(run: Run) -> Run:
    """The run itself; raises InputError, naming the field, where it is none."""
    _fields("run", run, RUN)
    for i, found in enumerate(run["ceilings"]):
        _fields(f"ceilings[{i}]", found, CEILINGS)
    for i, table in enumerate(run["tables"]):
        _fields(f"tables[{i}]", table, TABLE)
        if any(len(row) != len(table["columns"]) for row in table["rows"]):
            raise InputError(f"tables[{i}]: found a row of another length; expected {len(table['columns'])} cells.")
    for i, row in enumerate(run["rows"]):
        _fields(f"rows[{i}]", row, ROW | ({"reason": TEXT} if "reason" in row else FIGURES))
    return run


def _fields(what: str, found: Mapping[str, Any], expected: Mapping[str, tuple[type, ...]]) -> None:
    if set(found) != set(expected):
        odd = sorted(set(found) ^ set(expected))
        raise InputError(f"{what}: found the fields {', '.join(found)}; expected {', '.join(expected)} ({odd[0]}).")
    for name, kinds in expected.items():
        wrong = isinstance(found[name], bool) and bool not in kinds
        if wrong or not isinstance(found[name], kinds):
            kind = type(found[name]).__name__
            raise InputError(f"{what}: {name}: found {kind}; expected {' or '.join(k.__name__ for k in kinds)}.")
