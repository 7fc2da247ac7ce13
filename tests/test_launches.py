"""Launches of a training step: forward, loss, backward, clipping, fused AdamW; mosei-aligned, B = 64, dropout .1."""

from __future__ import annotations

import torch

from bench.core.workloads import WORKLOADS
from tests.launches_counter import counting
import sys

def step_counts(backend, dtype=torch.bfloat16, size=64):
    workload = WORKLOADS["mosei-aligned"]
    model = workload.model(dropout=0.1).to(dtype)
    batch, targets = workload.batch(size, dtype=dtype), workload.targets(size).to(dtype)
    batch.offsets, batch.present
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        loss, _ = model.joint_loss(batch, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad()

    model.train()
    with counting(backend):
        step()
    with counting(backend) as counts:
        step()
    return counts

if __name__ == "__main__":
    for b in sys.argv[1:]:
        c = step_counts(b)
        print(b, sum(c.values()))
        for k, v in c.most_common(): print("   ", v, k)
