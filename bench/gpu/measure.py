"""`make bench-gpu`: on a GPU, this library against its peers, within a budget; without one says so and exits with 2.

    python -m bench.gpu.measure [--budget 240] [--only PATTERN] [--skip PATTERN] [--out FOLDER]
    python -m bench.gpu.measure --device cpu --smoke    every contestant that a processor can run, at tiny sizes

The cells of `bench.gpu.plan` run in a child process, the most important first. A contestant that fails, or takes the
process down with it, is a row with its reason; the rest goes on in a fresh process. Writes FOLDER/results/<name>.json,
and FOLDER/measured.md from all of them. With --smoke the status is 1 where a contestant fails but does not refuse.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from bench.gpu.measured import write
from bench.gpu.plan import Cell, full, smoke
from bench.gpu.record import Run, checked

ROOT = Path(__file__).resolve().parents[2]
LAST = 5.0  # seconds of the budget kept for the report
FAULT = re.compile(r"\w+: |took its process")  # a reason that is no refusal names its exception
CEILINGS = {False: (8192, 2**30), True: (64, 2**16)}  # by smoke: side of the products, bytes copied
HOW = (
    "Contestants in turn, after the float64 gate: wall time of a call to its end on the device, kernels and launches a "
    "call by PyTorch's profiler; single ops by Triton's do_bench (cache flushed) and do_bench_cudagraph. No dropout."
)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; a wrong one ends the program with a sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=240.0, help="seconds for everything")
    parser.add_argument("--only", default="*", help="pattern of cell names, see --list")
    parser.add_argument("--skip", action="append", default=[], help="pattern of contestants to leave out; may repeat")
    parser.add_argument("--out", type=Path, help="default: docs/gpu, or build/bench-gpu for --smoke")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--list", action="store_true", help="print the cells and stop")
    chosen = parser.parse_args(given)
    if chosen.budget <= LAST:
        parser.error(f"--budget: found {chosen.budget}; expected more than {LAST} seconds.")
    if chosen.device == "cpu" and not chosen.smoke:
        parser.error("--device: found cpu without --smoke; a processor's times are `make bench`'s.")
    chosen.out = chosen.out or ROOT / ("build/bench-gpu" if chosen.smoke else "docs/gpu")
    return chosen


def cells(chosen: argparse.Namespace) -> list[Cell]:
    """The plan's cells that the patterns leave."""
    out = []
    for cell in smoke() if chosen.smoke else full():
        names = tuple(n for n in cell.contestants if not any(fnmatch.fnmatch(n, p) for p in chosen.skip))
        if names and fnmatch.fnmatch(cell.name, chosen.only):
            out.append(dataclasses.replace(cell, contestants=names))
    return out


class Pass:
    """What the child processes said so far, and what is still to do."""

    def __init__(self, todo: list[Cell], device: str) -> None:
        self.todo, self.device = todo, device
        self.rows: list[dict[str, Any]] = []
        self.ceilings: list[dict[str, float]] = []
        self._at: list[str] = []
        self._open: list[dict[str, Any]] = []  # rows of the cell that is not done

    def hear(self, line: str) -> None:
        """One line of a child."""
        said = json.loads(line)
        if "row" in said:
            self._open.append(said["row"])
        elif "ceilings" in said:
            self.ceilings.append(said["ceilings"])
        elif "at" in said:
            self._at = said["at"]
        elif "done" in said:
            self.rows += self._open
            self._open, self._at = [], []
            self.todo.remove(Cell.of(said["done"]))

    def drop(self, reason: str) -> None:
        """The child died at a contestant: that one becomes a row, its cell starts again without it."""
        name, contestant = self._at
        cell = next(
            c for c in self.todo if c.name == name and (contestant in c.contestants or contestant == "every contestant")
        )
        failed = [r for r in self._open if r["contestant"] == contestant and "reason" in r]
        values = {k: v for k, v in cell.values().items() if k != "contestants"}
        self.rows += failed[-1:] or [{**values, "contestant": contestant, "graph": False, "reason": reason}]
        self._open, self._at = [], []
        place = self.todo.index(cell)
        rest = tuple(n for n in cell.contestants if n != contestant) if contestant in cell.contestants else ()
        self.todo[place : place + 1] = [dataclasses.replace(cell, contestants=rest)] if rest else []

    def stop(self) -> None:
        """The budget is spent: rows of an unfinished cell stay, its other contestants are left out."""
        self.rows += self._open
        seen = {r["contestant"] for r in self._open}
        if self._open:
            cell = next(c for c in self.todo if c.name == self._at[0])
            rest = tuple(n for n in cell.contestants if n not in seen)
            self.todo[self.todo.index(cell)] = dataclasses.replace(cell, contestants=rest)
            self.todo = [c for c in self.todo if c.contestants]

    def left_out(self) -> list[str]:
        """What was not measured."""
        return [f"{c.name}: {', '.join(c.contestants)}" for c in self.todo]


def child(state: Pass, deadline: float, tiny: bool) -> tuple[int, str]:
    """Runs one child to its end or the deadline; its exit status, and the last line of what it complained."""
    job = {
        "device": state.device,
        "threads": 1 if tiny else os.cpu_count(),
        "deadline": deadline,
        "ceilings": CEILINGS[tiny],
        "cells": [c.values() for c in state.todo],
    }
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, "-m", "bench.gpu.cell"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)
        killer = threading.Timer(max(0.0, deadline - time.time()), process.kill)
        killer.start()
        with process:
            process.stdin.write(json.dumps(job))
            process.stdin.close()
            for line in process.stdout:
                if line.startswith("{"):
                    state.hear(line)
                    show(line)
        killer.cancel()
        errors.seek(0)
        complaints = errors.read().strip().splitlines()
    return process.returncode, complaints[-1][:200] if complaints else ""


def show(line: str) -> None:
    """A row on the terminal, as it comes."""
    row = json.loads(line).get("row")
    if row:
        figures = (
            row.get("reason")
            or f"{row['wall_ms']:.3f} ms, kernels {row['kernel_ms']:.3f}, {row['launches']:.0f} launches"
        )
        graph = ", graph" if row["graph"] else ""
        print(
            row["part"],
            row["workload"],
            row["mode"],
            row["dtype"],
            row["batch"],
            f"{row['contestant']}{graph}: {figures}",
        )


def run(chosen: argparse.Namespace) -> Run:
    """Everything that the budget takes, as a run."""
    deadline = time.time() + chosen.budget - LAST
    state = Pass(cells(chosen), chosen.device)
    while state.todo and time.time() < deadline:
        status, complaint = child(state, deadline, chosen.smoke)
        if status == 0 or time.time() >= deadline:
            break
        if not state._at:
            raise SystemExit(f"bench-gpu: the measuring process ended with {status} before it began: {complaint}")
        state.drop(f"took its process down, status {status}: {complaint}")
    state.stop()
    return checked(described(state, chosen))


def described(state: Pass, chosen: argparse.Namespace) -> Run:
    """The run of what was said, with machine and versions."""
    on_gpu = torch.device(chosen.device).type == "cuda"
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    part = (
        torch.cuda.get_device_name(chosen.device) if on_gpu else "a processor, at tiny sizes: no figure means anything"
    )
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return {
        "name": f"{date}-{part.split(',')[0].lower().replace(' ', '-')}-{head or 'unknown'}",
        "machine": f"{part}, {os.cpu_count()} cores",
        "commit": head or "unknown",
        "date": date,
        "versions": {"torch": torch.__version__, "triton": version("triton"), "python": platform.python_version()},
        "how": HOW,
        "ceilings": state.ceilings,
        "rows": state.rows,
        "left_out": state.left_out(),
        "tables": [],
        "notes": [],
    }


def version(package: str) -> str:
    """Its version, or that it is not there."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def main(given: Sequence[str] | None = None) -> int:
    """Measures and writes the report; 2 where there is no GPU."""
    chosen = arguments(given)
    if chosen.list:
        print("\n".join(f"{c.name}: {', '.join(c.contestants)}" for c in cells(chosen)))
        return 0
    if torch.device(chosen.device).type == "cuda" and not torch.cuda.is_available():
        print(
            "bench-gpu: torch finds no GPU here, so there is nothing to measure; see `make gpu-report`.",
            file=sys.stderr,
        )
        return 2
    found = run(chosen)
    write(found, chosen.out)
    failed = sum("reason" in row for row in found["rows"])
    print(f"bench-gpu: {len(found['rows'])} rows, {failed} without figures, {len(found['left_out'])} cells left out")
    return int(
        chosen.smoke and (bool(found["left_out"]) or any(FAULT.match(r.get("reason", "")) for r in found["rows"]))
    )


if __name__ == "__main__":
    raise SystemExit(main())
