"""Captured steps on a real GPU against the same steps without capture: `pytest -m gpu` where there is one."""

from __future__ import annotations

import copy

import pytest
import torch

from hhmpn_fast import CudaGraphs, GraphedStep, InputError, use_backend
from hhmpn_fast.backends import Call, why_not
from hhmpn_fast.bucket import Bucket
from hhmpn_fast.buffers import Buffers
from hhmpn_fast.graph import Limits
from tests.model.cases import random_batch, random_model
from tests.model.graphs import batches, poisoned, state, stepper

GPU = torch.cuda.is_available()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not GPU, reason="torch finds no GPU")]
SIZES = {"m0": 3, "m1": 5, "m2": 20}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def a_model(backend: str, dtype: torch.dtype, **changes: object):
    """A model on the GPU that this backend runs, and its generator."""
    reason = why_not(backend, "attention", Call("cuda", dtype, 64))
    if reason is not None:
        pytest.skip(reason)
    own = {"modalities": SIZES, "labels": tuple("abcdef"), "dim": 64, "steps": 2, "dropout": 0.1, **changes}
    model, generator = random_model(2, torch.float32, **own)
    return model.to("cuda", dtype), generator


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_replays_train_as_the_same_steps_without_capture(backend: str, dtype: str) -> None:
    """100 changing batches: losses, weights, the optimizer's state and dropout's counter, bit for bit."""
    model, generator = a_model(backend, DTYPES[dtype])
    graphed, eager = copy.deepcopy(model), copy.deepcopy(model)
    (step_graphed, adam_graphed), (step_eager, adam_eager) = stepper(graphed), stepper(eager)
    replayed, uncaptured = GraphedStep(step_graphed, "cuda", CudaGraphs("cuda")), GraphedStep(step_eager, "cuda")
    with use_backend(backend):
        for batch, labels in batches(model, generator, 100, (24, 17), 40):
            assert torch.equal(replayed(batch, labels), uncaptured(batch, labels))
    assert all(torch.equal(a, b) for a, b in zip(state(graphed, adam_graphed), state(eager, adam_eager)))
    assert replayed.counts.replayed > 20 and replayed.bytes > 0


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_what_lies_behind_changes_nothing(backend: str) -> None:
    """The gradients with NaN behind the batch are those with zeros, bit for bit, and the plain batch's to rounding."""
    model, generator = a_model(backend, torch.float32)
    model.train()
    for batch, labels in batches(model, generator, 4, (24, 17), 40):
        buffers = Buffers(Bucket.of(batch, round_samples=False), batch, labels, torch.device("cuda"))
        found = []
        for value in (0.0, float("nan"), None):
            model.zero_grad()
            model.seed_dropout(5)
            if value is None:
                data = batch.to("cuda"), labels.to("cuda")
            else:
                poisoned(buffers, batch, value)
                buffers.fill(batch, labels)
                data = buffers.features, buffers.labels
            with use_backend(backend):
                loss, _ = model.joint_loss(*data)
            loss.backward()
            found.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
        zeros, nans, plain = found
        assert all(torch.equal(a, b) for a, b in zip(zeros, nans))
        largest = max(float(g.abs().max()) for g in plain[1:])
        for a, b in zip(nans, plain):
            assert float((a - b).abs().max()) <= 1e-4 * max(float(b.abs().max()), 1e-2 * largest)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_frozen_calls_are_replayed(backend: str) -> None:
    model, generator = a_model(backend, torch.float32, dropout=0.0)
    with use_backend(backend):
        frozen, plain = model.freeze(), model.freeze(graph=False)
        for _ in range(4):
            batch = random_batch(generator, SIZES, 21, 30, torch.float32)
            for _ in range(4):
                found = frozen(batch)
            torch.testing.assert_close(found, plain(batch.to("cuda")), rtol=1e-4, atol=1e-5)
            assert torch.equal(found, frozen(batch))
    assert frozen.graphs.step.counts.replayed > 4


def test_a_batch_above_the_largest_bucket_and_a_step_that_waits() -> None:
    generator = torch.Generator().manual_seed(1)
    batch = random_batch(generator, SIZES, 8, 9, torch.float32)
    limits = Limits(largest=Bucket((16,) * 3, 64))
    step = GraphedStep(lambda f, _: f.values[0].sum(), "cuda", CudaGraphs("cuda"), limits=limits)
    step(batch)
    assert step.counts.too_large == 1
    waits = GraphedStep(lambda f, _: f.values[0].sum().item(), "cuda", CudaGraphs("cuda"))
    with pytest.raises(InputError, match="the step cannot be captured"):
        for _ in range(3):
            waits(batch)
    assert float(torch.ones((), device="cuda") + 1) == 2
