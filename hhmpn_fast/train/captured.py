"""The option --graph: whether the steps of a training run are replayed from CUDA graphs (docs/gpu/graphs.md)."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from hhmpn_fast.errors import InputError
from hhmpn_fast.graph import CudaGraphs, GraphedStep, why_not_captured
from hhmpn_fast.ragged import Ragged
from hhmpn_fast.train.step import Step

MODES = ("auto", "on", "off")


def add_argument(parser: argparse.ArgumentParser) -> None:
    """The option; its default takes graphs wherever they can be made."""
    said = "replay training steps from CUDA graphs, the same weights bit for bit; default: auto, where it can be done"
    parser.add_argument("--graph", choices=MODES, default="auto", help=said)


def over_buffers(step: Step, mode: str) -> Callable[[Ragged, Tensor], Tensor]:
    """What a trainer calls with every batch: the step over buffers, captured unless `mode` is "off".

    Where nothing could be captured it is the step itself.

    Raises:
        InputError: mode "on" where nothing can be captured.
    """
    own = step.model.label_embedding.dtype
    dtype = torch.bfloat16 if step.training.bf16 else own
    reason = why_not_captured(step.model.config, step.device, dtype)
    if reason is None:
        return GraphedStep(step, step.device, None if mode == "off" else CudaGraphs(step.device))
    if mode == "on":
        raise InputError(f"--graph on: {reason}.")
    return step
