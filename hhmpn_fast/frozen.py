"""A model for inference only: copies of its weights, absorbed and, where a backend infers it whole, packed, once.

It sees no later change of the model it came from, so no call has to ask whether anything changed.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from hhmpn_fast import backends
from hhmpn_fast.blocks import Block
from hhmpn_fast.bucket import Buffered
from hhmpn_fast.errors import InputError
from hhmpn_fast.graph import CudaGraphs, GraphedInference, why_not_captured
from hhmpn_fast.model import HHMPN
from hhmpn_fast.ragged import Ragged


class Frozen:
    """`freeze(model)`: called with a `Ragged` batch it returns what the model in eval mode does, logits (P, B, L).

    Where a backend infers a model of this configuration as one op, it does so to the bit.

    Args:
        model: what to copy.
        dtype: what to compute in: the parameters' own (the default), or bfloat16 for what autocast would give.
        graph: whether calls are replayed from CUDA graphs (`hhmpn_fast.graph`), copies of the logits given; None is
            yes wherever the model can be captured.

    Raises:
        InputError: any other dtype; `graph` where nothing can be captured.
    """

    def __init__(self, model: HHMPN, dtype: torch.dtype | None = None, graph: bool | None = None) -> None:
        own = model.label_embedding.dtype
        self.dtype = own if dtype is None else dtype
        if self.dtype not in (own, torch.bfloat16):
            raise InputError(f"dtype: found {self.dtype}; expected {own}, the parameters' own, or torch.bfloat16.")
        self._low = self.dtype != own
        self._device = model.label_embedding.device.type
        self._model = copy.deepcopy(model).eval().requires_grad_(False)
        backend, self._infer, _ = backends.plan(self._model.config, self._device, self.dtype)["infer"]
        self._chosen, self._choices = backends.current(), (backends.current(), backend)  # the same backend infers it
        with torch.no_grad(), self._autocast():
            for block in self._model.modules():
                if isinstance(block, Block):
                    block.hold()
        self._packed = None
        if self._infer is not None:
            pack = backends.record(backend).ops["pack"].run
            self._packed = pack(self._model.weights(), self.dtype)
        self.graphs = self._graphs(model.label_embedding.device, graph)

    def __call__(self, features: Ragged) -> Tensor:
        """Logits (P, B, L) of a packed batch."""
        # Graphs hold the backend that was chosen when they were made; somebody else's capture takes the call itself.
        own = self.graphs is not None and backends.current() == self._chosen
        return self.graphs(features) if own and not torch.cuda.is_current_stream_capturing() else self._run(features)

    def _graphs(self, device: torch.device, asked: bool | None) -> GraphedInference | None:
        if asked is False:
            return None
        reason = why_not_captured(self._model.config, device, self.dtype)
        if reason is None:
            return GraphedInference(self._run, device, CudaGraphs(device))
        if asked:
            raise InputError(f"freeze: asked for a graph, but {reason}.")
        return None

    def _run(self, features: Ragged | Buffered) -> Tensor:
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


def freeze(model: HHMPN, dtype: torch.dtype | None = None, graph: bool | None = None) -> Frozen:
    """A copy of a model for inference only, whose weights are absorbed and packed once; see `Frozen`."""
    return Frozen(model, dtype, graph)
