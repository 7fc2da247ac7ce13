"""A whole model on the triton backend, interpreted, equals the torch backend. Run by test_triton_interpreter."""

from __future__ import annotations

import pytest
import torch

from hhmpn_fast import InputError
from hhmpn_fast.backends import Call, use_backend, why_not
from tests.model.cases import random_batch, random_model
from tests.model.graphs import check_buffered
from tests.ops.bounds import bounds, check_all
from tests.triton.support import guard

guard.install()
READINGS = [{}, {"dropout": 0.3}, {"exclude_self": True}, {"label_graph": "prior"}, {"f2f_softmax": "sample"}]


def outcome(model: torch.nn.Module, batch: object, targets: torch.Tensor, backend: str) -> list[torch.Tensor]:
    """Logits, loss and all gradients; the dropout stream starts over."""
    model.seed_dropout(2**40 + 7, 3)
    with use_backend(backend):
        logits = model(batch)
        loss = model.loss(logits, targets)
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [logits, loss, *(torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), grads))]


@pytest.mark.parametrize("reading", READINGS, ids=str)
def test_logits_loss_and_gradients(reading: dict) -> None:
    sizes = {"m0": 3, "m1": 5}
    reading = {"labels": ("a", "b", "c"), "modalities": sizes, "steps": 2, "dropout": 0.0, **reading}
    model, generator = random_model(3, torch.float32, **reading)
    batch = random_batch(generator, sizes, 3, 9, torch.float32)
    targets = torch.rand(3, 3, generator=generator).round()
    found = outcome(model.train(), batch, targets, "triton")
    wide = model.double(), batch.to(torch.float64), targets.double()
    names = ["logits", "loss", *(n for n, _ in model.named_parameters())]
    check_all(names, found, bounds(lambda: outcome(*wide, "torch"), torch.float32))


@pytest.mark.parametrize(("dropout", "samples"), [(0.2, 3), (0.0, 9)], ids=["rows", "rows and samples"])
def test_what_lies_behind_a_batch_changes_nothing(dropout: float, samples: int) -> None:
    own = {"labels": ("a", "b"), "modalities": {"m0": 3, "m1": 5}, "steps": 1, "dropout": dropout}
    model, generator = random_model(3, torch.float32, **own)
    check_buffered(model.train(), generator, "triton", 1e-5, samples)


def test_options_without_a_kernel_are_refused_by_name() -> None:
    model, generator = random_model(4, torch.float32, norm="post", modalities={"m0": 3}, labels=("a",))
    batch = random_batch(generator, {"m0": 3}, 2, 4, torch.float32)
    with use_backend("triton"), pytest.raises(InputError, match="do not hold the option norm"):
        model(batch)


def test_reasons() -> None:
    call = Call("cpu", torch.float32, 256)
    assert why_not("triton", "attention", call) is None
    assert "float64" in why_not("triton", "attention", Call("cpu", torch.float64, 256))
    assert "513" in why_not("triton", "update_labels", Call("cpu", torch.float32, 513))
    assert "meta" in why_not("triton", "readout", Call("meta", torch.float32, 8))
