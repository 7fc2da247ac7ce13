"""embed: every modality's features into the one node tensor; absorb: the products of weights the algebra stands on.

v = x W_x^T + b                     (N_m, e_m) -> rows of (N, d), modality-major
A = W1^T W2 / sqrt(d / H)           Eq 4 as a bilinear form: e_ij = (v_i A) . v_j
C_m = W^r_m W^v                     the hidden layer of Eq 10 read from contexts instead of messages
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hhmpn_fast.backends.record import Body
from hhmpn_fast.ops.op import Op

EMBED = Op("embed(Tensor[] xs, Tensor[] weights, Tensor[] biases) -> Tensor v")
ABSORB = Op("absorb(Tensor left, Tensor right, float scale, bool half) -> Tensor product")


def embed(xs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    """All nodes embedded: xs[m] (N_m, e_m), weights[m] (d, e_m), biases[m] (d,) -> (N, d), modality after modality."""
    return torch.cat([F.linear(x, w, b) for x, w, b in zip(xs, weights, biases)])


def absorb(left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
    """Batched products of weights, left (..., n, k) @ right (..., k, m) * scale."""
    return (left @ right) * scale


def query_matrix(w1: Tensor, w2: Tensor, heads: int, product: object = absorb) -> Tensor:
    """A (..., d, H*d): q = v A holds, head after head, the query rows of `attention`. w1, w2 (..., d, d)."""
    d = w1.shape[-1]
    scale = 1.0 / math.sqrt(d // heads)
    if heads == 1:
        return product(w1.transpose(-1, -2), w2, scale)
    left, right = w1.unflatten(-2, (heads, -1)), w2.unflatten(-2, (heads, -1))  # (..., H, d/H, d)
    a = product(left.transpose(-1, -2), right, scale)  # (..., H, d, d)
    return a.movedim(-3, -2).flatten(-2)


def value_matrix(wv: Tensor, heads: int) -> Tensor:
    """W^v (..., d, d) as it acts on H contexts side by side: (..., d, H*d), block-structured; itself for one head."""
    if heads == 1:
        return wv
    rows = wv.unflatten(-2, (heads, -1))  # (..., H, d/H, d)
    out = wv.new_zeros(*rows.shape[:-1], heads, wv.shape[-1])
    index = torch.arange(heads, device=wv.device)
    out[..., index, :, index, :] = rows.movedim(-3, 0)
    return out.flatten(-2).flatten(-3, -2)


BODIES = {"absorb": Body(absorb), "embed": Body(embed)}
