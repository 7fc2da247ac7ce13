"""The phases f2f and tower as the model runs them: one op where the backend has it, else composed from single ops."""

from __future__ import annotations

from typing import Any

import torch

from bench.flops import useful
from bench.kernel import Call, batch_of, everywhere, race, rows
from bench.workloads import DIM

pytestmark = everywhere


def test_f2f(benchmark: Any, workload: str, backend: str, direction: str, rate: float) -> None:
    chosen, batch = batch_of(workload)

    def make(dtype: torch.dtype) -> Call:
        model = chosen.model().to(dtype).eval()
        x = rows(int(batch.lengths.sum()), DIM, dtype=dtype)
        return lambda: model._f2f(model.plan(), x, batch.offsets, 0, None), (x, *model.f2f[0].parameters())

    race(benchmark, "f2f", backend, make, useful(chosen.model().config, batch).f2f, direction, rate)


def test_tower(benchmark: Any, workload: str, backend: str, direction: str, rate: float) -> None:
    chosen, batch = batch_of(workload)

    def make(dtype: torch.dtype) -> Call:
        model = chosen.model().to(dtype).eval()
        z = rows(int(batch.lengths.sum()), DIM, dtype=dtype)
        parts = (model.f2l, model.l2l, model.readout)
        tensors = (z, model.label_embedding, *(p for part in parts for p in part.parameters()))
        return lambda: model._tower(model.plan(), z, batch, None), tensors

    race(benchmark, "tower", backend, make, useful(chosen.model().config, batch).labels, direction, rate)
