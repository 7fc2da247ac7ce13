"""The whole comparison: `python -m bench.race.run` measures every cell of the plan, then writes docs/bench.

Every cell is a child process in which the contestants take turns. On a shared machine `--hold` names a command that
keeps the machine quiet while the process it starts runs; only the timed sections run under it. `--prefix` is put before
every child, say `taskset -c 0,1`. `--only` keeps cells by name; the report reads whatever is in `--work`.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from bench.race.plan import Cell, full, quick
from bench.race.report import write_report
from hhmpn_fast.source_digest import stale

ROOT = Path(__file__).parents[2]
GROUP_SECONDS = 25.0


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m bench.race.run", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two minutes: three workloads, fp32, the best peer")
    parser.add_argument("--only", default="*", help="pattern of cell names, see --list")
    parser.add_argument("--skip", action="append", default=[], help="pattern of contestants to leave out; may repeat")
    parser.add_argument("--budget", type=float, help="seconds a contestant of a timed cell, instead of the plan's")
    parser.add_argument("--list", action="store_true", help="print the cells and stop")
    parser.add_argument("--report-only", action="store_true", help="measure nothing")
    parser.add_argument("--resume", action="store_true", help="keep cells that are already in --work")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="one JSON file a cell")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "bench")
    parser.add_argument("--hold", default="", help="command that keeps the machine quiet while what it starts runs")
    parser.add_argument("--prefix", default="", help="command before every child")
    return parser


def groups(cells: list[Cell]) -> list[list[Cell]]:
    """Cells that share a child: small timed ones of one table, until their budgets add up."""
    out: list[list[Cell]] = []
    for cell in cells:
        last = out[-1] if out else []
        small = cell.kind == "time" and cell.table != "main"
        spent = sum(c.budget * len(c.contestants) for c in [*last, cell])
        if small and last and last[-1].table == cell.table and spent <= GROUP_SECONDS:
            last.append(cell)
        elif cell.kind == "time":
            out.append([cell])
        else:
            out += [[replace(cell, contestants=(name,))] for name in cell.contestants]
    return out


def child(options: argparse.Namespace, cells: list[Cell], fresh: bool) -> int:
    """Runs `bench.race.cell` on cells; `fresh` hides compiled graphs of earlier runs. Returns its exit status."""
    command = [*shlex.split(options.prefix), sys.executable, "-m", "bench.race.cell", str(options.work), options.hold]
    command += [c.dumps() for c in cells]
    with tempfile.TemporaryDirectory() as empty:
        env = os.environ | ({"TORCHINDUCTOR_CACHE_DIR": empty} if fresh else {})
        return subprocess.run(command, cwd=ROOT, env=env).returncode


def main() -> int:
    """Measures and reports; 0 when every cell was measured, 2 when the extension is not the sources'."""
    options = arguments().parse_args()
    cells = [c for c in (quick() if options.quick else full()) if fnmatch.fnmatch(c.name, options.only)]
    cells = [
        replace(c, contestants=tuple(n for n in c.contestants if not any(fnmatch.fnmatch(n, p) for p in options.skip)))
        for c in cells
    ]
    if options.budget is not None:
        cells = [replace(c, budget=options.budget) for c in cells]
    if options.list:
        print("\n".join(c.name for c in cells))
        return 0
    if not options.report_only and (reason := stale()):
        print(f"bench: {reason}", file=sys.stderr)
        return 2
    options.work.mkdir(parents=True, exist_ok=True)
    failed = []
    if options.resume:
        cells = [c for c in cells if c.kind != "time" or not (options.work / f"{c.name}.json").exists()]
    for group in [] if options.report_only else groups(cells):
        print(
            ", ".join(c.name for c in group), *group[0].contestants[:1] if group[0].kind != "time" else (), flush=True
        )
        if child(options, group, fresh=group[0].kind == "first"):
            failed += [c.name for c in group]
    write_report(options.work, options.out)
    if failed:
        print("not measured:", ", ".join(failed), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
