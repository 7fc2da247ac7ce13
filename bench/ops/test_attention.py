"""attention at the shapes of F2F, F2L and L2L."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.core.flops import attention_flop
from bench.core.workloads import DIM
from bench.race.kernel import Call, batch_of, everywhere, race, rows
from hhmpn_fast import ops

pytestmark = everywhere


def segments(count: int, length: int) -> torch.Tensor:
    return torch.arange(0, count * length + 1, length, dtype=torch.int32)


@pytest.mark.parametrize("case", ("f2f", "f2l", "l2l"))
def test_attention(benchmark: Any, workload: str, backend: str, direction: str, case: str, rate: float) -> None:
    chosen, batch = batch_of(workload)
    modalities, size = batch.lengths.shape
    labels, nodes = chosen.labels, batch.offsets
    q_offsets, x_offsets, groups = {
        "f2f": (nodes, nodes, modalities),
        "f2l": (segments(size, labels), nodes, modalities),
        "l2l": (segments(modalities * size, labels), segments(modalities * size, labels), 1),
    }[case]

    def make(dtype: torch.dtype) -> Call:
        q = rows(int(q_offsets[-1]), DIM, dtype=dtype, scale=DIM**-0.5)
        x = rows(int(x_offsets[-1]), DIM, dtype=dtype, seed=1)
        return lambda: ops.attention(q, x, q_offsets, x_offsets, groups)[0], (q, x)

    queries, keys = q_offsets.diff().tolist(), x_offsets.diff().tolist()
    if case == "f2f":
        queries = batch.lengths.sum(0).tolist() * modalities
    elif case == "f2l":
        queries = queries * modalities
    race(benchmark, "attention", backend, make, attention_flop(DIM, queries, keys), direction, rate)
