"""One cell of the plan, measured in this process: `python -m bench.race.cell OUT HOLD CELL...`, cells as JSON.

Timed cells check every contestant against the float64 reference first; that, compilers and warm-up calls run outside
the timed sections. Memory and first calls are probed one contestant a process.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench.core.flops import compulsory_bytes, useful
from bench.core.rate import bandwidth
from bench.core.timing import Session, interleave
from bench.core.workloads import named
from bench.race.contestants import CONTESTANTS, Task, WrongResult, gather
from bench.race.peers.base import Case
from bench.race.plan import Cell

THREADS = 2
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def measure(cell: Cell, hold: str) -> dict[str, Any]:
    """The record of one cell: `results` by contestant, `skipped` with reasons."""
    workload, case = named(cell.workload), Case(cell.mode, cell.dtype)
    batch, targets = workload.batch(cell.batch), workload.targets(cell.batch)
    model = workload.model()
    flop = useful(model.config, batch).of(cell.mode)
    nodes, longest = int(batch.lengths.sum()), batch.lengths.max(1).values
    record: dict[str, Any] = {
        **json.loads(cell.dumps()),
        "name": cell.name,
        "useful_flop": flop,
        "compulsory_bytes": compulsory_bytes(sum(p.numel() for p in model.parameters()), batch, cell.mode),
        "nodes": nodes,
        "fill": nodes / int(longest.sum()) / cell.batch,
    }
    if cell.kind != "time":
        name = cell.contestants[0]
        reason = CONTESTANTS[name].why_not(case, batch)
        task = None if reason else Task(CONTESTANTS[name](model), batch, targets, case)
        if task is not None:
            found = added_memory(task, cell) if cell.kind == "memory" else first_call(task, hold)
        record["results"] = {} if task is None else {name: found}
        record["skipped"] = {name: reason} if reason else {}
        return record
    tasks, errors, skipped = gather(cell.contestants, workload, batch, targets, case, cell.dropout)
    session = Session(DTYPES[cell.dtype], hold)
    times = interleave({n: t.run for n, t in tasks.items()}, session, budget=cell.budget)
    rate = session.rate
    record |= {"rate": rate[0], "rate_by": rate[1], "cores_busy_elsewhere": max(session.busy), "skipped": skipped}
    record["sections_cut_short"] = session.cut_short
    if cell.table == "main":
        with session.section():
            record["bandwidth"] = bandwidth()
    record["results"] = {
        n: {"median": t.median, "mad": t.mad, "rounds": len(t.seconds), "errors": errors[n]} for n, t in times.items()
    }
    return record


def added_memory(task: Task, cell: Cell) -> dict[str, float]:
    """MiB by which a call's peak stands above model, data and loaded libraries.

    A call on a small batch loads the libraries first; for a compiled peer, which would compile another graph, the call
    itself does, and what it freed goes back to the system.
    """
    if task.peer.compiles:
        task.run()
    else:
        workload = named(cell.workload)
        small = Task(task.peer, workload.batch(1), workload.targets(1), task.case)
        small.run()
        small.optimizer.zero_grad()
        del small
    task.optimizer.zero_grad()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    task.run()
    task.run()
    return {"mib": (_status("VmHWM") - before) / 1024}


def first_call(task: Task, hold: str) -> dict[str, float]:
    """Seconds of the first call in a fresh process, and of the second. A compiler takes too long to hold a machine."""
    found = {}
    session = Session(torch.float32, "" if task.peer.compiles else hold)
    with session.section():
        for name in ("first", "second"):
            start = time.perf_counter()
            task.run()
            found[name] = time.perf_counter() - start
    return found


def _status(field: str) -> int:
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(field))
    return int(line.split()[1])


def main(arguments: list[str]) -> int:
    """Measures the cells and writes one JSON file for each."""
    torch.set_num_threads(THREADS)
    out, hold, *texts = arguments
    for text in texts:
        cell = Cell.loads(text)
        try:
            record = measure(cell, hold)
        except WrongResult as error:
            print(error, file=sys.stderr)
            return 3
        suffix = "" if cell.kind == "time" else f"-{list(CONTESTANTS).index(cell.contestants[0])}"
        Path(out, f"{cell.name}{suffix}.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
