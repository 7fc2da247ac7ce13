"""Each op in plain PyTorch: float64 gradcheck, and its contract on the edges."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from hhmpn_fast import InputError, ops
from hhmpn_fast.backends import use_backend
from tests.ops.behind import check_behind


@pytest.fixture(autouse=True)
def plain() -> object:
    """These tests are about the torch backend; the kernels have their own."""
    with use_backend("torch"):
        yield


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def tensor(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


DROPOUT = ops.Dropout(0.4, torch.tensor([3, 1]), ops.site("f2f_attention", 0))


@pytest.mark.parametrize("dropout", [None, DROPOUT], ids=["", "dropout"])
@pytest.mark.parametrize(
    ("q_lengths", "x_lengths", "groups"),
    [
        ([2, 0, 3, 1], [3, 0, 1, 2], 2),  # F2F: two modalities, two samples
        ([3, 3], [4, 0, 1, 2, 0, 5], 3),  # F2L
        ([3, 3], [3, 3], 1),  # L2L, the batched path
        ([1], [0], 1),
        ([0, 0], [1, 2], 1),
    ],
)
def test_attention_gradients(q_lengths: list[int], x_lengths: list[int], groups: int, dropout: object) -> None:
    q, x = tensor(sum(q_lengths), 3), tensor(sum(x_lengths), 3, seed=1)
    q_offsets, x_offsets = offsets_of(q_lengths), offsets_of(x_lengths)

    def context(q: Tensor, x: Tensor) -> Tensor:
        return ops.attention(q, x, q_offsets, x_offsets, groups, dropout=dropout)[0]

    def lse(q: Tensor, x: Tensor) -> Tensor:
        return torch.nan_to_num(ops.attention(q, x, q_offsets, x_offsets, groups)[1], neginf=0.0)

    assert gradcheck(context, (q, x))
    assert gradcheck(lse, (q, x))


@pytest.mark.parametrize("f2f", [True, False], ids=["f2f", "f2l"])
def test_rows_behind_the_last_offset_are_inert(f2f: bool) -> None:
    check_behind(ops.attention, torch.float32, 8, f2f)


def test_attention_by_hand() -> None:
    q, x = tensor(4, 3), tensor(5, 3, seed=1)
    context, lse = ops.attention(q, x, offsets_of([1, 3]), offsets_of([2, 0, 0, 3]), 2)
    first = torch.softmax(q[0] @ x[:2].T, 0) @ x[:2]
    assert torch.allclose(context[0, 0], first)
    assert torch.equal(context[1, 0], torch.zeros(3, dtype=torch.float64))
    assert lse[1, 0] == float("-inf")
    assert torch.allclose(context[1, 1:], torch.softmax(q[1:] @ x[2:].T, 1) @ x[2:])
    assert torch.allclose(lse[1, 1:], torch.logsumexp(q[1:] @ x[2:].T, 1))


@pytest.mark.parametrize("equal_lengths", [True, False])
def test_attention_mask_and_self(equal_lengths: bool) -> None:
    q, x = tensor(6, 3), tensor(6, 3, seed=1)
    lengths = [3, 3] if equal_lengths else [3, 2, 1]
    table = offsets_of(lengths)
    found, _ = ops.attention(q, x, table, table, 1, exclude_self=True)
    for begin, end in zip(table[:-1], table[1:]):
        scores = (q[begin:end] @ x[begin:end].T).masked_fill(torch.eye(int(end - begin), dtype=torch.bool), -torch.inf)
        expected = torch.nan_to_num(torch.softmax(scores, 1)) @ x[begin:end]
        assert torch.allclose(found[0, begin:end], expected)
    if equal_lengths:
        masked, _ = ops.attention(q, x, table, table, 1, mask=~torch.eye(3, dtype=torch.bool))
        assert torch.allclose(found, masked)


def test_attention_shift_and_order() -> None:
    q, x = tensor(4, 3), tensor(7, 3, seed=1)
    table, order = offsets_of([7]), torch.randperm(7)
    one, _ = ops.attention(q, x, offsets_of([4]), table)
    other, _ = ops.attention(q, x[order], offsets_of([4]), table)
    assert torch.allclose(one, other)


@pytest.mark.parametrize("residual", ["sum", "node", "proj"])
def test_update_features_gradients(residual: str) -> None:
    v, s, proj = tensor(3, 4), tensor(2, 3, 4, seed=1), tensor(4, 8)
    weights = [tensor(4, 4), tensor(2, 5, 4), tensor(5), tensor(4, 5), tensor(4)]

    def run(v: Tensor, s: Tensor, proj: Tensor, *w: Tensor) -> Tensor:
        options = ops.UpdateOptions(residual=residual, proj=proj if residual == "proj" else None)
        return ops.update_features(v, s, ops.BlockWeights(None, *w), DROPOUT, options)

    assert gradcheck(run, (v, s, proj, *weights))


@pytest.mark.parametrize("stacked", [False, True])
def test_update_labels_gradients(stacked: bool) -> None:
    u, s = tensor(3, 4), tensor(2, 3, 4, seed=1)
    lead = (2,) if stacked else ()
    weights = [tensor(*lead, *shape) for shape in ((4, 4), (5, 4), (5,), (4, 5), (4,))]
    norms = [tensor(*lead, 4, seed=i) for i in range(4)]

    def run(u: Tensor, s: Tensor, *w: Tensor) -> Tensor:
        options = ops.UpdateOptions(ops.Norms(*w[5:]), message_dropout=DROPOUT)
        return ops.update_labels(u, s, ops.BlockWeights(None, *w[:5]), DROPOUT, options)

    assert gradcheck(run, (u, s, *weights, *norms))


def test_readout_and_loss_gradients() -> None:
    u, wl, wo = tensor(3, 2, 4, 5), tensor(5), tensor(4, 5)
    present = torch.tensor([[True, False], [True, True], [False, True]])
    targets = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)

    def run(u: Tensor, wl: Tensor, wo: Tensor) -> Tensor:
        fused, logits, _ = ops.readout(u, present, wl, wo)
        return ops.joint_bce(torch.stack([logits, 2 * logits]), targets, 0.3) + fused.sum()

    assert gradcheck(run, (u, wl, wo))
    assert gradcheck(lambda u, wo: ops.readout(u, present, None, wo)[1], (u, wo))


def test_readout_ignores_what_an_absent_modality_holds() -> None:
    u, wl, wo = tensor(2, 1, 3, 4).detach(), tensor(4), tensor(3, 4)
    u[1] = float("nan")
    fused, _, alpha = ops.readout(u, torch.tensor([[True], [False]]), wl, wo)
    assert torch.equal(fused[0], u[0, 0])
    assert torch.equal(alpha[1], torch.zeros(1, 3, dtype=torch.float64))


def test_joint_loss_by_hand() -> None:
    logits, y = torch.zeros(2, 1, 3, dtype=torch.float64), torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64)
    assert float(ops.joint_bce(logits, y, 0.5)) == pytest.approx(1.5 * torch.log(torch.tensor(2.0)).item())


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_embed_and_absorb_gradients(heads: int) -> None:
    xs, ws, bs = [tensor(2, 3), tensor(0, 4)], [tensor(6, 3), tensor(6, 4)], [tensor(6), tensor(6, seed=1)]
    assert gradcheck(lambda *t: ops.embed(t[:2], t[2:4], t[4:]), (*xs, *ws, *bs))
    w1, w2 = tensor(2, 6, 6), tensor(2, 6, 6, seed=1)
    assert gradcheck(lambda a, b: ops.query_matrix(a, b, heads, ops.absorb), (w1, w2))
    v, x = tensor(4, 6), tensor(5, 6, seed=2)
    q = (v @ ops.query_matrix(w1[0], w2[0], heads, ops.absorb)).view(4, heads, 6)
    left, right = (v @ w1[0].T).view(4, heads, -1), (x @ w2[0].T).view(5, heads, -1)
    expected = torch.einsum("ihd,jhd->ihj", left, right) / (6 / heads) ** 0.5
    assert torch.allclose(torch.einsum("ihd,jd->ihj", q, x), expected)
    contexts = tensor(4, heads, 6)
    wide = ops.value_matrix(w1[0], heads)
    parts = w1[0].view(heads, -1, 6)
    expected = torch.cat([contexts[:, h] @ parts[h].T for h in range(heads)], 1)
    assert torch.allclose(contexts.flatten(1) @ wide.T, expected)


@pytest.mark.parametrize(
    ("q", "x", "queries", "keys", "groups", "message"),
    [
        ((2, 3), (2, 4), [2], [2], 1, r"q is \(2, 3\) and x is \(2, 4\)"),
        ((2, 3), (2, 3), [2], [1, 1], 3, "1 query segments, 2 key segments and 3 groups"),
        ((2, 3), (3, 3), [2], [1, 1, 1], 1, "1 query segments, 3 key segments and 1 groups"),
    ],
)
def test_attention_refuses_what_does_not_fit(
    q: tuple, x: tuple, queries: list[int], keys: list[int], groups: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ops.attention(torch.zeros(q), torch.zeros(x), offsets_of(queries), offsets_of(keys), groups)
