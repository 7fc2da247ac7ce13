"""Packed linear layers, and flash-attention on packed rows, one call a modality.

`PackedVarlen` takes `torch.nn.attention.varlen` (in PyTorch since 2.10), `PackedFlash` the flash-attn package where it
is installed; both take the same first seven arguments. They run on CUDA GPUs, in bf16, and are called without dropout.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bench.race.peers.base import Case, Packed
from bench.race.peers.packed_sdpa import sample_major
from hhmpn_fast import Ragged

Attention = Callable[..., Tensor]


class Segments(NamedTuple):
    """offsets int32 (B+1,) of B segments, and the longest of them."""

    offsets: Tensor
    longest: int


class Indices(NamedTuple):
    """order, back (N,): modality-major to sample-major and back; whose rows lie where; each modality's rows."""

    order: Tensor
    back: Tensor
    samples: Segments
    labels: Segments
    modalities: list[Segments]
    sizes: list[int]
    present: Tensor  # bool (M, B, 1, 1)
    reads: Tensor  # bool (N, M): whether a node's sample has that modality


def segments(lengths: Tensor) -> Segments:
    """Segments of lengths (B,)."""
    return Segments(torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int(), int(lengths.max()))


class PackedVarlen(Packed):
    """Packed, `torch.nn.attention.varlen`."""

    name = "packed, varlen_attn"
    module = "torch.nn.attention.varlen"
    scale = "scale"  # the argument that multiplies the scores

    @classmethod
    def why_not(cls, case: Case, batch: Ragged) -> str | None:
        """Where flash-attention does not run."""
        if importlib.util.find_spec(cls.module.split(".")[0]) is None or importlib.util.find_spec(cls.module) is None:
            return f"{cls.module} is not installed"
        if case.dtype != "bf16":
            return "flash-attention takes bf16 and fp16"
        return None if torch.device(case.device).type == "cuda" else "flash-attention runs on CUDA GPUs"

    @classmethod
    def function(cls) -> Attention:
        """function(q, k, v, q_offsets, k_offsets, longest_q, longest_k), all (rows, heads, d)."""
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn

    def indices(self, batch: Ragged) -> Indices:
        """Sample-major order, offsets of samples, labels and modalities."""
        order, _, _ = sample_major(batch)
        labels = torch.full((batch.batch_size,), len(self.model.config.labels))
        nodes = batch.lengths.sum(0)
        return Indices(
            order,
            order.argsort(),
            segments(nodes),
            segments(labels),
            [segments(row) for row in batch.lengths],
            batch.lengths.sum(1).tolist(),
            batch.present[..., None, None],
            batch.present.T.repeat_interleave(nodes, 0),
        )

    def f2f(self, q: Tensor, k: Tensor, v: Tensor, extra: Indices) -> Tensor:
        """(N, M*d)."""
        read = torch.stack(self.read(q.index_select(0, extra.order), extra.samples, k, v, extra), 1)
        return torch.where(extra.reads[..., None], read, 0.0).flatten(1).index_select(0, extra.back)

    def f2l(self, q: Tensor, k: Tensor, v: Tensor, extra: Indices) -> Tensor:
        """(M, B, L, d)."""
        read = torch.stack(self.read(q.flatten(0, 1), extra.labels, k, v, extra))
        return torch.where(extra.present, read.view(-1, *q.shape), 0.0)

    def read(self, q: Tensor, rows: Segments, k: Tensor, v: Tensor, extra: Indices) -> list[Tensor]:
        """Messages (rows, d) from each modality."""
        attention, out = self.function(), []
        for k_m, v_m, keys in zip(k.split(extra.sizes), v.split(extra.sizes), extra.modalities):
            one_head = (t[:, None].contiguous() for t in (q, k_m, v_m))
            out.append(attention(*one_head, rows.offsets, keys.offsets, rows.longest, keys.longest)[:, 0])
        return out


class PackedFlash(PackedVarlen):
    """Packed, the flash-attn package."""

    name = "packed, flash-attn"
    module = "flash_attn"
    scale = "softmax_scale"

    @classmethod
    def function(cls) -> Attention:
        """flash_attn_varlen_func."""
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func
