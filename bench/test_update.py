"""update on label rows and on nodes."""

from __future__ import annotations

from typing import Any

import torch

from bench.flops import update_features_flop, update_labels_flop
from bench.kernel import Call, batch_of, everywhere, race, rows
from bench.workloads import DIM
from hhmpn_fast import ops

pytestmark = everywhere


def weights(dtype: torch.dtype, *stack: int) -> ops.BlockWeights:
    def square(seed: int, *shape: int) -> torch.Tensor:
        return rows(*shape, DIM, DIM, dtype=dtype, seed=seed, scale=DIM**-0.5)

    return ops.BlockWeights(
        None, square(2), square(3, *stack), rows(DIM, dtype=dtype, seed=4), square(5), rows(DIM, dtype=dtype, seed=6)
    )


def test_update_labels(benchmark: Any, workload: str, backend: str, direction: str, rate: float) -> None:
    chosen, batch = batch_of(workload)
    modalities, count = len(batch.names), batch.batch_size * chosen.labels

    def make(dtype: torch.dtype) -> Call:
        u, s, w = rows(count, DIM, dtype=dtype), rows(modalities, count, DIM, dtype=dtype, seed=1), weights(dtype)
        return lambda: ops.update_labels(u, s, w), (u, s, *(t for t in w if t is not None))

    flop = update_labels_flop(DIM, modalities * count)
    race(benchmark, "update_labels", backend, make, flop, direction, rate)


def test_update_features(benchmark: Any, workload: str, backend: str, direction: str, rate: float) -> None:
    _, batch = batch_of(workload)
    modalities, nodes = len(batch.names), int(batch.lengths.sum())

    def make(dtype: torch.dtype) -> Call:
        v, s = rows(nodes, DIM, dtype=dtype), rows(modalities, nodes, DIM, dtype=dtype, seed=1)
        w = weights(dtype, modalities)
        return lambda: ops.update_features(v, s, w), (v, s, *(t for t in w if t is not None))

    flop = update_features_flop(DIM, nodes, modalities)
    race(benchmark, "update_features", backend, make, flop, direction, rate)
