"""The label tower as the model runs it: one op where the backend has it, else composed from single ops."""

from __future__ import annotations

from typing import Any

import torch

from bench.core.flops import useful
from bench.core.workloads import DIM
from bench.race.kernel import Call, batch_of, everywhere, race, rows

pytestmark = everywhere


def test_tower(benchmark: Any, workload: str, backend: str, direction: str, rate: float) -> None:
    chosen, batch = batch_of(workload)

    def make(dtype: torch.dtype) -> Call:
        model = chosen.model().to(dtype).eval()
        z = rows(int(batch.lengths.sum()), DIM, dtype=dtype)
        parts = (model.f2l, model.l2l, model.readout)
        tensors = (z, model.label_embedding, *(p for part in parts for p in part.parameters()))
        return lambda: model._tower(model.plan(), z, batch, None), tensors

    race(benchmark, "tower", backend, make, useful(chosen.model().config, batch).labels, direction, rate)
