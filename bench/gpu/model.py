"""The whole-model cells: what is timed of a contestant that passed the float64 gate, as it is and as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from bench.core.flops import compulsory_bytes, useful
from bench.core.workloads import BATCH, named
from bench.gpu.clock import captured, wait
from bench.gpu.plan import Cell
from bench.race.contestants import CONTESTANTS, Gate, Task, compare
from bench.race.peers.base import Case

GATE = 16  # samples that every contestant is checked on: the reference takes a second for two of them


class Entrant(NamedTuple):
    """What is timed of one contestant: a call, and how far its results are off."""

    run: Callable[[], object]
    errors: dict[str, float]


class Models:
    """One cell: `enter(name)` and `capture(name)` give what is timed, or raise the reason why not."""

    def __init__(self, cell: Cell, device: str) -> None:
        workload, self.case = named(cell.workload), Case(cell.mode, cell.dtype, device)
        batch = workload.batch(cell.batch)
        compiled = any(CONTESTANTS[name].compiles for name in cell.contestants)
        samples = BATCH if compiled else GATE  # a compiled peer would compile the small batch too
        self.gate = Gate.of(workload, (batch, workload.targets(cell.batch)), self.case, 0.0, samples)
        self.flop = useful(self.gate.model.config, batch).of(cell.mode)
        parameters = sum(p.numel() for p in self.gate.model.parameters())
        self.bytes = compulsory_bytes(parameters, batch, cell.mode)
        self.tasks: dict[str, Task] = {}

    def enter(self, name: str) -> Entrant:
        """The contestant as it is."""
        task, errors = self.gate.admit(name)
        self.tasks[name] = task
        return Entrant(task.run, errors)

    def capture(self, name: str) -> Entrant | None:
        """Its CUDA graph, held against the truth and the gradients of the call itself; None for who makes its own."""
        if CONTESTANTS[name].compiles:
            return None
        task = self.tasks[name]
        if isinstance(task.lr, Tensor):
            task.lr.zero_()  # a step changes no weight while results are compared
        task.run()
        truth = {n: g.double() for n, g in task.gradients().items() if g is not None}
        replay, out = captured(task.run)
        found = task.gradients()
        replay()
        wait(self.case.device)
        self.gate.logits(name, out)
        errors = compare(f"{name}, graph", found, truth, self.case.dtype)
        if isinstance(task.lr, Tensor):
            task.lr.fill_(2e-4)
        return Entrant(replay, errors)
