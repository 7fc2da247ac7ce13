"""The tables of docs/gpu/budgets.md: every compiled kernel beside its budget, written by `make gpu-report`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from bench.gpu.budget import ARCHITECTURES, broken
from bench.gpu.compile import Facts, compiled, facts
from bench.gpu.launches import forms
from hhmpn_fast.kernels.launch_table import WIDTHS

DTYPES = ("bf16", "tf32", "ieee")
FULL = 256  # the width whose rows stand one to a line
Case = tuple[str, str, int, str, str]  # kernel, dtype, width, part, form
Row = tuple[Facts, list[str]]


def cases() -> list[Case]:
    """Every kernel at every width, its other forms at the full width, and fp16 beside bf16 there."""
    out = [(k, t, d, a, "") for d in WIDTHS for k in forms() for t in DTYPES for a in ARCHITECTURES]
    out += [(k, t, FULL, a, form) for k in forms() for form in forms()[k] for t in DTYPES for a in ARCHITECTURES]
    return out + [(k, "fp16", FULL, a, "") for k in forms() for a in ARCHITECTURES]


def row(case: Case) -> Row:
    """What a compiled kernel takes, and what of the budget it breaks."""
    warnings.simplefilter("ignore", DeprecationWarning)
    kernel, dtype, width, part, form = case
    found = facts(compiled(kernel, dtype, width, part, form), part)
    return found, broken(kernel, dtype, part, found, width)


def compile_all(wanted: Sequence[Case]) -> dict[Case, Row]:
    """Rows of all cases, compiled by a process a core."""
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        rows = {}
        for case, found in zip(wanted, pool.map(row, wanted, chunksize=4)):
            rows[case] = found
            print(*case, "; ".join(found[1]) or "holds", flush=True)
        return rows


def tables(rows: dict[Case, Row]) -> str:
    """The document's body."""
    parts = [_counts(rows), _full(rows), *(_compact(rows, width) for width in WIDTHS if width != FULL)]
    return "\n\n".join([*parts, _forms(rows), _halves(rows)])


def _head(columns: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]


def _cell(found: Row) -> str:
    held, breaks = found
    return "; ".join(breaks) or f"{held.registers} / {held.shared / 1024:.0f} / {held.blocks}"


def _counts(rows: dict[Case, Row]) -> str:
    lines = ["## Rows that hold", "", *_head(["rows", "dtypes", "hold", "of"])]
    groups = [(f"d = {w}", DTYPES, [c for c in rows if c[2] == w and not c[4] and c[1] in DTYPES]) for w in WIDTHS]
    groups.append((f"other forms, d = {FULL}", DTYPES, [c for c in rows if c[4]]))
    groups.append((f"fp16, d = {FULL}", ("fp16",), [c for c in rows if c[1] == "fp16"]))
    for name, dtypes, some in groups:
        lines.append(f"| {name} | {', '.join(dtypes)} | {sum(not rows[c][1] for c in some)} | {len(some)} |")
    return "\n".join(lines)


def _full(rows: dict[Case, Row]) -> str:
    columns = "kernel,dtype,part,registers,local,shared KiB,tensor-core instructions,128-bit loads / stores,"
    columns += "blocks a multiprocessor,budget"
    lines = [f"## d = {FULL}", "", *_head(columns.split(","))]
    for (kernel, dtype, width, part, form), (held, breaks) in rows.items():
        if width == FULL and not form and dtype in DTYPES:
            cells = [kernel, dtype, part, held.registers, held.local, f"{held.shared / 1024:.0f}"]
            cells += [held.tensor_instructions, f"{held.wide_loads} / {held.wide_stores}", held.blocks]
            lines.append(f"| {' | '.join(map(str, cells))} | {'; '.join(breaks) or 'holds'} |")
    return "\n".join(lines)


def _compact(rows: dict[Case, Row], width: int) -> str:
    lines = [f"## d = {width}", "", "Registers / shared KiB / blocks a multiprocessor, or what breaks the budget.", ""]
    lines += _head(["kernel", "dtype", *ARCHITECTURES])
    for kernel in forms():
        for dtype in DTYPES:
            cells = [_cell(rows[kernel, dtype, width, part, ""]) for part in ARCHITECTURES]
            lines.append(f"| {kernel} | {dtype} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _forms(rows: dict[Case, Row]) -> str:
    lines = [
        f"## Other forms, d = {FULL}",
        "",
        "As the ops launch them beside the form above: registers / shared KiB /",
    ]
    lines += ["blocks, or what breaks the budget.", "", *_head(["kernel", "form", "dtype", *ARCHITECTURES])]
    for kernel, others in forms().items():
        for form in others:
            for dtype in DTYPES:
                cells = [_cell(rows[kernel, dtype, FULL, part, form]) for part in ARCHITECTURES]
                lines.append(f"| {kernel} | {form} | {dtype} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _halves(rows: dict[Case, Row]) -> str:
    pairs = [(rows[k, "bf16", FULL, a, ""][0], rows[k, "fp16", FULL, a, ""][0]) for k in forms() for a in ARCHITECTURES]
    same = sum(b.tensor_instructions == h.tensor_instructions and b.shared == h.shared for b, h in pairs)
    lines = [f"## fp16 beside bf16, d = {FULL}", ""]
    lines += ["fp16 takes bf16's entries of the launch table and differs in the conversions and the products' type:"]
    lines += [f"{same} of {len(pairs)} rows have as many tensor-core instructions and as much shared memory as bf16's."]
    lines += ["Registers, bf16 / fp16.", "", *_head(["kernel", *ARCHITECTURES])]
    for kernel in forms():
        cells = []
        for part in ARCHITECTURES:
            half, breaks = rows[kernel, "fp16", FULL, part, ""]
            both = f"{rows[kernel, 'bf16', FULL, part, ''][0].registers} / {half.registers}"
            cells.append("; ".join([both, *breaks]))
        lines.append(f"| {kernel} | {' | '.join(cells)} |")
    return "\n".join(lines)
