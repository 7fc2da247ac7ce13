"""torch.compile takes the CPU ops whole, and new lengths do not compile again."""

import pytest
import torch

from hhmpn_fast.backends.cpu.library import load_error
from hhmpn_fast.ops.dropout import Dropout
from hhmpn_fast.weights import BlockWeights
from tests.ops.under import cpu

pytestmark = pytest.mark.skipif(load_error() is not None, reason=str(load_error()))
D = 16


def step(x, weight, bias, offsets, a, w, rng):
    v = cpu.embed([x[: x.shape[0]]], [weight], [bias])
    z = cpu.f2f(v, offsets, BlockWeights(a, *w), Dropout(0.2, rng, 0), 0)
    s, _ = cpu.attention(z @ a, z, offsets, offsets, 2)
    return cpu.update_features(z, s, BlockWeights(None, *w)).square().sum()


def batch(seed, lengths):
    g = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    return torch.randn(sum(lengths), 5, generator=g), offsets


def test_fullgraph_without_recompiles_on_new_lengths():
    g = torch.Generator().manual_seed(0)

    def random(*shape):
        return (torch.randn(*shape, generator=g) / D**0.5).requires_grad_()

    weight, bias, a = random(D, 5), random(D), random(D, D)
    w = [random(D, D), random(2, D, D), random(D), random(D, D), random(D)]
    rng = torch.tensor([1, 2])
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    leaves = [weight, bias, a, *w]
    for i, lengths in enumerate(([3, 5, 2, 7], [9, 4, 6, 8], [1, 2, 3, 40], [0, 11, 30, 1])):
        x, offsets = batch(i, lengths)
        torch._dynamo.mark_dynamic(x, 0)
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            got = torch.autograd.grad(compiled(x, weight, bias, offsets, a, w, rng), leaves)
        want = torch.autograd.grad(step(x, weight, bias, offsets, a, w, rng), leaves)
        torch.testing.assert_close(got, want)
