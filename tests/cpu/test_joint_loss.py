"""The joint loss of the cpu backend, from the features on in chunks of samples, against the composed call."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hhmpn_fast.backends.cpu.joint_loss  # noqa: F401 - its module shares the name of its function
from hhmpn_fast import Ragged
from hhmpn_fast.backends import use_backend
from hhmpn_fast.backends.cpu.library import load_error
from hhmpn_fast.model import HHMPN
from hhmpn_fast.ops import JointLoss
from hhmpn_fast.ops.joint_loss import JOINT_LOSS, WEIGHTS
from hhmpn_fast.ops.op import names, tensors
from tests.model.cases import random_batch, random_model
from tests.ops.bounds import bounds, check_all
from tests.ops.registration import check

pytestmark = pytest.mark.skipif(load_error() is not None, reason=str(load_error()))
SIZES = {"a": 5, "b": 3, "c": 7}
LABELS = tuple(f"l{i}" for i in range(6))
CONFIGS = [
    {},
    {"sharing": "tied"},
    {"without": ("f2f",)},
    {"without": ("f2l",)},
    {"without": ("l2l",)},
    {"without": ("m2l",)},
    {"f2f_layers": 2},
    {"label_graph": "prior"},
    {"intermediate": "none"},
    {"intermediate_weight": 0.3, "output_weight": "tied"},
    {"embed_bias": False},
    {"dropout": 0.3},
    {"dropout": 0.3, "f2f_layers": 2, "sharing": "tied"},
]
module = sys.modules["hhmpn_fast.backends.cpu.joint_loss"]
ONE_SAMPLE, FEW, CHUNK_BYTES = 1, 60_000, module.CHUNK_BYTES


def problem(
    seed: int, batch: int = 7, longest: int = 20, dtype: torch.dtype = torch.float64, **changes: object
) -> tuple[HHMPN, Ragged, torch.Tensor]:
    """A random model in training, a batch and its targets."""
    settings = {"modalities": SIZES, "labels": LABELS, "steps": 3, "dim": 20, "dropout": 0.0, **changes}
    model, generator = random_model(seed, dtype, **settings)
    features = random_batch(generator, model.config.modalities, batch, longest, dtype)
    targets = torch.rand(batch, len(model.config.labels), generator=generator, dtype=dtype)
    return model.train(), features, targets


def step(
    model: HHMPN,
    features: Ragged,
    targets: torch.Tensor,
    backend: str,
    whole: bool,
    weights: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Loss, logits and the gradients of every parameter, from joint_loss or from the two calls it stands for."""
    model.seed_dropout(3)
    model.zero_grad()
    with use_backend(backend):
        if whole:
            loss, logits = model.joint_loss(features, targets, weights)
        else:
            logits = model(features)
            loss = model.loss(logits, targets, weights)
    loss.backward()
    return [loss.detach(), logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def assert_equal(found: list[torch.Tensor], want: list[torch.Tensor], bound: float = 1e-10) -> None:
    largest = max(float(g.abs().max()) for g in want[2:])
    assert len(found) == len(want)
    for i, (f, w) in enumerate(zip(found, want)):
        assert f.shape == w.shape and torch.isfinite(f).all(), i
        if w.numel():
            scale = max(float(w.abs().max()), 1e-3 * largest)
            assert float((f - w).abs().max()) <= bound * scale, (i, float((f - w).abs().max()) / scale)


def chunks(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """What a chunk may keep, in bytes: 1 makes every sample its own."""
    monkeypatch.setattr(module, "CHUNK_BYTES", size)


@pytest.mark.parametrize("size", [ONE_SAMPLE, FEW, CHUNK_BYTES])
@pytest.mark.parametrize("changes", CONFIGS, ids=str)
def test_equals_the_two_calls_in_float64(changes: dict, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks(monkeypatch, size)
    for seed in range(2):
        model, features, targets = problem(seed, **changes)
        weights = torch.linspace(0.5, 2.0, 6, dtype=torch.float64) if seed else None
        found = step(model, features, targets, "cpu", True, weights)
        assert_equal(found, step(model, features, targets, "torch", False, weights))


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.4, "f2f_layers": 2}], ids=str)
def test_equals_the_reference(changes: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks(monkeypatch, FEW)
    model, features, targets = problem(5, batch=4, longest=9, **changes)
    assert_equal(step(model, features, targets, "cpu", True), step(model, features, targets, "reference", False))


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 33])
@pytest.mark.parametrize("size", [ONE_SAMPLE, FEW])
def test_every_batch_size(batch: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks(monkeypatch, size)
    model, features, targets = problem(11 + batch, batch=batch, dim=33)
    found = step(model, features, targets, "cpu", True)
    if batch:
        assert_equal(found, step(model, features, targets, "torch", False))
    else:
        assert all(float(t.abs().sum()) == 0 for t in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_errors_are_roundings(dtype: torch.dtype, dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks(monkeypatch, 200_000)
    check_roundings(dtype, dropout, 60)


def check_roundings(dtype: torch.dtype, dropout: float, seed: int) -> None:
    model, features, targets = problem(seed, 6, 30, torch.float32, dim=64, dropout=dropout, labels=LABELS)
    model, features, targets = model.to(dtype), features.to(dtype), targets.to(dtype)
    found = step(model, features, targets, "cpu", True)
    wide = copy.deepcopy(model).double(), features.to(torch.float64), targets.double()
    allowed = bounds(lambda: step(*wide, "torch", False), dtype)
    names = [n for n, p in model.named_parameters() if p.grad is not None]
    check_all(["loss", "logits", *names], found, allowed)


def test_autocast_equals_the_two_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks(monkeypatch, 100_000)
    model, features, targets = problem(21, batch=9, dtype=torch.float32, dim=32, dropout=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        found = step(model, features, targets, "cpu", True)
    model.seed_dropout(3)
    model.zero_grad()
    with use_backend("cpu"), torch.autocast("cpu", torch.bfloat16):
        logits = model(features)
    loss = model.loss(logits.float(), targets)
    loss.backward()
    assert found[1].dtype == torch.bfloat16 and torch.equal(found[1], logits.detach())
    torch.testing.assert_close(found[0], loss.detach())
    assert_equal([*found[:1], *found[2:]], [loss.detach(), *(p.grad for p in model.parameters())], 2e-2)


@pytest.mark.parametrize("size", [FEW, CHUNK_BYTES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_any_number_of_threads(dtype: torch.dtype, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks(monkeypatch, size)
    model, features, targets = problem(31, batch=20, dtype=torch.float32, dim=48, dropout=0.1)
    model, features, before = model.to(dtype), features.to(dtype), torch.get_num_threads()
    try:
        runs = []
        for threads in (2, 1, 3, 2):
            torch.set_num_threads(threads)
            runs.append(step(model, features, targets.to(dtype), "cpu", True))
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other))


def test_logits_are_those_of_the_model_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks(monkeypatch, FEW)
    model, features, targets = problem(41, batch=16, dtype=torch.float32, dim=32)
    with use_backend("cpu"):
        loss, logits = model.joint_loss(features, targets)
        assert not logits.requires_grad
        with torch.no_grad():
            again, other = model.joint_loss(features, targets)
            assert torch.equal(logits, model.eval()(features))
    assert torch.equal(loss.detach(), again) and torch.equal(logits, other) and not again.requires_grad


def test_upstream_gradient_scales() -> None:
    model, features, targets = problem(51)
    want = step(model, features, targets, "cpu", True)[2:]
    model.zero_grad()
    with use_backend("cpu"):
        (3 * model.joint_loss(features, targets)[0]).backward()
    for w, p in zip(want, (p for p in model.parameters() if p.grad is not None)):
        torch.testing.assert_close(p.grad, 3 * w)


def test_second_derivative_raises() -> None:
    model, features, targets = problem(52)
    with use_backend("cpu"):
        loss, _ = model.joint_loss(features, targets)
    (first,) = torch.autograd.grad(loss, [model.readout.wl], create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        first.sum().backward()


def test_features_that_require_a_gradient_get_one() -> None:
    model, features, targets = problem(53)
    for v in features.values:
        v.requires_grad_()
    with use_backend("cpu"):
        model.joint_loss(features, targets)[0].backward()
    assert all(float(v.grad.abs().max()) > 0 for v in features.values)
    with pytest.raises(ValueError, match="joint_loss: xs requires a gradient; expected one that needs none"):
        JOINT_LOSS("cpu", **inputs(model, features, targets))


def inputs(model: HHMPN, features: Ragged, targets: torch.Tensor, chunk: int = FEW) -> dict:
    """Those of the op, its weights as leaves."""
    found: dict[str, object] = {}
    asked = JointLoss(model.config.steps, 0.5, mask=model.l2l_mask)
    with pytest.MonkeyPatch.context() as patch:
        op = lambda backend, **given: (found.update(given) or targets, targets)  # noqa: E731
        patch.setattr(module, "JOINT_LOSS", op)
        data = (features.values, features.offsets, features.present, targets, model.weights(), asked)
        module.joint_loss(*data, model._next_dropout(), chunk)
    leaf = lambda t: t.detach().clone().requires_grad_() if isinstance(t, torch.Tensor) else t  # noqa: E731
    weights = {name: torch.utils._pytree.tree_map(leaf, found[name]) for name in names(WEIGHTS.split(", "))}
    return {**found, **weights}


@pytest.mark.parametrize("changes", [{}, {"without": ("l2l", "m2l")}, {"dropout": 0.2}], ids=str)
def test_opcheck(changes: dict) -> None:
    model, features, targets = problem(61, batch=3, longest=4, dim=6, **changes)
    check(JOINT_LOSS, **inputs(model, features, targets, ONE_SAMPLE))


def test_fullgraph_without_recompiles_on_new_lengths() -> None:
    model, *_ = problem(71, dtype=torch.float32, dim=16)
    loss = lambda given: JOINT_LOSS("cpu", **given)[0] * 2  # noqa: E731
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for seed in range(4):
        _, features, targets = problem(80 + seed, batch=4, dtype=torch.float32, dim=16, longest=12 + seed)
        given = inputs(model, features, targets)
        leaves = tensors([given[name] for name in names(WEIGHTS.split(", "))])
        with torch._dynamo.config.patch(error_on_recompile=seed > 1):
            got = torch.autograd.grad(compiled(given), leaves)
        torch.testing.assert_close(got, torch.autograd.grad(loss(given), leaves))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("offsets", torch.zeros(3, dtype=torch.int32), "offsets"),
        ("targets", torch.zeros(2, 6, dtype=torch.float64), r"targets \[2, 6\]; expected \(T, B, L\)"),
        ("label_weights", torch.zeros(5, dtype=torch.float64), "label_weights have shape"),
        ("embed_weights", [], "found 3 inputs, 0 weights and 3 biases of embeddings; expected one each"),
        ("attention_sites", [], "found 1 F2F layers with 0 and 1 dropout sites; expected one each a layer"),
        ("f2f_b1", [], "f2f_b1 holds 0 layers; expected 1"),
    ],
)
def test_bad_input(name: str, value: object, message: str) -> None:
    model, features, targets = problem(91)
    with pytest.raises(ValueError, match=message):
        JOINT_LOSS("cpu", **{**inputs(model, features, targets), name: value})


def test_too_few_modalities_in_c_are_refused() -> None:
    model, features, targets = problem(93)
    given = inputs(model, features, targets)
    given["f2f_hidden"] = [t[:2] for t in given["f2f_hidden"]]
    with pytest.raises(ValueError, match="expected \\(M, d, d\\)"):
        JOINT_LOSS("cpu", **given)


def test_nodes_moved_between_modalities_are_refused() -> None:
    model, features, targets = problem(92)
    given = inputs(model, features, targets)
    given["xs"] = [given["xs"][0][1:], *given["xs"][1:]]
    with pytest.raises(ValueError, match="offsets"):
        JOINT_LOSS("cpu", **given)


PEAK = """
import sys, torch
from bench.race.cell import added_memory
from bench.race.contestants import Task
from bench.race.peers.base import Case
from bench.race.peers.ours import ours
from bench.core.workloads import named
w = named("mosei-aligned")
task = lambda b: Task(ours("cpu")(w.model(dim=128)), w.batch(b), w.targets(b), Case("train"))
class Cell: workload = "mosei-aligned"
print(added_memory(task(int(sys.argv[1])), Cell())["mib"])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the process's memory from /proc")
def test_memory_of_a_step_does_not_grow_with_the_batch() -> None:
    def added(batch: int) -> float:
        root = Path(__file__).resolve().parents[2]
        out = subprocess.run(
            [sys.executable, "-c", PEAK, str(batch)], cwd=root, capture_output=True, text=True, check=True
        )
        return float(out.stdout)

    # Four times the samples keep four times as much between forward and backward pass: 110 MiB more before chunks were.
    assert added(512) < added(128) + 16
