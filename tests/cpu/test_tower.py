"""The label tower of the cpu backend against the plain composition in float64: values, gradients, dtypes, edges."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hhmpn_fast.backends.cpu.library import ISAS, load_error
from hhmpn_fast.ops.tower import TOWER
from tests.cpu.tower_cases import ABLATIONS, TowerCase, plain_tower, tower_case
from tests.ops.bounds import bounds, check_all
from tests.ops.registration import check

pytestmark = pytest.mark.skipif(load_error() is not None, reason=str(load_error()))


def run(case: TowerCase, tower) -> list[torch.Tensor]:
    """Logits and the gradients of every floating input, by name."""
    leaves = case.leaves()
    logits = tower(*case.arguments())
    grads = torch.autograd.grad(logits, leaves, case.upstream.to(logits.dtype), allow_unused=True)
    return [logits.detach(), *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads))]


def cpu_tower(*arguments):
    from hhmpn_fast.backends.cpu.tower import tower

    return tower(*arguments)


def assert_close(case: TowerCase, bound: float = 1e-10) -> None:
    expected, found = run(case, plain_tower), run(case, cpu_tower)
    largest = max([float(g.abs().max()) for g in expected[1:] if g.numel()] + [1e-12])
    for name, e, f in zip(["logits", *case.names()], expected, found):
        assert e.shape == f.shape, name
        assert torch.isfinite(e).all() and torch.isfinite(f).all(), name
        if e.numel():
            scale = max(float(e.abs().max()), 1e-3 * largest)
            assert float((e - f).abs().max()) <= bound * scale, (name, float((e - f).abs().max()) / scale)


@pytest.mark.parametrize("changes", ABLATIONS, ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_equals_the_plain_composition_in_float64(changes: dict, seed: int) -> None:
    assert_close(tower_case(100 * seed + len(str(changes)), **changes))


@pytest.mark.parametrize("labels", [1, 2, 5, 6, 7, 12, 13, 17])
@pytest.mark.parametrize("dim", [1, 7, 16, 33, 64])
def test_every_tile_edge(labels: int, dim: int) -> None:
    assert_close(tower_case(labels * 100 + dim, labels=labels, dim=dim, batch=5, longest=35))


@pytest.mark.parametrize("batch", [0, 1, 2, 3])
@pytest.mark.parametrize("modalities", [1, 2])
@pytest.mark.parametrize("steps", [1, 4])
def test_small_batches(batch: int, modalities: int, steps: int) -> None:
    assert_close(tower_case(7 + batch, batch=batch, modalities=modalities, steps=steps))
    assert_close(
        tower_case(8 + batch, batch=batch, modalities=modalities, steps=steps, tied=True, mask=True, dropout=0.3)
    )


def test_lengths_at_the_tile_edges_and_absent_pairs_with_nodes() -> None:
    lengths = torch.tensor([[0, 1, 7, 8, 9, 15, 16], [17, 31, 32, 33, 0, 63, 65]])
    case = tower_case(3, lengths=lengths, labels=6, dim=32)
    assert_close(case)
    case.present[1, 1] = False
    case.present[0, 3] = False
    assert_close(case)
    case.present[:, 5] = False  # nothing present: logits 0
    assert float(cpu_tower(*case.arguments())[:, 5].detach().abs().max()) == 0.0


@pytest.mark.parametrize(
    "changes", [{}, {"uniform": True}, {"l2l": False}, {"scorer": False, "tied": True, "mask": True}], ids=str
)
def test_dropout_draws_the_mask_of_the_torch_backend(changes: dict) -> None:
    # A bit that differs moves a state by a whole scaled output: equality to 1e-10 is equality of every mask bit.
    assert_close(tower_case(11, dropout=0.4, batch=4, longest=40, dim=40, **changes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "changes", [{}, {"tied": True, "mask": True}, {"uniform": True, "l2l": False}, {"dropout": 0.2}], ids=str
)
def test_errors_are_roundings(dtype: torch.dtype, changes: dict) -> None:
    check_roundings(dtype, changes, 40)


def check_roundings(dtype: torch.dtype, changes: dict, seed: int) -> None:
    case = tower_case(seed, labels=6, dim=64, batch=8, modalities=3, longest=30, steps=3, **changes).to(dtype)
    allowed = bounds(lambda: run(case.to(torch.float64), plain_tower), dtype)
    check_all(["logits", *case.names()], run(case, cpu_tower), allowed)


@pytest.mark.parametrize(
    "changes", [{}, {"tied": True, "mask": True}, {"uniform": True, "l2l": False, "scorer": False}], ids=str
)
def test_gradcheck(changes: dict) -> None:
    case = tower_case(5, batch=2, labels=2, dim=3, longest=3, steps=2, modalities=2, **changes)
    leaves = case.leaves()

    def f(*tensors: torch.Tensor) -> torch.Tensor:
        return cpu_tower(*case.with_leaves(tensors).arguments())

    torch.autograd.gradcheck(f, leaves)


@pytest.mark.parametrize(
    "changes", [{}, {"uniform": True, "l2l": False, "scorer": False}, {"dropout": 0.25, "mask": True}], ids=str
)
def test_opcheck(changes: dict) -> None:
    # Every pair has nodes: the saved rows of an absent one are never written, and opcheck would compare them.
    case = tower_case(6, labels=3, dim=5, lengths=torch.tensor([[1, 4, 2], [3, 1, 2]]), steps=2, **changes)
    case.leaves()
    check(TOWER, **case.op_inputs())


def test_second_derivative_raises() -> None:
    case = tower_case(9, batch=2)
    leaves = case.leaves()
    logits = cpu_tower(*case.arguments())
    (first,) = torch.autograd.grad(logits.square().sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        first.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_any_number_of_threads_and_in_every_run(dtype: torch.dtype) -> None:
    case = tower_case(12, batch=40, labels=6, dim=48, longest=30, steps=3, dropout=0.1).to(dtype)
    threads = torch.get_num_threads()
    try:
        outcomes = []
        for count in (2, 1, 3, 2, 2):
            torch.set_num_threads(count)
            outcomes.append(run(case, cpu_tower))
    finally:
        torch.set_num_threads(threads)
    for other in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcomes[0], other))


def test_inference_and_training_forward_agree_to_the_bit() -> None:
    for dtype in (torch.float64, torch.float32):
        case = tower_case(13, batch=9, labels=7, dim=40).to(dtype)
        case.leaves()
        trained = cpu_tower(*case.arguments())
        with torch.no_grad():
            assert torch.equal(trained, cpu_tower(*case.arguments()))


def test_a_sample_does_not_depend_on_its_batch() -> None:
    case = tower_case(14, batch=8, labels=6, dim=48).to(torch.float32)
    with torch.no_grad():
        whole = cpu_tower(*case.arguments())
        for b in range(8):
            assert torch.equal(whole[:, b : b + 1], cpu_tower(*case.sample(b).arguments()))


def test_a_nan_stays_in_its_sample() -> None:
    case = tower_case(15, batch=6, labels=6, dim=48, modalities=2).to(torch.float32)
    with torch.no_grad():
        clean = cpu_tower(*case.arguments())
        sample = int(case.lengths[0].argmax())
        case.z[int(case.offsets[sample])] = float("nan")
        found = cpu_tower(*case.arguments())
    others = [b for b in range(6) if b != sample]
    assert found[:, sample].isnan().all()
    assert torch.equal(found[:, others], clean[:, others])


def test_strided_inputs_and_autocast() -> None:
    case = tower_case(16, batch=3, dim=24).to(torch.float32)
    want = cpu_tower(*case.arguments())
    case.z = torch.stack([case.z, case.z], -1)[..., 1]
    case.wl = torch.stack([case.wl, case.wl], -1)[..., 0]
    assert not case.z.is_contiguous()
    assert torch.equal(cpu_tower(*case.arguments()), want)
    with torch.autocast("cpu", torch.bfloat16):
        low = cpu_tower(*case.arguments())
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, cpu_tower(*case.to(torch.bfloat16).arguments()))


def test_nodes_without_gradient_get_none() -> None:
    case = tower_case(17, batch=3)
    leaves = case.leaves()
    case.z = case.z.detach()
    grads = torch.autograd.grad(cpu_tower(*case.arguments()).sum(), leaves[1:])
    assert all(torch.isfinite(g).all() for g in grads)


def test_compile_has_one_graph_for_all_lengths() -> None:
    torch._dynamo.reset()
    cases = [
        tower_case(20 + i, batch=3 + i, labels=3, dim=16, modalities=2, steps=2, longest=9).to(torch.float32)
        for i in range(4)
    ]

    def f(inputs):
        return TOWER("cpu", **inputs)

    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
        for case in cases:
            inputs = case.op_inputs()
            assert torch.equal(compiled(inputs), f(inputs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c, "offsets", c.offsets.long()), "offsets is"),
        (lambda c: setattr(c, "present", c.present[:, 1:]), "present is"),
        (lambda c: setattr(c, "wo", c.wo[1:]), "wo is"),
        (lambda c: setattr(c, "label_embedding", c.label_embedding.float()), "the label embedding is"),
        (lambda c: setattr(c, "steps", c.steps + 1), "sets of weights"),
        (lambda c: setattr(c, "mask", torch.ones(1, 1)), "mask is"),
    ],
)
def test_what_does_not_fit_is_named(change, message: str) -> None:
    case = tower_case(18, batch=3, labels=4, steps=2)
    change(case)
    with pytest.raises(ValueError, match=f"tower: .*{message}|tower: {message}"):
        cpu_tower(*case.arguments())


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_every_isa_passes_the_suite(isa: str) -> None:
    here = Path(__file__)
    code = "import hhmpn_fast.backends.cpu.library as c; e = c.load_error(); print(e or ''); exit(3 if e else 0)"
    environment = {**os.environ, "HHMPN_CPU_ISA": isa}
    probe = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if probe.returncode == 3:
        pytest.skip(probe.stdout)
    suite = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", str(here)]
    done = subprocess.run(suite, env=environment, capture_output=True, text=True, cwd=here.parent.parent.parent)
    assert done.returncode == 0, done.stdout[-3000:]
