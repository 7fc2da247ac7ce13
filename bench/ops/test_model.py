"""The whole model under pytest-benchmark: every contestant, inference and training step, in fp32 and bf16."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.core.flops import useful
from bench.core.rate import matrix_rate
from bench.core.workloads import BATCH, NAMES, named
from bench.race.contestants import CONTESTANTS, gather
from bench.race.peers.base import Case

# Compiled contestants take minutes to get ready: `python -m bench.race.run` has them.
EAGER = [n for n, c in CONTESTANTS.items() if not c.compiles]


@pytest.mark.parametrize("workload", NAMES)
@pytest.mark.parametrize("mode", ("train", "infer"))
@pytest.mark.parametrize("dtype", ("fp32", "bf16"))
@pytest.mark.parametrize("size", (BATCH, 1))
@pytest.mark.parametrize("name", EAGER)
def test_model(benchmark: Any, workload: str, mode: str, dtype: str, size: int, name: str) -> None:
    chosen, case = named(workload), Case(mode, dtype)
    batch, targets = chosen.batch(size), chosen.targets(size)
    tasks, errors, skipped = gather([name], chosen, batch, targets, case)
    if skipped:
        pytest.skip(skipped[name])
    benchmark.pedantic(tasks[name].run, rounds=5, warmup_rounds=1)
    rate = matrix_rate({"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    flop, median = useful(chosen.model().config, batch).of(mode), benchmark.stats.stats.median
    benchmark.extra_info |= {
        "useful_flop": flop,
        "matrix_rate": rate,
        "of_matrix_rate": flop / median / rate,
        "times_floor": median * rate / flop,
        "errors": errors[name],
    }
