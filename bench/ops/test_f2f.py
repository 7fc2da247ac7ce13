"""f2f as the model runs it: one op where the backend has it, else composed from single ops."""

from __future__ import annotations

from typing import Any

import torch

from bench.core.flops import useful
from bench.core.workloads import DIM
from bench.race.kernel import Call, batch_of, everywhere, race, rows

pytestmark = everywhere


def test_f2f(benchmark: Any, workload: str, backend: str, direction: str, rate: float) -> None:
    chosen, batch = batch_of(workload)

    def make(dtype: torch.dtype) -> Call:
        model = chosen.model().to(dtype).eval()
        x = rows(int(batch.lengths.sum()), DIM, dtype=dtype)
        return lambda: model._f2f(model.plan(), x, batch.offsets, 0, None), (x, *model.f2f[0].parameters())

    race(benchmark, "f2f", backend, make, useful(chosen.model().config, batch).f2f, direction, rate)
