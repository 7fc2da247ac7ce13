"""docs/gpu/measured.md, made of the JSON of every run, the newest first: `python -m bench.gpu.measured [FOLDER]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.gpu.record import Run, checked

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "gpu"
INTRODUCTION = """# GPU kernels: measured

Written by `python -m bench.gpu.measured` from the runs in `results/`, which `make bench-gpu` adds to. Milliseconds,
medians, quartiles in brackets where there were rounds. *wall* is a call seen from the host, *kernels* the sum of its
kernels, *launches* kernels and copies a call. TFLOP/s are useful FLOP (`bench/core/flops.py`), TB/s the least traffic
(whole models: features and weights in fp32), over kernel time where it was measured; the shares are of the run's own
ceilings. *error* is the largest against float64. What a run did not measure is not on this page."""
COLUMNS = ("contestant", "wall", "kernels", "launches", "TFLOP/s", "of the product's", "TB/s", "of the copy's", "error")


def write(run: Run, folder: Path = FOLDER) -> None:
    """Keeps a run as JSON, and writes the page of all."""
    results = folder / "results"
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{run['name']}.json").write_text(json.dumps(checked(run), indent=1) + "\n")
    (folder / "measured.md").write_text(page(load(folder)))


def load(folder: Path = FOLDER) -> list[Run]:
    """Every run, the newest first."""
    runs = [checked(json.loads(file.read_text())) for file in sorted((folder / "results").glob("*.json"))]
    return sorted(runs, key=lambda run: run["date"], reverse=True)


def page(runs: Sequence[Run]) -> str:
    """The document."""
    return "\n\n".join([INTRODUCTION, *(_run(run) for run in runs)]) + "\n"


def _run(run: Run) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    parts = [f"## {run['machine']}", f"{run['date']}, commit {run['commit']}; {versions}. {run['how']}"]
    if run["ceilings"]:
        parts.append(_ceilings(run["ceilings"]))
    key = lambda row: tuple(row[k] for k in ("part", "workload", "mode", "dtype", "batch", "length"))  # noqa: E731
    ordered = {key(row): None for row in run["rows"]}
    rows = sorted(run["rows"], key=lambda row: list(ordered).index(key(row)))
    for _, some in groupby(rows, key=key):
        parts.append(_cell(list(some), run["ceilings"]))
    for table in run["tables"]:
        parts += [f"### {table['title']}", table_of(table["columns"], table["rows"])]
    parts += run["notes"]
    if run["left_out"]:
        parts += ["### Left out for want of time", "\n".join(f"- {cell}" for cell in run["left_out"])]
    return "\n\n".join(parts)


def _ceilings(found: Sequence[dict[str, float]]) -> str:
    best = _best(found)
    products = ", ".join(f"{t} {best[f'{t}_flop_s'] / 1e12:.3g}" for t in ("bf16", "tf32", "fp32"))
    copy = best["copy_bytes_s"] / 1e12
    return f"Ceilings, measured in the same run: matrix products in TFLOP/s {products}; copy {copy:.3g} TB/s."


def _best(found: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: max(one[name] for one in found) for name in found[0]}


def _cell(rows: list[dict[str, Any]], ceilings: Sequence[dict[str, float]]) -> str:
    one = rows[0]
    length = f", segments of {one['length']:,}" if one["length"] else ""
    title = f"### {one['part']}, {one['workload']}, {one['mode']}, {one['dtype']}, B = {one['batch']}{length}"
    held = [_figures(row, ceilings) for row in rows if "reason" not in row]
    missing = [f"- {_name(row)}: {row['reason']}" for row in rows if "reason" in row]
    return "\n\n".join(
        [title, *([table_of(COLUMNS, held)] if held else []), *(["\n".join(missing)] if missing else [])]
    )


def _name(row: dict[str, Any]) -> str:
    return row["contestant"] + (", graph" if row["graph"] else "")


def _figures(row: dict[str, Any], ceilings: Sequence[dict[str, float]]) -> list[str]:
    seconds = (row["wall_ms"] if row["kernel_ms"] is None else row["kernel_ms"]) / 1e3
    rates, best = [], _best(ceilings) if ceilings else {}
    for what, ceiling in (("useful_flop", f"{row['dtype']}_flop_s"), ("least_bytes", "copy_bytes_s")):
        rate = None if row[what] is None else row[what] / seconds
        rates += ["" if rate is None else f"{rate / 1e12:.3g}"]
        rates += ["" if rate is None or not best else f"{100 * rate / best[ceiling]:.2g} %"]
    quartiles = f" ({' to '.join(map(three, row['quartiles_ms']))})" if row["quartiles_ms"] else ""
    kernel = "" if row["kernel_ms"] is None else three(row["kernel_ms"])
    launches = "" if row["launches"] is None else f"{row['launches']:.0f}"
    error = f"{max(row['errors'].values()):.1e}" if row["errors"] else ""
    return [_name(row), three(row["wall_ms"]) + quartiles, kernel, launches, *rates, error]


def three(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def table_of(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def main() -> int:
    """Writes the page again."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    (folder / "measured.md").write_text(page(load(folder)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
