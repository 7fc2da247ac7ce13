"""Launches of a training step: forward, loss, backward, clipping, fused AdamW; mosei-aligned, B = 64, dropout .1.

A profiler on an H200 saw 124 (cuda) and 423 (triton) of a model in bf16 before there were these tests, of which this
counter found 140 and 400: it knows no second kernel of cuBLAS, and counts each op of a loss that PyTorch fuses.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bench.core.workloads import WORKLOADS
from tests.cuda.cases import needs_harness
from tests.launches_counter import HostError, counting

pytest.importorskip("triton")
BACKENDS = ["triton", pytest.param("cuda", marks=needs_harness)]
MOST = {"cuda": 90, "triton": 150}
ROWS = {"fp32": torch.float32, "bf16": torch.bfloat16, "autocast": torch.float32}


def launches(backend: str, kind: str) -> dict[str, int]:
    """By name, of the second step: the first one makes the optimizer's state."""
    workload = WORKLOADS["mosei-aligned"]
    model = workload.model(dropout=0.1).to(ROWS[kind]).train()
    batch, targets = workload.batch(dtype=ROWS[kind]), workload.targets().to(ROWS[kind])
    assert batch.offsets.numel() and batch.present.numel()  # made with the batch, not in the step
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(2):
        with counting(backend) as counts:
            with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
                loss, _ = model.joint_loss(batch, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
            optimizer.step()
            optimizer.zero_grad()
    return dict(counts)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_of_a_training_step(backend: str, kind: str) -> None:
    found = launches(backend, kind)
    assert sum(found.values()) <= MOST[backend], found


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.tolist(),
        lambda x: x.sum().item(),
        lambda x: bool(x[0]),
        lambda x: x[x > 0],
        lambda x: x.repeat_interleave(torch.ones_like(x, dtype=torch.int64)),
        lambda x: torch.tensor([0, 1]),
    ],
    ids=["tolist", "item", "bool", "a boolean index", "repeat_interleave", "tensor"],
)
def test_the_host_is_refused(ask: Callable[[torch.Tensor], object]) -> None:
    x = torch.ones(3)
    with counting("triton"), pytest.raises(HostError, match="waits for the host"):
        ask(x)


def test_ops_are_counted_as_what_runs() -> None:
    x, low = torch.ones(4, 4), torch.ones(4, 4, dtype=torch.bfloat16)
    cases = {
        "views": (lambda: x.view(16).reshape(2, 8).t()[0].expand(3, 2), {}),
        "an allocation": (lambda: torch.empty_like(x), {}),
        "a cast": (lambda: x.to(torch.bfloat16), {"copy_": 1}),
        "no cast": (lambda: low.to(torch.bfloat16).contiguous(), {}),
        "a copy": (lambda: x.t().contiguous(), {"copy_": 1}),
        "zeros": (lambda: x.new_zeros(3), {"zero_": 1}),
        "a select's gradient": (lambda: torch.ops.aten.select_backward(x[0], [4, 4], 0, 0), {"zero_": 1, "copy_": 1}),
        "a linear layer": (lambda: torch.nn.functional.linear(x, x, x[0]), {"addmm": 1}),
    }
    for name, (run, expected) in cases.items():
        with counting("triton") as counts, torch.no_grad():
            run()
        assert dict(counts) == expected, name
