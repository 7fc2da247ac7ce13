"""update: the tail of MP and the whole of UPD as one residual block, from contexts `s` to the next state.

    labels     g = u + s W^v^T                                u' = g + relu(g W^r^T + b1) W^b^T + b2          (Eqs 6-8)
    features   r = v + (sum_m s^m) W^v^T                      z = r + relu(sum_m s^m C_m^T + b1) W^b^T + b2   (Eqs 9-10)

    name      shape            meaning
    u         (..., d)         label states; broadcasts against the context's leading axes
    v         (N, d)           nodes
    s         (..., d) labels, (M, N, d) features: contexts of `attention`
    W^v       (d, d)           value projection       C_m    (M, h, d)    W^r_m W^v
    W^r, b1   (h, d), (h,)     hidden layer           W^b, b2  (d, h), (d,)   output layer

Weights are (out, in), y = x W^T. With H heads contexts are H*d wide and W^v is block-structured; nothing else changes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hhmpn_fast.ops import dropout as _dropout
from hhmpn_fast.ops.dropout import Dropout
from hhmpn_fast.ops.op import Op

# Features where `hidden` is a stack (M, h, d), labels where it is (h, d).
UPDATE = Op(
    "update(Tensor state, Tensor context, Tensor value, Tensor hidden, Tensor b1, Tensor output, Tensor b2, float p, "
    "Tensor? rng, int site) -> Tensor out"
)


class Norms(NamedTuple):
    """LayerNorm after both residuals (`norm="post"`): weight and bias of each."""

    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor


class UpdateWeights(NamedTuple):
    """One block's weights; `wr` is W^r for labels and, for features, the stack C (M, h, d)."""

    wv: Tensor
    wr: Tensor
    b1: Tensor
    wb: Tensor
    b2: Tensor
    norms: Norms | None = None


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:]) * weight + bias


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T for a (out, in) weight or a stack (M, out, in) of them against x (M, ..., in)."""
    return x @ weight.transpose(-1, -2)


def _drop(x: Tensor, dropout: Dropout | None) -> Tensor:
    return _dropout.apply(x.reshape(-1, x.shape[-1]), dropout).view(x.shape) if dropout is not None else x


def _tail(residual: Tensor, hidden: Tensor, w: UpdateWeights, dropout: Dropout | None) -> Tensor:
    out = _linear(torch.relu(hidden + _bias(w.b1)), w.wb) + _bias(w.b2)
    out = residual + _drop(out, dropout)
    return out if w.norms is None else _norm(out, _bias(w.norms.weight2), _bias(w.norms.bias2))


def _bias(b: Tensor) -> Tensor:
    """A bias (d,) as it is; a stack (M, d) of them against (M, rows, d)."""
    return b if b.dim() == 1 else b[:, None, :]


def update_labels(
    u: Tensor, context: Tensor, w: UpdateWeights, dropout: Dropout | None = None, message_dropout: Dropout | None = None
) -> Tensor:
    """Eqs 6-8 for label rows: u (B*L, d) or (M, B*L, d), context (M, B*L, d) -> (M, B*L, d).

    `message_dropout` (LaMP's place) acts on W^v s; only the plain PyTorch path has it.
    """
    g = u + _drop(_linear(context, w.wv), message_dropout)
    if w.norms is not None:
        g = _norm(g, _bias(w.norms.weight1), _bias(w.norms.bias1))
    return _tail(g, _linear(g, w.wr), w, dropout)


def update_features(
    v: Tensor,
    context: Tensor,
    w: UpdateWeights,
    dropout: Dropout | None = None,
    *,
    residual: str = "sum",
    proj: Tensor | None = None,
    message_dropout: Dropout | None = None,
) -> Tensor:
    """Eqs 9-10 for nodes: v (N, d), context (M, N, d) -> z (N, d).

    `residual` is the reading of Eq 10's sum: "sum" v + sum_m msg_m, "node" v, "proj" concat_m(msg_m) proj^T with
    proj (d, M*d). With `message_dropout` `w.wr` is W^r (M, h, d) itself and not C, as dropout stands between the two.
    """
    if message_dropout is None:
        hidden = torch.einsum("mnd,mhd->nh", context, w.wr)
        summed = _linear(context.sum(0), w.wv) if residual == "sum" else None
        messages = _linear(context, w.wv) if residual == "proj" else None
    else:
        messages = _drop(_linear(context, w.wv), message_dropout)
        hidden = torch.einsum("mnd,mhd->nh", messages, w.wr)
        summed = messages.sum(0)
    if residual == "sum":
        r = v + summed
    elif residual == "proj":
        r = _linear(messages.transpose(0, 1).flatten(1), proj)
    else:
        r = v
    if w.norms is not None:
        r = _norm(r, w.norms.weight1, w.norms.bias1)
    return _tail(r, hidden, w, dropout)
