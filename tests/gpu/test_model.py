"""Whole models on a GPU: training as on the processor, replay as without a graph, streams and devices apart."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from hhmpn_fast import HHMPN
from hhmpn_fast.backends import use_backend
from tests.gpu.places import LABELS, Place, a_batch, a_model, captured, finish, on_stream, places, step

STEPS = 50


def losses(model: HHMPN, place: Place) -> Tensor:
    """Losses of 50 steps over four batches in turns: AdamW, dropout, clipped gradients."""
    model = copy.deepcopy(model).to(place.device).train()
    model.seed_dropout(11)
    generator = torch.Generator().manual_seed(5)
    data = [(a_batch(generator, 8, 12), torch.rand(8, len(LABELS), generator=generator).round()) for _ in range(4)]
    data = [(batch.to(place.device), targets.to(place.device)) for batch, targets in data]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    found = []
    for i in range(STEPS):
        batch, targets = data[i % len(data)]
        with use_backend(place.backend):
            loss, _ = model.joint_loss(batch, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found).cpu()


@pytest.mark.parametrize("place", places("cpu"))
def test_fifty_steps_have_the_losses_of_plain_pytorch_on_the_processor(place: Place) -> None:
    model, _ = a_model()
    found, expected = losses(model, place), losses(model, Place("cpu", "torch"))
    assert float((found - expected).abs().max()) < 1e-4
    assert float(expected[:4].mean() - expected[-4:].mean()) > 0.1  # much was learnt that could differ


@pytest.mark.parametrize("frozen", [False, True], ids=["model", "frozen"])
@pytest.mark.parametrize("place", places("cpu", "torch"))
def test_a_replayed_call_has_the_bits_of_the_call(place: Place, frozen: bool) -> None:
    model, generator = a_model()
    model = model.to(place.device).eval()
    batch = a_batch(generator).to(place.device)
    others = [[torch.randn(v.shape, generator=generator) for v in batch.values] for _ in range(3)]
    with use_backend(place.backend), torch.no_grad():
        infer = model.freeze() if frozen else model
        replay, result = captured(lambda: infer(batch), place.device)
        for other in others:
            for v, o in zip(batch.values, other):
                v.copy_(o)
            replay()
            found = result.clone()
            assert torch.equal(found, infer(batch)) and bool(found.any())


@pytest.mark.parametrize("place", places("cpu"))
def test_two_streams_do_not_meet(place: Place) -> None:
    """Two models trained on streams of their own at once give what each gives alone."""
    cases = []
    for seed in (3, 4):
        model, generator = a_model(seed)
        cases.append((model.to(place.device), a_batch(generator, samples=32).to(place.device)))
    alone = [step(model, batch, place.backend) for model, batch in cases]
    finish(place.device)
    together = []
    for _ in range(5):
        for model, batch in cases:
            with on_stream(place.device):
                together.append(step(model, batch, place.backend))
    finish(place.device)
    for i, found in enumerate(together):
        assert all(torch.equal(a, b) for a, b in zip(found, alone[i % 2], strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="this machine has no second GPU")
@pytest.mark.parametrize("place", places())
def test_a_second_device_has_the_bits_of_the_first(place: Place) -> None:
    """`--device cuda:1`: the second GPU is made the current one, and both compute the same."""
    model, generator = a_model()
    batch, found = a_batch(generator), []
    for index in (0, 1):
        with torch.cuda.device(index):
            there = copy.deepcopy(model).to(f"cuda:{index}")
            found.append([t.cpu() for t in step(there, batch.to(f"cuda:{index}"), place.backend)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
