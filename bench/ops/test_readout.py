"""readout: bound by memory, its floor counts only the products of Eqs 15-17."""

from __future__ import annotations

from typing import Any

import torch

from bench.core.workloads import DIM
from bench.race.kernel import Call, batch_of, everywhere, race, rows
from hhmpn_fast import ops

pytestmark = everywhere


def test_readout(benchmark: Any, workload: str, backend: str, direction: str, rate: float) -> None:
    chosen, batch = batch_of(workload)
    modalities, size = batch.lengths.shape

    def make(dtype: torch.dtype) -> Call:
        u = rows(modalities, size, chosen.labels, DIM, dtype=dtype)
        wl = rows(DIM, dtype=dtype, seed=1, scale=DIM**-0.5)
        wo = rows(chosen.labels, DIM, dtype=dtype, seed=2, scale=DIM**-0.5)

        def both() -> torch.Tensor:
            fused, logits, _ = ops.readout(u, batch.present, wl, wo)
            return torch.cat([fused, logits[..., None]], -1)

        return both, (u, wl, wo)

    flop = 2 * DIM * size * chosen.labels * (2 * modalities + 1)
    race(benchmark, "readout", backend, make, flop, direction, rate)
