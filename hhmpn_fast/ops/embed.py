"""embed: every modality's features into the one node tensor; absorb: the products of weights the algebra stands on.

v = x W_x^T + b                     (N_m, e_m) -> rows of (N, d), modality-major
A = W1^T W2 / sqrt(d / H)           Eq 4 as a bilinear form: e_ij = (v_i A) . v_j
C_m = W^r_m W^v                     the hidden layer of Eq 10 read from contexts instead of messages
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hhmpn_fast.autocast import compute_dtype
from hhmpn_fast.backends import Body, Call
from hhmpn_fast.ops.op import Op
from hhmpn_fast.ops.public import Public

EMBED = Op(
    "embed(Tensor[] xs, Tensor[] weights, Tensor[] biases) -> Tensor v", rows=("xs",), weights=("weights", "biases")
)
ABSORB = Op("absorb(Tensor left, Tensor right, float scale, bool half) -> Tensor product", weights=("left", "right"))


class Embed(Public):
    """embed and absorb on any backend."""

    def embed(self, xs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
        """All nodes embedded: xs[m] (N_m, e_m), weights[m] (d, e_m), biases[m] (d,) or None -> (N, d), modality-major.

        Raises:
            InputError: a backend that cannot run the call.
        """
        call = Call(weights[0].device.type, compute_dtype(weights[0]), weights[0].shape[0])
        return self.body("embed", call)(xs=list(xs), weights=list(weights), biases=biases)

    def absorb(self, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
        """Batched products of weights, left (..., n, k) @ right (..., k, m) * scale.

        Raises:
            InputError: a backend that cannot run the call.
        """
        return self.body("absorb", Call.of(left))(left=left, right=right, scale=scale, half=False)


def plain_embed(i: Any) -> Tensor:
    """embed in plain PyTorch."""
    return torch.cat([F.linear(x, w, b) for x, w, b in zip(i.xs, i.weights, i.biases)])


def plain_absorb(i: Any) -> Tensor:
    """absorb in plain PyTorch."""
    return (i.left @ i.right) * i.scale


def unrounded_absorb(i: Any) -> Tensor:
    """absorb in plain PyTorch outside of autocast, for backends whose kernels round float32 weights themselves."""
    with torch.autocast(i.left.device.type, enabled=False):
        return plain_absorb(i)


def query_matrix(w1: Tensor, w2: Tensor, heads: int, product: Callable[..., Tensor]) -> Tensor:
    """A (..., d, H*d): q = v A holds, head after head, the query rows of `attention`. w1, w2 (..., d, d).

    product: `absorb`, on the backend that the products are to be formed by.
    """
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


BODIES = {"absorb": Body(ABSORB.over(plain_absorb)), "embed": Body(EMBED.over(plain_embed))}
