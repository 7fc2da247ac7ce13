"""embed and absorb on the CPU: csrc/cpu/ops/embed and absorb."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from hhmpn_fast.backends.record import Body
from hhmpn_fast.ops.embed import ABSORB, EMBED


def biases_of(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """The biases, zeros where there is none."""
    return [w.new_zeros(w.shape[0]) if b is None else b for w, b in zip(weights, biases)]


def _nodes(i: SimpleNamespace) -> dict[str, Tensor]:
    return {"v": i.xs[0].new_empty(sum(x.shape[0] for x in i.xs), i.weights[0].shape[0])}


def _product(i: SimpleNamespace) -> dict[str, Tensor]:
    return {"product": i.left.new_empty(*i.left.shape[:-1], i.right.shape[-1])}


def _like(t: Tensor) -> Tensor:
    """What `like` of csrc/cpu/ops/absorb gives: t's own order of memory where that is one of two simple ones."""
    if not t.is_contiguous():
        for i, j in [(-1, -2), *([(0, 1)] if t.dim() == 3 else [])]:
            if t.transpose(i, j).is_contiguous():
                return t.new_empty(t.transpose(i, j).shape).transpose(i, j)
    return t.new_empty(t.shape)


EMBED.define("cpu", _nodes)
ABSORB.define("cpu", _product, like=_like)


def embed(weights: Sequence[Tensor], biases: Sequence[Tensor | None], **rest: Any) -> Tensor:
    """The op with zeros for a bias that is None."""
    return EMBED("cpu", weights=weights, biases=biases_of(weights, biases), **rest)


BODIES = {"absorb": Body(ABSORB.on("cpu")), "embed": Body(embed)}
