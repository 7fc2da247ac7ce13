"""Steps over buffers: what lies behind a batch changes nothing, and a replayed step is the same step bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch

from hhmpn_fast import InputError, Ragged, ops, use_backend
from hhmpn_fast.bucket import Bucket, capacity
from hhmpn_fast.buffers import Buffers
from hhmpn_fast.graph import WARM_UPS, GraphedInference, GraphedStep, Limits, why_not_captured
from hhmpn_fast.ops.readout import JOINT_BCE, live_bce
from tests.model.cases import random_batch, random_model
from tests.model.graphs import Reruns, batches, check_buffered, filled, poisoned, state, stepper
from tests.ops.test_accelerator import as_on_an_accelerator
from tests.train.no_host import NoHost

SIZES = {"m0": 3, "m1": 5}
LABELS = ("a", "b", "c")


def a_model(seed: int = 1, dtype: torch.dtype = torch.float32, **changes: object):
    """A small model of random weights, and its generator."""
    return random_model(seed, dtype, **{"modalities": SIZES, "labels": LABELS, "steps": 2, "dropout": 0.2, **changes})


def test_capacities_have_four_steps_an_octave() -> None:
    found = sorted({capacity(n) for n in range(1, 1025)})
    assert all(capacity(n) == n for n in found)
    for octave in range(3, 10):
        assert sum(2**octave < n <= 2 ** (octave + 1) for n in found) == 4
    assert all(n <= capacity(n) <= max(1.25 * n, n + 1) for n in range(1, 5000))


def train_over_buffers(backend: str, reading: dict, count: int) -> None:
    model, generator = a_model(**reading)
    plain, over = copy.deepcopy(model), copy.deepcopy(model)
    (step_plain, adam_plain), (step_over, adam_over) = stepper(plain), stepper(over)
    data = list(batches(model, generator, count, (3, 5, 2), 5))
    buffers = Buffers(Bucket((64,) * 2, 6), *data[0], torch.device("cpu"))
    with use_backend(backend):
        for batch, labels in data:
            poisoned(buffers, batch, float("nan"))
            buffers.fill(batch, labels)
            assert torch.equal(step_over(buffers.live(), buffers.live_labels()), step_plain(batch, labels))
    assert all(torch.equal(a, b) for a, b in zip(state(over, adam_over), state(plain, adam_plain)))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_buffers_train_as_the_batches_do(backend: str) -> None:
    """100 changing batches through the same buffers, poisoned before each: losses, weights, optimizer to the bit."""
    train_over_buffers(backend, {}, 100)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("reading", [{"dropout": 0.0}, {"sharing": "tied", "intermediate": "none"}, {"norm": "post"}])
def test_buffers_train_as_the_batches_do_at_length(backend: str, reading: dict) -> None:
    train_over_buffers(backend, reading, 500)


@pytest.mark.parametrize("reading", [{}, {"norm": "post"}, {"f2f_softmax": "sample"}, {"heads": 2}])
@pytest.mark.parametrize("round_samples", [False, True])
def test_what_lies_behind_changes_nothing(reading: dict, round_samples: bool) -> None:
    """Capacities with NaN, with zeros and with numbers behind the batch: loss, logits and gradients to the bit."""
    model, generator = a_model(dtype=torch.float64, **({"dropout": 0.0} if round_samples else {}), **reading)
    model.train()
    for batch, labels in batches(model, generator, 4, (7, 16, 11), 7):
        found = []
        for value in (None, 0.0, 3e4, float("nan"), float("inf")):
            model.zero_grad()
            model.seed_dropout(5)
            data = (batch, labels)
            if value is not None:
                buffers = filled(batch, labels, value, round_samples)
                data = (buffers.features, buffers.labels)
            with use_backend("torch"):
                loss, logits = model.joint_loss(*data)
            loss.backward()
            grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            found.append([loss.detach(), logits[:, : batch.batch_size], *grads])
        plain, first, *others = found
        for other in others:
            assert all(torch.equal(a, b) for a, b in zip(other, first))
        largest = max(float(g.abs().max()) for g in plain[2:])
        for a, b in zip(first, plain):  # a library's products may round otherwise at other heights
            assert float((a - b).abs().max()) <= 1e-12 * max(float(b.abs().max()), 1e-3 * largest)


@pytest.mark.parametrize(("dropout", "samples"), [(0.2, 3), (0.0, 9)], ids=["rows", "rows and samples"])
def test_plain_attention_of_accelerators_reads_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, dropout: float, samples: int
) -> None:
    model, generator = a_model(dropout=dropout)
    as_on_an_accelerator(monkeypatch)
    check_buffered(model.train(), generator, "torch", 1e-5, samples)


@pytest.mark.parametrize("reading", [{"positions": ("m1",)}, {"embed_bias": True, "embed_activation": "tanh"}])
def test_embeddings_over_buffers(reading: dict) -> None:
    model, generator = a_model(dtype=torch.float64, dropout=0.0, **reading)
    batch, labels = next(batches(model, generator, 1, (7,), 9))
    buffers = filled(batch, labels, float("nan"), True)
    with use_backend("torch"), torch.no_grad():
        found, expected = model(buffers.features)[:, :7], model(batch)
    assert float((found - expected).abs().max()) <= 1e-12 * float(expected.abs().max())


def test_the_loss_of_the_real_samples_by_a_count_on_the_device() -> None:
    """What accelerators run: the mean and its gradient are the real samples', the others' are 0 whatever is there."""
    generator = torch.Generator().manual_seed(1)
    logits, targets = torch.randn(3, 9, 4, generator=generator), torch.rand(9, 4, generator=generator).round()
    weights = torch.rand(4, generator=generator)
    targets[6:] = float("nan")
    found = []
    for samples in (None, torch.tensor(6, dtype=torch.int32)):
        leaf = logits.clone().requires_grad_()
        if samples is None:
            loss = ops.joint_bce(leaf[:, :6], targets[:6], 0.3, weights)
        else:
            with NoHost():
                loss = live_bce(JOINT_BCE.record(leaf, targets, 0.3, weights), samples)
        loss.backward()
        found.append((loss.detach(), leaf.grad))
    (loss, grad), (loss_of, grad_of) = found
    torch.testing.assert_close(loss_of, loss)
    torch.testing.assert_close(grad_of, grad, rtol=1e-6, atol=1e-9)
    assert (grad_of[:, 6:] == 0).all()


def test_buffers_ask_the_device_nothing() -> None:
    model, generator = a_model()
    buffers = filled(*next(batches(model, generator, 1, (7,), 9)), float("nan"), False)
    rows = torch.randn(sum(v.shape[0] for v in buffers.features.values), 4, requires_grad=True)
    buffers.features.dense(rows)  # what is made once
    with NoHost():
        buffers.features.inputs()
        buffers.features.places()
        buffers.features.dense(rows).sum().backward()
    assert torch.isfinite(rows.grad).all()


@pytest.mark.parametrize(("backend", "buffered", "count"), [("cpu", False, 100), ("torch", True, 40)])
def test_a_replayed_step_is_the_step(backend: str, buffered: bool, count: int) -> None:
    """Buckets, warm-ups, captures and replays against the same buffers without capture, weights to the bit."""
    model, generator = a_model()
    graphed, eager = copy.deepcopy(model), copy.deepcopy(model)
    (step_graphed, adam_graphed), (step_eager, adam_eager) = stepper(graphed), stepper(eager)
    reruns = Reruns()
    replayed = GraphedStep(step_graphed, "cpu", reruns, buffered=buffered)
    uncaptured = GraphedStep(step_eager, "cpu", buffered=buffered)
    with use_backend(backend):
        for batch, labels in batches(model, generator, count, (5, 6), 4):
            assert torch.equal(replayed(batch, labels), uncaptured(batch, labels))
    assert all(torch.equal(a, b) for a, b in zip(state(graphed, adam_graphed), state(eager, adam_eager)))
    assert replayed.counts.replayed + replayed.counts.over_buffers == count
    assert replayed.counts.replayed > 20 and replayed.counts.over_buffers == reruns.warm_ups
    assert 1 < reruns.captures <= 16 and uncaptured.counts.over_buffers == count
    assert replayed.describe().startswith(f"{reruns.captures} graphs of ")


def one_bucket(step, **options):
    """A graphed step and a batch that it is called with."""
    generator = torch.Generator().manual_seed(3)
    batch = random_batch(generator, SIZES, 6, 9, torch.float32)
    return GraphedStep(step, "cpu", Reruns(), **options), batch


def test_a_bucket_is_captured_after_its_warm_ups() -> None:
    seen = []
    step, batch = one_bucket(lambda f, _: seen.append(f.batch_size) or f.values[0].sum())
    for _ in range(WARM_UPS + 3):
        step(batch)
    assert (step.counts.over_buffers, step.counts.replayed) == (WARM_UPS, 3) and len(seen) == WARM_UPS + 3


def test_a_batch_above_the_largest_bucket_runs_as_it_came_and_is_counted() -> None:
    seen = []
    step, batch = one_bucket(lambda f, _: seen.append(f), limits=Limits(largest=Bucket((16,) * 2, 64)))
    step(batch)
    assert step.counts.too_large == 1 and seen[0].values[0].shape == batch.values[0].shape
    assert "1 above the largest bucket" in step.describe()


def test_what_is_captured_is_bounded() -> None:
    generator = torch.Generator().manual_seed(3)
    step, batch = one_bucket(lambda f, _: f.values[0].sum(), limits=Limits(buckets=1))
    other = random_batch(generator, SIZES, 40, 9, torch.float32)
    for _ in range(5):
        step(batch), step(other)
    assert (step.counts.replayed, step.counts.over_buffers) == (3, 7)
    held = step.bytes
    step, _ = one_bucket(lambda f, _: f.values[0].sum(), limits=Limits(memory=10))
    for _ in range(5):
        step(batch)
    assert step.counts.replayed == 0 and held == step.bytes + 1000


def test_what_does_not_fit_the_buffers_is_refused() -> None:
    generator = torch.Generator().manual_seed(3)
    batch = random_batch(generator, SIZES, 6, 9, torch.float32)
    turned = Ragged(("m1", "m0"), batch.values[::-1], batch.lengths.flip(0))
    buffers = Buffers(Bucket.of(batch, round_samples=False), batch, None, torch.device("cpu"))
    with pytest.raises(
        InputError, match="buffers: found a batch of m1 of size 5, m0 of size 3; expected m0 of size 3, "
    ):
        buffers.fill(turned)
    with pytest.raises(InputError, match=r"buffers: found a batch of \d+ \+ .* nodes, 60 samples; expected at most"):
        buffers.fill(random_batch(generator, SIZES, 60, 9, torch.float32))
    with pytest.raises(InputError, match="buffers: found labels; expected none, as in the first batch"):
        buffers.fill(batch, torch.zeros(6, 3))
    with pytest.raises(InputError, match="limits: found 0 buckets; expected at least 1"):
        GraphedStep(print, "cpu", limits=Limits(buckets=0))


def test_inference_over_buffers() -> None:
    """Samples are rounded up and cut off again; the logits are a copy."""
    model, generator = a_model(dropout=0.0)
    model.eval()
    infer = GraphedInference(model, "cpu", Reruns(), buffered=True)
    kept = []
    with use_backend("torch"), torch.no_grad():
        for batch, _ in batches(model, generator, 8, (9, 10), 2):
            found, expected = infer(batch), model(batch)
            assert found.shape == expected.shape and not found.requires_grad
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
            kept.append((found, found.clone()))
    assert all(torch.equal(a, b) for a, b in kept)
    assert infer.step.counts.replayed == 8 - WARM_UPS


def test_a_graph_that_cannot_be_is_refused() -> None:
    model, _ = a_model()
    with pytest.raises(InputError, match="freeze: asked for a graph, but the model lies on cpu; a graph needs a CUDA"):
        model.freeze(graph=True)
    assert model.freeze().graphs is None
    with use_backend("torch"):
        reason = why_not_captured(model.config, torch.device("cuda"), torch.float32)
    assert reason == "attention is run by torch; cuda and triton never wait for the device"
