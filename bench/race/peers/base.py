"""What a contestant is: the same weights, its own data layout, logits (T, B, L).

`Packed` carries the equations over packed nodes as one writes them in PyTorch, with queries, keys and values projected;
a peer adds how it attends. Dropout sits where HHMPN has it, drawn by PyTorch's own generator.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hhmpn_fast import Ragged
from hhmpn_fast.model import HHMPN
from hhmpn_fast.ops import joint_bce

MEMORY = 8 * 2**30  # of a processor's, that one tensor's family may take


class Case(NamedTuple):
    """What is run: mode "infer" or "train", dtype "fp32", "tf32" or "bf16" (autocast), on which device."""

    mode: str
    dtype: str = "fp32"
    device: str = "cpu"

    @property
    def memory(self) -> int:
        """Bytes that a contestant may ask for: what the GPU has, or a processor's share."""
        if torch.device(self.device).type == "cuda":
            return torch.cuda.get_device_properties(self.device).total_memory
        return MEMORY

    def autocast(self) -> torch.autocast:
        """The dtype's autocast, on where it is bf16."""
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.dtype == "bf16")


def moved(data: Any, device: str) -> Any:
    """A prepared batch on a device: tensors and `Ragged`, in tuples, lists and records of any depth."""
    if isinstance(data, Tensor | Ragged):
        return data.to(device)
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(moved(field, device) for field in data))
    if isinstance(data, list | tuple):
        return type(data)(moved(item, device) for item in data)
    return data


class Peer(nn.Module):
    """A contestant around a copy of an HHMPN, whose parameters it reads under their own names."""

    name = ""
    compiles = False

    def __init__(self, model: HHMPN) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.rate = model.config.dropout

    @classmethod
    def why_not(cls, case: Case, batch: Ragged) -> str | None:
        """None when it can run, else the reason in a few words."""
        return None

    def prepare(self, batch: Ragged) -> Any:
        """The batch, on the CPU, in the layout a loader of this peer would hand over; not timed."""
        return batch

    def joint_loss(self, data: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and detached logits of a training step."""
        logits = self(data)
        return joint_bce(logits.float(), targets, self.model.config.intermediate_weight), logits.detach()

    def drop(self, x: Tensor) -> Tensor:
        """Dropout in training."""
        return F.dropout(x, self.rate, self.training) if self.rate else x

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Softmax attention over the last two axes; a key whose mask is False is padding."""
        scores = q @ k.mT * q.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return self.drop(torch.softmax(scores, -1)) @ v

    def update(self, u: Tensor, message: Tensor, w: LabelStep) -> Tensor:
        """Eqs 6-8."""
        g = u + message
        return g + self.drop(F.linear(F.relu(F.linear(g, w.wr, w.b1)), w.wb, w.b2))

    def labels(self, read: Callable[[Tensor, LabelStep], Tensor], present: Tensor) -> Tensor:
        """Eqs 11-17: logits (T, B, L).

        read(u, w): messages (M, B, L, d) from the nodes to u (B, L, d).  present: bool (M, B, 1, 1).
        """
        m = self.model
        u, logits = m.label_embedding.expand(present.shape[1], -1, -1), []
        for t in range(m.config.steps):
            xy, yy = LabelStep.of(m.f2l, t), LabelStep.of(m.l2l, t)
            states = self.update(u, read(u, xy), xy)
            states = self.update(states, self.l2l(states, yy), yy)
            u, out = readout(states, present, m.readout.wl, m.readout.wo)
            logits.append(out)
        return torch.stack(logits)

    def l2l(self, states: Tensor, w: LabelStep) -> Tensor:
        """Messages (M, B, L, d) between labels."""
        return self.attend(states @ w.w1.T, states @ w.w2.T, states @ w.wv.T)


def too_large(elements: int, case: Case) -> str | None:
    """Why not, for scores of that many elements: three such tensors live in a forward pass, six in a step."""
    need = elements * 4 * (6 if case.mode == "train" else 3)
    return f"its scores would take about {need / 2**30:.0f} GiB" if need > case.memory else None


class LabelStep(NamedTuple):
    """The weights of one MP + UPD pair."""

    w1: Tensor
    w2: Tensor
    wv: Tensor
    wr: Tensor
    b1: Tensor
    wb: Tensor
    b2: Tensor

    @classmethod
    def of(cls, block: nn.Module, t: int) -> LabelStep:
        """Label step t of a block."""
        return cls(*(getattr(block, name)[t] for name in cls._fields))


class PackedData(NamedTuple):
    """A batch and what a peer's attention needs to know of it."""

    batch: Ragged
    present: Tensor  # bool (M, B, 1, 1)
    extra: Any


class Packed(Peer):
    """Linear layers over packed nodes, modality-major (N, d); subclasses attend.

    f2f(q, k, v, extra): messages (N, M*d), the modalities side by side.
    f2l(q, k, v, extra): q (B, L, d), k and v (N, d) -> messages (M, B, L, d), 0 where a modality is empty.
    """

    def prepare(self, batch: Ragged) -> PackedData:
        """Adds the attention's own indices."""
        return PackedData(batch, batch.present[..., None, None], self.indices(batch))

    def indices(self, batch: Ragged) -> Any:
        """What `f2f` and `f2l` read besides their operands."""
        return None

    def forward(self, data: PackedData) -> Tensor:
        """Logits (T, B, L)."""
        m, extra = self.model, data.extra
        v = self.order(torch.cat([e(x) for e, x in zip(m.embed, data.batch.values)]), extra)
        f = m.f2f[0]
        messages = self.f2f(v @ f.w1.T, v @ f.w2.T, v @ f.wv.T, extra)
        residual = v + messages.unflatten(1, (-1, v.shape[1])).sum(1)
        z = residual + self.drop(F.linear(F.relu(F.linear(messages, f.wr, f.b1)), f.wb, f.b2))
        return self.labels(lambda u, w: self.f2l(u @ w.w1.T, z @ w.w2.T, z @ w.wv.T, extra), data.present)

    def l2l(self, states: Tensor, w: LabelStep) -> Tensor:
        """Messages (M, B, L, d) between labels, a sample and modality a batch entry."""
        flat = states.flatten(0, 1)
        q, k, v = flat @ w.w1.T, flat @ w.w2.T, flat @ w.wv.T
        p = self.rate if self.training else 0.0
        message = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], dropout_p=p)[:, 0]
        return message.view(states.shape)

    def order(self, v: Tensor, extra: Any) -> Tensor:
        """The nodes in the order the attention wants."""
        return v

    def f2f(self, q: Tensor, k: Tensor, v: Tensor, extra: Any) -> Tensor:
        """Messages between nodes."""
        raise NotImplementedError

    def f2l(self, q: Tensor, k: Tensor, v: Tensor, extra: Any) -> Tensor:
        """Messages from nodes to labels."""
        raise NotImplementedError


def readout(states: Tensor, present: Tensor, wl: Tensor, wo: Tensor) -> tuple[Tensor, Tensor]:
    """Eqs 15-17: states (M, B, L, d), present (M, B, 1, 1) -> fused (B, L, d), logits (B, L)."""
    scores = (states @ wl)[..., None].masked_fill(~present, float("-inf"))
    fused = (torch.softmax(scores, 0) * states).sum(0)
    return fused, (fused * wo).sum(-1)
