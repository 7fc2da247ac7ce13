"""The process that measures: `python -m bench.gpu.cell`, a job as JSON on its input, rows as JSON lines on its output.

It writes `{"at": [cell, contestant]}` before it touches a contestant, so that its parent knows the one that took
the process down. Exit status 4: the device does not answer any more, and the rest needs a fresh process.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.core.timing import interleave
from bench.gpu.clock import DeviceSession, ceilings, free, graphed_ms, kernels, one_line, products, spread, wait
from bench.gpu.model import Entrant, Models
from bench.gpu.plan import Cell
from bench.gpu.single import Singles

BROKEN = 4
SECONDS = 0.5  # of timed calls a contestant


class DeviceLost(RuntimeError):
    """The device does not answer."""


class Turn:
    """A contestant's timed call; one that fails keeps its reason and does nothing from then on."""

    def __init__(self, run: Callable[[], object], device: str) -> None:
        self.call, self.device, self.reason = run, device, ""

    def __call__(self) -> None:
        """One call, to its end on the device."""
        if self.reason:
            return
        try:
            self.call()
            wait(self.device)
        except Exception as error:  # a row with its reason, not an end
            self.reason = one_line(error)


def say(**line: Any) -> None:
    """One JSON line."""
    print(json.dumps(line), flush=True)


def row(cell: Cell, name: str, graph: bool, **figures: Any) -> None:
    """One row of the run."""
    values = {k: v for k, v in cell.values().items() if k != "contestants"}
    say(row={**values, "contestant": name, "graph": graph, **figures})


def attempt(cell: Cell, name: str, graph: bool, make: Callable[[], Entrant | None], device: str) -> Entrant | None:
    """What `make` gives, or None with a row that says why not."""
    say(at=[cell.name, name])
    try:
        return make()
    except Exception as error:
        reason = one_line(error)
    row(cell, name, graph, reason=reason)
    if lost := free(device):
        raise DeviceLost(lost)
    return None


def measure(cell: Cell, device: str) -> None:
    """All rows of one cell."""
    field = (Models if cell.part == "model" else Singles)(cell, device)
    entrants: dict[tuple[str, bool], Entrant] = {}
    for name in cell.contestants:
        entrant = attempt(cell, name, False, lambda name=name: field.enter(name), device)
        if entrant is None:
            continue
        entrants[name, False] = entrant
        if torch.device(device).type == "cuda":
            graph = attempt(cell, name, True, lambda name=name: field.capture(name), device)
            if graph is not None:
                entrants[name, True] = graph
    if cell.part == "model":
        turns = {key: Turn(entrant.run, device) for key, entrant in entrants.items()}
        times = interleave(turns, DeviceSession(), budget=SECONDS, least=5, warmup=2)
        taken = {
            key: (statistics.quantiles([s * 1e3 for s in t.seconds], n=4), len(t.seconds)) for key, t in times.items()
        }
    for (name, graph), entrant in entrants.items():
        say(at=[cell.name, name])
        try:
            if cell.part == "model":
                if turns[name, graph].reason:
                    raise RuntimeError(turns[name, graph].reason)
                quartiles, rounds = taken[name, graph]
                kernel_ms, launches = kernels(entrant.run, device)
            else:
                quartiles, rounds = spread(entrant.run, device), 0
                _, launches = kernels(entrant.run, device)
                kernel_ms = graphed_ms(entrant.run, device)
        except Exception as error:
            row(cell, name, graph, reason=one_line(error))
            if lost := free(device):
                raise DeviceLost(lost) from error
            continue
        low, median, high = quartiles
        counted = {"useful_flop": field.flop, "least_bytes": field.bytes, "errors": entrant.errors}
        timed = {"wall_ms": median, "quartiles_ms": [low, high], "rounds": rounds}
        row(cell, name, graph, **timed, kernel_ms=kernel_ms, launches=launches, **counted)


def main() -> int:
    """Measures the job's cells until its deadline; says which ones it finished."""
    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    device = job["device"]
    try:
        say(ceilings=ceilings(device, *job["ceilings"]))
        for values in job["cells"]:
            cell = Cell.of(values)
            if time.time() > job["deadline"]:
                break
            with products(cell.dtype):
                try:
                    measure(cell, device)
                except DeviceLost:
                    raise
                except Exception as error:  # the truth itself could not be had
                    say(at=[cell.name, "every contestant"])
                    for name in cell.contestants:
                        row(cell, name, False, reason=one_line(error))
            say(done=values)
            if lost := free(device):
                raise DeviceLost(lost)
    except DeviceLost as error:
        print(error, file=sys.stderr)
        return BROKEN
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
