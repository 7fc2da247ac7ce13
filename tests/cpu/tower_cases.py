"""Random inputs of the label tower and its plain composition from single ops, shared by the tower's tests."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hhmpn_fast import ops
from hhmpn_fast.backends import use_backend
from hhmpn_fast.ops.tower import named
from tests.model.cases import random_lengths

ABLATIONS = [
    {},
    {"tied": True},
    {"mask": True},
    {"uniform": True},
    {"l2l": False},
    {"scorer": False},
    {"uniform": True, "l2l": False, "scorer": False},
    {"dropout": 0.3},
    {"dropout": 0.3, "tied": True, "mask": True, "uniform": True},
]


@dataclass
class TowerCase:
    """One call of the tower; `f2l` and `l2l` hold a block's weights in their order."""

    z: Tensor
    offsets: Tensor
    lengths: Tensor
    present: Tensor
    label_embedding: Tensor
    f2l: list[Tensor | None]
    l2l: list[Tensor] | None
    wl: Tensor | None
    wo: Tensor
    steps: int
    mask: Tensor | None
    dropout: ops.Dropout | None
    upstream: Tensor

    def named(self) -> dict[str, Tensor]:
        rest = {f"f2l.{i}": t for i, t in enumerate(self.f2l) if t is not None}
        rest |= {f"l2l.{i}": t for i, t in enumerate(self.l2l or [])}
        out = {"z": self.z, "label_embedding": self.label_embedding, "wo": self.wo, **rest}
        return out if self.wl is None else {**out, "wl": self.wl}

    def names(self) -> list[str]:
        return list(self.named())

    def leaves(self) -> list[Tensor]:
        return [t.requires_grad_() for t in self.named().values()]

    def with_leaves(self, tensors: tuple[Tensor, ...]) -> TowerCase:
        by = dict(zip(self.names(), tensors))
        f2l = [by.get(f"f2l.{i}") for i in range(6)]
        l2l = None if self.l2l is None else [by[f"l2l.{i}"] for i in range(6)]
        return replace(
            self, z=by["z"], label_embedding=by["label_embedding"], wo=by["wo"], wl=by.get("wl"), f2l=f2l, l2l=l2l
        )

    def to(self, dtype: torch.dtype) -> TowerCase:
        case = self.with_leaves(tuple(t.detach().to(dtype, copy=True) for t in self.named().values()))
        return replace(case, upstream=self.upstream.to(dtype))

    def sample(self, b: int) -> TowerCase:
        samples, o = self.present.shape[1], self.offsets.tolist()
        z = torch.cat([self.z[o[i] : o[i + 1]] for i in range(b, len(o) - 1, samples)])
        lengths = self.lengths[:, b : b + 1]
        return replace(self, z=z, lengths=lengths, offsets=offsets_of(lengths), present=self.present[:, b : b + 1])

    def arguments(self) -> tuple:
        l2l = None if self.l2l is None else ops.BlockWeights(*self.l2l)
        w = ops.TowerWeights(ops.BlockWeights(*self.f2l), l2l, self.wl, self.wo)
        inputs = (self.z, self.offsets, self.present, self.label_embedding)
        return (*inputs, w, self.steps, self.mask, self.dropout)

    def op_inputs(self) -> dict:
        """The registered op's inputs by name."""
        z, offsets, present, label_embedding, w, steps, mask, _ = self.arguments()
        p, rng = (0.0, None) if self.dropout is None else (self.dropout.p, self.dropout.rng)
        data = {"z": z, "offsets": offsets, "present": present, "label_embedding": label_embedding, "mask": mask}
        return {**data, **named(w), "steps": steps, "p": p, "rng": rng}


def offsets_of(lengths: Tensor) -> Tensor:
    """int32 (M*B+1,)."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.flatten().cumsum(0)]).to(torch.int32)


def tower_case(
    seed: int,
    *,
    batch: int | None = None,
    modalities: int | None = None,
    labels: int | None = None,
    dim: int = 12,
    steps: int | None = None,
    longest: int = 20,
    lengths: Tensor | None = None,
    tied: bool = False,
    mask: bool = False,
    uniform: bool = False,
    l2l: bool = True,
    scorer: bool = True,
    dropout: float = 0.0,
) -> TowerCase:
    """A float64 case; sizes that are not given are random."""
    g = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=g))

    modalities, batch = modalities or pick(1, 4), pick(1, 9) if batch is None else batch
    labels, steps = labels or pick(1, 14), steps or pick(1, 4)
    if lengths is None:
        lengths = random_lengths(g, modalities, batch, longest)
    modalities, batch = lengths.shape

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64) * scale

    sets, size = (1 if tied else steps), 0.6 * dim**-0.5

    def block() -> list[Tensor]:
        square = [normal(sets, dim, dim, scale=size) for _ in range(4)]
        return [square[0], square[1], square[2], normal(sets, dim, scale=0.3), square[3], normal(sets, dim, scale=0.3)]

    f2l = block()
    allowed = None
    if mask:  # one row may read nothing
        allowed = torch.rand(labels, labels, generator=g) < 0.5
    return TowerCase(
        z=normal(int(lengths.sum()), dim),
        offsets=offsets_of(lengths),
        lengths=lengths,
        present=lengths > 0,
        label_embedding=normal(labels, dim),
        f2l=[None, *f2l[1:]] if uniform else f2l,
        l2l=block() if l2l else None,
        wl=normal(dim, scale=dim**-0.5) if scorer else None,
        wo=normal(labels, dim),
        steps=steps,
        mask=allowed,
        dropout=ops.Dropout(dropout, torch.tensor([2**40 + seed, 5]), 0) if dropout else None,
        upstream=normal(steps, batch, labels),
    )


def plain_tower(
    z: Tensor,
    offsets: Tensor,
    present: Tensor,
    label_embedding: Tensor,
    w: ops.TowerWeights,
    steps: int,
    mask: Tensor | None,
    dropout: ops.Dropout | None,
) -> Tensor:
    """The model's composition of the tower from single ops of the torch backend."""
    (modalities, batch), (labels, d) = present.shape, label_embedding.shape
    fused = label_embedding.expand(batch, -1, -1).reshape(-1, d)
    own = torch.arange(0, labels * modalities * batch + 1, labels, dtype=torch.int32)
    logits = []
    with use_backend("torch"):
        for t in range(steps):
            at = t if w.f2l.value.shape[0] > 1 else 0

            def drop(kind: str, t: int = t) -> ops.Dropout | None:
                return dropout and dropout.at(kind, t)

            block = w.f2l.at(at)
            q = torch.zeros_like(fused) if block.query is None else fused @ block.query
            x_offsets = own[: batch + 1]
            s, _ = ops.attention(q, z, x_offsets, offsets, modalities, dropout=drop("f2l_attention"))
            states = ops.update_labels(fused, s, block, drop("f2l_update"))
            if w.l2l is not None:
                block = w.l2l.at(at)
                x = states.reshape(-1, d)
                s, _ = ops.attention(x @ block.query, x, own, own, 1, mask=mask, dropout=drop("l2l_attention"))
                states = ops.update_labels(states, s.view_as(states), block, drop("l2l_update"))
            fused, out, _ = ops.readout(states.view(modalities, batch, labels, d), present, w.wl, w.wo)
            fused = fused.view(-1, d)
            logits.append(out)
    return torch.stack(logits)
