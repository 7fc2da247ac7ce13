"""A model for inference only: copies of its weights, absorbed and, where a backend infers it whole, packed, once.

It sees no later change of the model it came from, so no call has to ask whether anything changed.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from hhmpn_fast import backends
from hhmpn_fast.blocks import Block
from hhmpn_fast.errors import InputError
from hhmpn_fast.model import HHMPN
from hhmpn_fast.ragged import Ragged


class Frozen:
    """`freeze(model)`: called with a `Ragged` batch it returns what the model in eval mode does, logits (P, B, L).

    Where a backend infers a model of this configuration as one op, it does so to the bit.

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
        self._device = model.label_embedding.device.type
        self._model = copy.deepcopy(model).eval().requires_grad_(False)
        backend, self._infer, _ = backends.plan(self._model.config, self._device, self.dtype)["infer"]
        self._choices = (backends.current(), backend)  # under which the same backend infers it
        with torch.no_grad(), self._autocast():
            for block in self._model.modules():
                if isinstance(block, Block):
                    block.hold()
        self._packed = None
        if self._infer is not None:
            pack = backends.record(backend).ops["pack"].run
            self._packed = pack(self._model.weights(), self.dtype)

    def __call__(self, features: Ragged) -> Tensor:
        """Logits (P, B, L) of a packed batch."""
        model = self._model
        if self._infer is None or backends.current() not in self._choices or features.device.type != self._device:
            with torch.no_grad(), self._autocast():
                return model(features)
        features = model.checked(features)
        with torch.no_grad():
            values, offsets, present = features.values, features.offsets, features.present
            return self._infer(values, offsets, present, self._packed, model.l2l_mask, model.config.steps)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device, torch.bfloat16, enabled=self._low)


def freeze(model: HHMPN, dtype: torch.dtype | None = None) -> Frozen:
    """A copy of a model for inference only, whose weights are absorbed and packed once; see `Frozen`."""
    return Frozen(model, dtype)
