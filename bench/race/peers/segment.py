"""Segment softmax over explicit edges, as graph libraries do it: gather both ends of every edge, reduce by target.

Memory grows with pairs times d, so that batches of long sequences do not fit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bench.race.peers.base import Case, Packed
from hhmpn_fast import Ragged


class Edges(NamedTuple):
    """query, node, target (E,): which query row reads which node into which of `rows` outputs."""

    query: Tensor
    node: Tensor
    target: Tensor
    rows: int


class Indices(NamedTuple):
    """The edges of F2F and of F2L."""

    f2f: Edges
    f2l: Edges


def pairs(batch: Ragged) -> int:
    """Edges of F2F."""
    return int((batch.lengths.sum(0) ** 2).sum())


class Segment(Packed):
    """Packed, softmax by segment."""

    name = "segment softmax"

    @classmethod
    def why_not(cls, case: Case, batch: Ragged) -> str | None:
        """Four tensors of (edges, d) live in a forward pass, eight in a step."""
        need = pairs(batch) * 256 * 4 * (8 if case.mode == "train" else 4)
        if need > case.memory:
            return f"its edges would take about {need / 2**30:.0f} GiB"
        return None

    def indices(self, batch: Ragged) -> Indices:
        """Edges, a sample after the other."""
        modalities, size = batch.lengths.shape
        labels, nodes = len(self.model.config.labels), int(batch.lengths.sum())
        starts, ends = batch.offsets[:-1].tolist(), batch.offsets[1:].tolist()
        f2f, f2l = [], []
        for b in range(size):
            for m in range(modalities):
                keys = torch.arange(starts[m * size + b], ends[m * size + b])
                rows = torch.cat([torch.arange(starts[k * size + b], ends[k * size + b]) for k in range(modalities)])
                f2f.append(_product(rows, keys, rows * modalities + m))
                rows = torch.arange(b * labels, (b + 1) * labels)
                f2l.append(_product(rows, keys, m * size * labels + rows))
        return Indices(_edges(f2f, nodes * modalities), _edges(f2l, modalities * size * labels))

    def f2f(self, q: Tensor, k: Tensor, v: Tensor, extra: Indices) -> Tensor:
        """(N, M*d)."""
        return self.read(q, k, v, extra.f2f).view(q.shape[0], -1)

    def f2l(self, q: Tensor, k: Tensor, v: Tensor, extra: Indices) -> Tensor:
        """(M, B, L, d)."""
        return self.read(q.flatten(0, 1), k, v, extra.f2l).view(-1, *q.shape)

    def read(self, q: Tensor, k: Tensor, v: Tensor, edges: Edges) -> Tensor:
        """Messages (rows, d)."""
        scores = (q.index_select(0, edges.query) * k.index_select(0, edges.node)).sum(-1) * q.shape[-1] ** -0.5
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        largest = scores.new_full((edges.rows,), float("-inf")).scatter_reduce(0, edges.target, scores.detach(), "amax")
        weights = torch.exp(scores - largest.index_select(0, edges.target))
        total = weights.new_zeros(edges.rows).index_add(0, edges.target, weights)
        weights = self.drop(weights / total.index_select(0, edges.target)).to(v.dtype)
        messages = weights[:, None] * v.index_select(0, edges.node)
        return messages.new_zeros(edges.rows, v.shape[1]).index_add(0, edges.target, messages)


def _product(rows: Tensor, keys: Tensor, targets: Tensor) -> Tensor:
    """All pairs of rows and keys: (3, rows * keys)."""
    count = keys.numel()
    return torch.stack([rows.repeat_interleave(count), keys.repeat(rows.numel()), targets.repeat_interleave(count)])


def _edges(parts: list[Tensor], rows: int) -> Edges:
    return Edges(*torch.cat(parts, 1), rows)
