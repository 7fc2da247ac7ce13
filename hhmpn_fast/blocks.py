"""The parameters of one MP + UPD pair, the paper's matrices, handed out in the absorbed form that ops read."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hhmpn_fast import backends, ops
from hhmpn_fast.autocast import device_dtype
from hhmpn_fast.config import HHMPNConfig
from hhmpn_fast.weights import BlockWeights, Norms


class _Products(NamedTuple):
    """What is kept between calls without gradients, and what it was made from."""

    key: tuple
    query: Tensor | None
    c: Tensor | None


class Block(nn.Module):
    """W1, W2, W^v (Eqs 4-5), W^r, b1, W^b, b2 (Eq 7), for `sets` independent copies along the leading axes.

    Shapes, after the leading `sets` axes: w1, w2, wv (d, d); wr (h, d) for labels and (h, M*d) for features;
    b1 (h,); wb (d, h); b2 (d,); norm1_*, norm2_* (d,). All (out, in).
    """

    is_features = False

    def __init__(
        self, config: HHMPNConfig, sets: tuple[int, ...] = (), *, sources: int = 1, uniform: bool = False
    ) -> None:
        super().__init__()
        d, h = config.dim, config.hidden
        self.heads, self.sources = config.heads, sources
        self._held: BlockWeights | None = None
        self._kept: _Products | None = None
        self.keep_wr = config.dropout_place == "lamp"
        if not uniform:
            self.w1, self.w2 = _matrix(*sets, d, d), _matrix(*sets, d, d)
        # Without LayerNorm every residual multiplies the states: UPD starts at nothing and messages at half.
        self.wv, self.wr = _matrix(*sets, d, d, gain=0.5), _matrix(*sets, h, sources * d)
        self.wb = nn.Parameter(torch.zeros(*sets, d, h))
        self.b1, self.b2 = nn.Parameter(torch.zeros(*sets, h)), nn.Parameter(torch.zeros(*sets, d))
        if config.norm == "post":
            for name in ("norm1", "norm2"):
                self.register_parameter(f"{name}_weight", nn.Parameter(torch.ones(*sets, d)))
                self.register_parameter(f"{name}_bias", nn.Parameter(torch.zeros(*sets, d)))

    def absorbed(self) -> BlockWeights:
        """What the ops read: A = W1^T W2 / sqrt(d) and, for features, C_m = W^r_m W^v beside the other weights.

        Without gradients both products are kept, on a backend that has `digest`, for as long as the weights hold the
        same bits: whoever changes them, and however.
        """
        if self._held is not None:
            return self._held
        factors, digest = self._factors(), None
        if factors and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            digest = backends.first("digest", backends.Call.of(self.wv))
        if digest is None:
            self._kept = None
            return self._with(*self._products())
        key = (digest(factors), self.wv.dtype, device_dtype(self.wv.device.type), backends.current())
        if self._kept is None or self._kept.key != key:
            self._kept = _Products(key, *self._products())
        return self._with(self._kept.query, self._kept.c)

    def norms(self) -> Norms | None:
        """The LayerNorms of `norm="post"`."""
        if not hasattr(self, "norm1_weight"):
            return None
        return Norms(self.norm1_weight, self.norm1_bias, self.norm2_weight, self.norm2_bias)

    def hold(self) -> None:
        """Absorbs once and for all: for a copy whose weights nobody changes any more."""
        self._held = self._with(*self._products())

    def _factors(self) -> list[Tensor]:
        """What the products are formed from."""
        queries = [self.w1, self.w2] if hasattr(self, "w1") else []
        return queries + ([self.wr, self.wv] if self.is_features and not self.keep_wr else [])

    def _products(self) -> tuple[Tensor | None, Tensor | None]:
        """A and C (M, h, d), each None where the block has no such product."""
        query = ops.query_matrix(self.w1, self.w2, self.heads, ops.absorb) if hasattr(self, "w1") else None
        if not self.is_features or self.keep_wr:
            return query, None
        wr, wv = self._wr(), ops.value_matrix(self.wv, self.heads)
        return query, ops.absorb(wr, wv.expand(*wr.shape[:-2], *wv.shape[-2:]))

    def _wr(self) -> Tensor:
        """W^r as (..., h, d) for labels and (M, h, d) for features."""
        return self.wr.unflatten(-1, (self.sources, -1)).movedim(-2, -3) if self.is_features else self.wr

    def _with(self, query: Tensor | None, c: Tensor | None) -> BlockWeights:
        hidden = self._wr() if c is None else c
        return BlockWeights(query, ops.value_matrix(self.wv, self.heads), hidden, self.b1, self.wb, self.b2)


class FeatureBlock(Block):
    """The F2F block of one layer: W^r_xx is (h, M*d); `proj` (d, M*d) is the learned residual of Eq 10."""

    is_features = True

    def __init__(self, config: HHMPNConfig) -> None:
        super().__init__(config, sources=len(config.modalities))
        if config.f2f_residual == "proj":
            self.proj = _matrix(config.dim, len(config.modalities) * config.dim)


def _matrix(*shape: int, gain: float = 1.0) -> nn.Parameter:
    """Xavier-uniform over the last two axes, each copy on its own."""
    bound = gain * (6.0 / (shape[-1] + shape[-2])) ** 0.5
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))
