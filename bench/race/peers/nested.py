"""Nested jagged tensors: packed linear layers, `scaled_dot_product_attention` on `torch.jagged` layouts."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.race.peers.base import Packed
from bench.race.peers.packed_sdpa import sample_major
from hhmpn_fast import Ragged


class Indices(NamedTuple):
    """order, back (N,): modality-major to sample-major and back; offsets of samples, labels and each modality."""

    order: Tensor
    back: Tensor
    samples: Tensor
    labels: Tensor
    modalities: list[Tensor]
    sizes: list[int]


def jagged(rows: Tensor, offsets: Tensor) -> Tensor:
    """(N, d) rows as B ragged one-head sequences, (B, 1, j, d)."""
    return torch.nested.nested_tensor_from_jagged(rows[:, None], offsets).transpose(1, 2)


class Nested(Packed):
    """Packed, attention on nested tensors."""

    name = "nested jagged"

    def indices(self, batch: Ragged) -> Indices:
        """Offsets a layout."""
        order = sample_major(batch).order
        zero = torch.zeros(1, dtype=torch.int64)
        samples, *modalities = [torch.cat([zero, row.cumsum(0)]) for row in (batch.lengths.sum(0), *batch.lengths)]
        labels = torch.arange(batch.batch_size + 1) * len(self.model.config.labels)
        return Indices(order, order.argsort(), samples, labels, modalities, batch.lengths.sum(1).tolist())

    def f2f(self, q: Tensor, k: Tensor, v: Tensor, extra: Indices) -> Tensor:
        """(N, M*d)."""
        parts = self.read(q.index_select(0, extra.order), extra.samples, k, v, extra)
        return torch.cat(parts, 1).index_select(0, extra.back)

    def f2l(self, q: Tensor, k: Tensor, v: Tensor, extra: Indices) -> Tensor:
        """(M, B, L, d)."""
        return torch.stack(self.read(q.flatten(0, 1), extra.labels, k, v, extra)).view(-1, *q.shape)

    def read(self, q: Tensor, offsets: Tensor, k: Tensor, v: Tensor, extra: Indices) -> list[Tensor]:
        """One (rows, d) a modality."""
        p = self.rate if self.training else 0.0
        out, queries = [], jagged(q, offsets)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The PyTorch API of nested tensors is in prototype stage")
            for k_m, v_m, ends in zip(k.split(extra.sizes), v.split(extra.sizes), extra.modalities):
                read = F.scaled_dot_product_attention(queries, jagged(k_m, ends), jagged(v_m, ends), dropout_p=p)
                out.append(read.transpose(1, 2).values()[:, 0])
        return out
