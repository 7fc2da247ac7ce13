"""Padded: every modality padded to the batch's longest, masks, batched products; how the field writes it.

Stronger than what is published: it pads to the batch and not to the data set, and all nodes of a sample query a
modality in one product. `PaddedCompiled` is the same under `torch.compile`, `PaddedGraphs` with CUDA graphs of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.race.peers.base import Case, Peer, too_large
from hhmpn_fast import Ragged
from hhmpn_fast.model import HHMPN


class PaddedData(NamedTuple):
    """xs[m] (B, S_m, e_m), masks[m] bool (B, 1, S_m) True at nodes, present bool (M, B, 1, 1)."""

    xs: list[Tensor]
    masks: list[Tensor]
    present: Tensor


class Padded(Peer):
    """Padded, eager."""

    name = "padded eager"

    @classmethod
    def why_not(cls, case: Case, batch: Ragged) -> str | None:
        """Scores are (B, S, S)."""
        return too_large(batch.batch_size * int(batch.lengths.max(1).values.sum()) ** 2, case)

    def prepare(self, batch: Ragged) -> PaddedData:
        """What a padding collate function hands over."""
        xs, masks = [], []
        for values, lengths in zip(batch.values, batch.lengths):
            xs.append(torch.nn.utils.rnn.pad_sequence(list(values.split(lengths.tolist())), batch_first=True))
            masks.append((torch.arange(xs[-1].shape[1]) < lengths[:, None])[:, None])
        return PaddedData(xs, masks, batch.present[..., None, None])

    def forward(self, data: PaddedData) -> Tensor:
        """Logits (T, B, L)."""
        m = self.model
        v = torch.cat([e(x) for e, x in zip(m.embed, data.xs)], 1)  # (B, S, d)
        f = m.f2f[0]
        messages = self.read(v @ f.w1.T, v @ f.w2.T, v @ f.wv.T, data)
        z = v + messages.sum(0)
        z = z + self.drop(F.linear(F.relu(F.linear(torch.cat(list(messages), -1), f.wr, f.b1)), f.wb, f.b2))
        return self.labels(lambda u, w: self.read(u @ w.w1.T, z @ w.w2.T, z @ w.wv.T, data), data.present)

    def read(self, q: Tensor, k: Tensor, v: Tensor, data: PaddedData) -> Tensor:
        """Messages (M, B, rows, d) from every modality of k, v (B, S, d); 0 where it is empty."""
        sizes = [x.shape[1] for x in data.xs]
        parts = zip(k.split(sizes, 1), v.split(sizes, 1), data.masks)
        return torch.where(data.present, torch.stack([self.attend(q, *part) for part in parts]), 0.0)


class PaddedCompiled(Padded):
    """Padded, one compiled graph for exactly this shape."""

    name = "padded torch.compile"
    compiles = True
    mode: str | None = None

    def __init__(self, model: HHMPN) -> None:
        super().__init__(model)
        self.compiled = torch.compile(super().forward, dynamic=False, fullgraph=True, mode=self.mode)

    def forward(self, data: PaddedData) -> Tensor:
        """Logits (T, B, L)."""
        return self.compiled(data)


class PaddedGraphs(PaddedCompiled):
    """Padded, compiled, and on a GPU replayed as CUDA graphs."""

    name = "padded torch.compile (reduce-overhead)"
    mode = "reduce-overhead"
