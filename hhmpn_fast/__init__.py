"""HHMPN message passing over packed ragged modalities: fused kernels, the model, the trainer.

Names are handed on when first asked for, so that `import hhmpn_fast` is light and `hhmpn_fast.info` runs without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hhmpn_fast.backends import explain, use_backend
    from hhmpn_fast.config import HHMPNConfig, TrainingConfig, preset
    from hhmpn_fast.data.store import Dataset
    from hhmpn_fast.errors import InputError
    from hhmpn_fast.frozen import Frozen, freeze
    from hhmpn_fast.graph import CudaGraphs, GraphedInference, GraphedStep
    from hhmpn_fast.model import HHMPN
    from hhmpn_fast.ragged import Ragged
    from hhmpn_fast.reference import Reference
    from hhmpn_fast.train.checkpoint import Weights
    from hhmpn_fast.train.trainer import Trainer

__version__ = "0.1.0"

_HOMES = {
    "CudaGraphs": "graph",
    "Dataset": "data.store",
    "Frozen": "frozen",
    "GraphedInference": "graph",
    "GraphedStep": "graph",
    "HHMPN": "model",
    "HHMPNConfig": "config",
    "InputError": "errors",
    "Ragged": "ragged",
    "Reference": "reference",
    "Trainer": "train.trainer",
    "TrainingConfig": "config",
    "Weights": "train.checkpoint",
    "explain": "backends",
    "freeze": "frozen",
    "preset": "config",
    "use_backend": "backends",
}
__all__ = [
    "CudaGraphs",
    "Dataset",
    "Frozen",
    "GraphedInference",
    "GraphedStep",
    "HHMPN",
    "HHMPNConfig",
    "InputError",
    "Ragged",
    "Reference",
    "Trainer",
    "TrainingConfig",
    "Weights",
    "__version__",
    "explain",
    "freeze",
    "preset",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hhmpn_fast' has no attribute '{name}'")
    return getattr(importlib.import_module(f"hhmpn_fast.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
