"""Ops that are PyTorch's own products and sums on an accelerator, each with its gradient in few launches.

embed       a product a modality, written where its nodes lie
absorb      one product with its scale inside, and one a gradient, in the order of memory of what it is the gradient of
joint_bce   the loss and its logits' gradient at once
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hhmpn_fast.backends.record import Body
from hhmpn_fast.ops.bodies import implement, rounded
from hhmpn_fast.ops.embed import ABSORB, EMBED
from hhmpn_fast.ops.readout import JOINT_BCE


def register(backend: str) -> dict[str, Body]:
    """Registers embed and absorb for a backend; their bodies, which take any dtype and size."""
    implement(EMBED, backend, _embed, _embed_backward, _nodes, rounds=True)
    ABSORB.define(backend, _product, like=torch.empty_like)
    implement(ABSORB, backend, _absorb, _absorb_backward)

    def embed(biases: list[Tensor | None], **rest: Any) -> Tensor:
        return EMBED(backend, biases=[b for b in biases if b is not None], **rest)

    return {"absorb": Body(ABSORB.on(backend), anything=True), "embed": Body(embed, anything=True)}


def register_joint_bce(backend: str) -> dict[str, Body]:
    """Registers joint_bce for a backend that has no kernel of it."""
    implement(JOINT_BCE, backend, _joint_bce, None, _loss, keeps=("Tensor d_logits",))
    return {"joint_bce": Body(JOINT_BCE.on(backend), anything=True)}


def _nodes(i: SimpleNamespace) -> dict[str, Tensor]:
    return {"v": i.xs[0].new_empty(sum(x.shape[0] for x in i.xs), i.weights[0].shape[0])}


def _embed(i: SimpleNamespace, keep: bool) -> dict[str, Tensor]:
    made, i = _nodes(i), rounded(EMBED, i)
    for m, (x, w, rows) in enumerate(zip(i.xs, i.weights, _split(made["v"], i))):
        if i.biases:
            torch.addmm(i.biases[m], x, w.t(), out=rows)
        else:
            torch.mm(x, w.t(), out=rows)
    return made


def _embed_backward(d: SimpleNamespace, i: SimpleNamespace, saved: SimpleNamespace) -> dict[str, Any]:
    d_v = _split(d.v, i)
    return {
        "xs": lambda: [d @ w.to(d.dtype) for d, w in zip(d_v, i.weights)],
        "weights": [d.t() @ x for d, x in zip(d_v, i.xs)],
        "biases": [d.sum(0) for d in d_v] if i.biases else [],
    }


def _split(v: Tensor, i: SimpleNamespace) -> tuple[Tensor, ...]:
    return v.split([x.shape[0] for x in i.xs])


def _product(i: SimpleNamespace) -> dict[str, Tensor]:
    return {"product": i.left.new_empty(*i.left.shape[:-1], i.right.shape[-1])}


def _absorb(i: SimpleNamespace, keep: bool) -> dict[str, Tensor]:
    return {"product": _times(_product(i)["product"], i.left, i.right, i.scale)}


def _absorb_backward(d: SimpleNamespace, i: SimpleNamespace, saved: SimpleNamespace) -> dict[str, Tensor]:
    return {
        "left": _times(torch.empty_like(i.left), d.product, i.right.mT, i.scale),
        "right": _times(torch.empty_like(i.right), i.left.mT, d.product, i.scale),
    }


def _times(out: Tensor, a: Tensor, b: Tensor, factor: float) -> Tensor:
    """a @ b * factor into `out`."""
    if out.dim() > 3:  # more axes in front than one product takes
        return out.copy_((a @ b).mul_(factor))
    a, b = (t.unsqueeze(0) if t.dim() == 2 else t for t in (a, b))
    (out.unsqueeze(0) if out.dim() == 2 else out).baddbmm_(a, b, beta=0, alpha=factor)
    return out


def _loss(i: SimpleNamespace) -> dict[str, Tensor]:
    return {"loss": i.logits.new_empty(()), "d_logits": i.logits.new_empty(i.logits.shape, dtype=torch.float32)}


def _joint_bce(i: SimpleNamespace, keep: bool) -> dict[str, Tensor]:
    """s (softplus(x) - x y) and s (sigmoid(x) - y), s a step's share over B L; weighted positive terms apart."""
    x, y, made = i.logits.float(), i.targets.float(), _loss(i)
    if x.shape[1] == 0:
        return {"loss": i.logits.sum(), "d_logits": made["d_logits"]}
    share = x.new_full((x.shape[0], 1, 1), i.intermediate_weight / y.numel())
    share[-1].fill_(1.0 / y.numel())
    if i.label_weights is None:
        losses = torch.addcmul(F.softplus(x), x, y, value=-1.0)
        d_logits = x.sigmoid().sub_(y)
    else:
        # w y softplus(-x) + (1 - y) softplus(x), where softplus(-x) = softplus(x) - x
        positive = y * i.label_weights
        either = positive + (1.0 - y)
        losses = torch.addcmul(either * F.softplus(x), x, positive, value=-1.0)
        d_logits = torch.addcmul(-positive, x.sigmoid(), either)
    return {"loss": (losses * share).sum().to(i.logits.dtype), "d_logits": d_logits.mul_(share)}
