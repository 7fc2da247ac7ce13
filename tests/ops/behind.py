"""Rows behind the last offset: attention on any backend reads none of them and gives them 0 and -inf."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hhmpn_fast.ops.dropout import Dropout

LENGTHS = [5, 0, 17, 33, 2, 0]  # two groups of three segments


def table(lengths: list[int]) -> Tensor:
    """int32 offsets of segments."""
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def followed(t: Tensor, rows: int, value: float) -> Tensor:
    """The tensor with rows of `value` behind its own, along the axis before the last."""
    return torch.cat([t, t.new_full((*t.shape[:-2], rows, t.shape[-1]), value)], -2)


@contextlib.contextmanager
def nothing_by_luck() -> Iterator[None]:
    """Memory that nobody has written holds NaN."""
    torch.use_deterministic_algorithms(True)  # fills what torch.empty gives
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def run(attention: Callable, tensors: tuple[Tensor, ...], options: dict) -> list[Tensor]:
    """context, lse, d_q and d_x."""
    q, x, d_context, d_lse = tensors
    inputs = [t.clone().requires_grad_() for t in (q, x)]
    outputs = attention(*inputs, groups=2, **options)
    grads = torch.autograd.grad(outputs, inputs, [g.to(o.dtype) for g, o in zip((d_context, d_lse), outputs)])
    return [*(t.detach() for t in outputs), *grads]


def check_behind(attention: Callable, dtype: torch.dtype, dim: int, f2f: bool, value: float = float("nan")) -> None:
    """F2F or F2L with rows of `value` behind everything equals the call without them, bit for bit."""
    generator = torch.Generator().manual_seed(dim)
    x_offsets = table(LENGTHS)
    q_offsets = x_offsets if f2f else table([7, 7, 7])
    rows, nodes = int(q_offsets[-1]), int(x_offsets[-1])

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    tensors = draw(rows, dim) * dim**-0.5, draw(nodes, dim), draw(2, rows, dim), draw(2, rows)
    options = {"q_offsets": q_offsets, "x_offsets": x_offsets}
    options["dropout"] = Dropout(0.25, torch.tensor([2**50 + 3, 4]), 512)
    expected = run(attention, tensors, options)
    # More than a tile behind the nodes; behind label rows there is nothing in the model, but here there is.
    more_q, more_x = 41, 40
    q, x, d_context, d_lse = tensors
    longer = (
        followed(q, more_q, value),
        followed(x, more_x, value),
        followed(d_context, more_q, value),
        followed(d_lse[..., None], more_q, value)[..., 0],
    )
    with nothing_by_luck():
        context, lse, d_q, d_x = run(attention, longer, options)
    found = [context[:, :rows], lse[:, :rows], d_q[:rows], d_x[:nodes]]
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    assert (context[:, rows:] == 0).all() and (lse[:, rows:] == float("-inf")).all()
    assert (d_q[rows:] == 0).all() and (d_x[nodes:] == 0).all()
