"""A model for inference only: copies of its weights, absorbed and, where the CPU kernels run it whole, packed, once.

It sees no later change of the model it came from, so no call has to ask whether anything changed.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hhmpn_fast import backends
from hhmpn_fast.blocks import Block
from hhmpn_fast.errors import InputError
from hhmpn_fast.ragged import Ragged

if TYPE_CHECKING:
    from hhmpn_fast.model import HHMPN


class Frozen:
    """`HHMPN.freeze()`: called with a `Ragged` batch it returns what the model in eval mode does, logits (P, B, L).

    On the CPU kernels, which run a model of the equations' own readings as one op, it does so to the bit.

    Args:
        model: what to copy.
        dtype: what to compute in: the parameters' own (the default), or bfloat16 for what autocast would give.

    Raises:
        InputError: any other dtype.
    """

    def __init__(self, model: HHMPN, dtype: torch.dtype | None = None) -> None:
        own = model.label_embedding.dtype
        self.dtype = own if dtype is None else dtype
        if self.dtype not in (own, torch.bfloat16):
            raise InputError(f"dtype: found {self.dtype}; expected {own}, the parameters' own, or torch.bfloat16.")
        self._low = self.dtype != own
        self._model = copy.deepcopy(model).eval().requires_grad_(False)
        with torch.no_grad(), self._autocast():
            for block in self._model.modules():
                if isinstance(block, Block):
                    block.hold()
        call = backends.Call(model.label_embedding.device.type, self.dtype, model.config.dim)
        pack, self._infer = backends.phase("pack", call), backends.phase("infer", call)
        self._backends = ("cpu", backends.current())
        self._packed = pack(self._model.weights(), self.dtype) if pack and self._model.runs_whole() else None

    def __call__(self, features: Ragged) -> Tensor:
        """Logits (P, B, L) of a packed batch."""
        model = self._model
        if self._packed is None or features.device.type != "cpu" or backends.current() not in self._backends:
            with torch.no_grad(), self._autocast():
                return model(features)
        features = model.checked(features)
        with torch.no_grad():
            values, offsets, present = features.values, features.offsets, features.present
            return self._infer(values, offsets, present, self._packed, model.l2l_mask, model.config.steps)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._model.label_embedding.device.type, torch.bfloat16, enabled=self._low)
