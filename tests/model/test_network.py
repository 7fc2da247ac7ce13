"""The packed model equals the reference: outputs, loss and every parameter gradient, under every reading."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from hhmpn_fast import InputError, Ragged
from hhmpn_fast.backends import use_backend
from hhmpn_fast.config import ABLATIONS, HHMPNConfig
from hhmpn_fast.model import HHMPN
from hhmpn_fast.readings import choices
from tests.model.cases import random_batch, random_model

OPEN = [
    {},
    {"f2f_layers": 2},
    {"heads": 3},
    {"positions": ("m0",)},
    {"update_hidden": 5},
    {"dropout": 0.7},
    {"intermediate_weight": 0.7},
    *({"without": (name,)} for name in ABLATIONS),
    {"without": ABLATIONS},
    {"heads": 2, "f2f_softmax": "sample", "f2f_residual": "proj"},
    {"norm": "post", "sharing": "per_step_and_modality"},
    {"label_graph": "prior", "exclude_self": True},
    {"norm": "post", "heads": 4, "dropout_place": "lamp", "intermediate": "lamp", "label_graph": "prior"},
]
READINGS = [
    *OPEN,
    *({name: other} for name, (_, *others) in choices(HHMPNConfig).items() for other in others),
    *({field.name: not field.default} for field in fields(HHMPNConfig) if isinstance(field.default, bool)),
]
ids = [", ".join(f"{k}={v}" for k, v in r.items()) or "paper" for r in READINGS]


def outcome(model: HHMPN, batch: Ragged, targets: torch.Tensor, backend: str) -> list[torch.Tensor]:
    """Logits and all parameter gradients under one backend; a parameter without a path has gradient None."""
    with use_backend(backend):
        logits = model(batch)
        loss = model.loss(logits, targets)
    parameters = list(model.parameters())
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [logits.detach(), *(torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads))]


def assert_same(model: HHMPN, batch: Ragged, generator: torch.Generator) -> None:
    targets = torch.rand(batch.batch_size, len(model.config.labels), generator=generator, dtype=torch.float64).round()
    names = ["logits", *(n for n, _ in model.named_parameters())]
    rng = model.rng.clone()  # a step counts up in place
    expected = outcome(model, batch, targets, "reference")
    model.rng = rng
    found = outcome(model, batch, targets, "torch")
    largest = max(float(g.abs().max()) for g in expected[1:] if g.numel())
    for name, e, f in zip(names, expected, found):
        assert torch.isfinite(e).all(), name
        assert e.shape == f.shape, name
        # Gradients that cancel to nothing are held against the largest one.
        scale = max(float(e.abs().max()), 1e-3 * largest)
        assert float((e - f).abs().max()) <= 1e-10 * scale, (name, float((e - f).abs().max()) / scale)


def test_the_sweep_has_every_reading() -> None:
    swept = {name for reading in READINGS for name in reading}
    assert swept == {f.name for f in fields(HHMPNConfig)} - {"modalities", "labels", "dim", "steps"}


@pytest.mark.parametrize("reading", READINGS, ids=ids)
@pytest.mark.parametrize("seed", range(7))
def test_packed_equals_reference(reading: dict, seed: int) -> None:
    model, generator = random_model(1000 * seed + READINGS.index(reading), **reading)
    batch = random_batch(generator, model.config.modalities, 1 + int(torch.randint(8, (1,), generator=generator)), 40)
    assert_same(model.eval(), batch, generator)


@pytest.mark.parametrize("reading", [{}, {"feedback": False}, {"heads": 2}, {"norm": "post", "dropout_place": "lamp"}])
def test_packed_equals_reference_with_dropout(reading: dict) -> None:
    model, generator = random_model(5, dropout=0.3, labels=("a", "b", "c"), modalities={"m0": 3, "m1": 2}, **reading)
    model.seed_dropout(2**40 + 7, 3)
    assert_same(model.train(), random_batch(generator, model.config.modalities, 2, 5), generator)


def test_dropout_draws_a_new_mask_every_step_and_the_same_for_the_same_step() -> None:
    model, generator = random_model(1, dropout=0.5)
    batch = random_batch(generator, model.config.modalities, 2, 9)
    model.train().seed_dropout(4)
    first, second = model(batch), model(batch)
    model.seed_dropout(4)
    assert torch.equal(first, model(batch))
    assert not torch.equal(first, second)


def test_one_label_one_modality_one_node() -> None:
    model, generator = random_model(2, modalities={"only": 4}, labels=("one",), steps=1)
    batch = Ragged(("only",), (torch.randn(1, 4, generator=generator, dtype=torch.float64),), torch.tensor([[1]]))
    assert_same(model, batch, generator)


def test_empty_batch() -> None:
    model, _ = random_model(3, modalities={"a": 2, "b": 3})
    values = (torch.zeros(0, 2, dtype=torch.float64), torch.zeros(0, 3, dtype=torch.float64))
    batch = Ragged(("a", "b"), values, torch.zeros(2, 0, dtype=torch.int64))
    logits = model(batch)
    assert logits.shape == (model.config.steps, 0, len(model.config.labels))
    loss = model.loss(logits, torch.zeros(0, len(model.config.labels), dtype=torch.float64))
    loss.backward()
    assert float(loss.detach()) == 0.0


def test_a_batch_is_the_sum_of_its_samples() -> None:
    model, generator = random_model(4)
    batch = random_batch(generator, model.config.modalities, 6, 12)
    whole = model.eval()(batch)
    ends = batch.lengths.cumsum(1)
    for b in range(6):
        parts = tuple(v[int(e[b] - n[b]) : int(e[b])] for v, e, n in zip(batch.values, ends, batch.lengths))
        one = model(Ragged(batch.names, parts, batch.lengths[:, b : b + 1]))
        assert torch.allclose(one[:, 0], whole[:, b], rtol=1e-12, atol=1e-12)


def test_a_nan_stays_in_its_sample() -> None:
    model, generator = random_model(6, modalities={"a": 3, "b": 2})
    batch = random_batch(generator, {"a": 3, "b": 2}, 4, 9)
    clean = model.eval()(batch)
    sample = int(batch.lengths[0].argmax())
    batch.values[0][int(batch.lengths[0, :sample].sum())] = float("nan")
    logits = model(batch)
    others = [b for b in range(4) if b != sample]
    assert logits[:, sample].isnan().all()
    assert torch.equal(logits[:, others], clean[:, others])


def test_a_subset_of_modalities_is_taken_by_name() -> None:
    model, generator = random_model(7, modalities={"b": 2, "a": 3})
    batch = random_batch(generator, {"a": 3, "c": 5, "b": 2}, 3, 6)
    batch = Ragged(batch.names, batch.values, torch.where(batch.lengths == 0, 0, batch.lengths))
    chosen = batch.select(("b", "a")) if (batch.lengths[[0, 2]].sum(0) > 0).all() else None
    if chosen is not None:
        assert torch.equal(model.eval()(batch), model(chosen))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"a": 3}, "modality 'b': not in the batch, which holds a; expected a, b."),
        ({"a": 3, "b": 4}, "modality 'b': features of size 4; expected 2."),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(sizes: dict, message: str) -> None:
    model, generator = random_model(8, modalities={"a": 3, "b": 2})
    with pytest.raises(InputError, match=message):
        model(random_batch(generator, sizes, 2, 4))


def test_inference_follows_the_weights() -> None:
    model, generator = random_model(9)
    batch = random_batch(generator, model.config.modalities, 2, 5)
    model.eval()
    with torch.no_grad():
        before = model(batch)
        model.f2l.w1.mul_(1.5)
        after = model(batch)
    assert not torch.equal(before, after)
    assert torch.allclose(after, model(batch), rtol=1e-12)


def test_a_model_made_in_inference_mode_runs() -> None:
    # Its parameters count no versions, so what is formed from them is never kept.
    with torch.inference_mode():
        model, generator = random_model(0)
        batch = random_batch(generator, model.eval().config.modalities, 3, 9)
        expected = model(batch)
        torch.testing.assert_close(model(batch), expected)
        model.f2l.w1.mul_(2)
        assert not torch.equal(model(batch), expected)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_model_trains_after_a_call_in_inference_mode(backend: str) -> None:
    # Nothing that a call in inference mode makes may be kept for calls that save for a backward pass.
    model, generator = random_model(0, norm="post")
    with use_backend(backend):
        with torch.inference_mode():
            model(random_batch(generator, model.config.modalities, 3, 9))
        model(random_batch(generator, model.config.modalities, 3, 9)).sum().backward()
    assert model.f2l.wv.grad.any()
