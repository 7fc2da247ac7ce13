"""A run's state and a trained model on disk: `Progress` and its tensors in a checkpoint, and `Weights`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hhmpn_fast.config import HHMPNConfig, TrainingConfig
from hhmpn_fast.errors import InputError
from hhmpn_fast.files import decoding, read_tensors, write_tensors
from hhmpn_fast.model import HHMPN

FORMAT = "hhmpn_fast weights 1"


@dataclass(frozen=True)
class Best:
    """The epoch that is kept, counted from 1, its selection score, and the threshold tuned on its validation."""

    epoch: int = -1
    score: float = -math.inf
    threshold: float = 0.5


@dataclass
class Progress:
    """How far a run has come: all of its state that is no tensor, as it stands in a checkpoint's header.

    epoch: finished epochs.  batch: batches of the present one that are done.  step: batches done in all.
    loss_sum: over the present epoch's batches.  history: every finished epoch's line of metrics.jsonl.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    best: Best = field(default_factory=Best)
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        counts = (self.epoch, self.batch, self.step)
        if not all(isinstance(c, int) and c >= 0 for c in counts) or not isinstance(self.history, list):
            raise TypeError(f"epoch, batch and step are {counts}; expected whole numbers, and a list as history")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, which has no infinity: a run without a finished epoch has no best one."""
        return dataclasses.asdict(self) | ({"best": None} if self.best.epoch < 0 else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Progress:
        """The inverse of `to_dict`; further entries are left alone."""
        own = {f.name: values[f.name] for f in dataclasses.fields(cls)}
        return cls(**own | {"best": Best(**own["best"]) if own["best"] else Best()})


def joined(**groups: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of several groups under names GROUP.NAME."""
    return {f"{group}.{k}": v for group, tensors in groups.items() for k, v in tensors.items()}


def group(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of one group, by their own names."""
    return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's moments and step counts as NUMBER.NAME, by parameter number."""
    states = optimizer.state_dict()["state"]
    return {f"{i}.{name}": value for i, state in states.items() for name, value in state.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors` for the same parameters in the same order, on whichever device they are.

    The states alone: the parameter groups hold tensors that a step writes, which loading would replace by copies.
    """
    parameters = dict(enumerate(p for options in optimizer.param_groups for p in options["params"]))
    for key, value in tensors.items():
        i, _, name = key.partition(".")
        parameter = parameters[int(i)]
        optimizer.state[parameter][name] = value.to(parameter.device, copy=True)


@dataclass(frozen=True)
class Weights:
    """A trained model with what is needed to use it on new samples.

    statistics: mean and sd of the standardised modalities.  thresholds: name -> threshold, "tuned" among them.
    about: data fingerprint, chosen epoch, version.
    """

    model: HHMPN
    training: TrainingConfig
    statistics: dict[str, tuple[Tensor, Tensor]]
    thresholds: dict[str, float]
    about: dict[str, Any]

    def save(self, path: Path) -> None:
        """One safetensors file: model.*, statistics.*, and the configuration in its header."""
        tensors = joined(model=self.model.state_dict())
        for name, (mean, sd) in self.statistics.items():
            tensors |= {f"statistics.{name}.mean": mean, f"statistics.{name}.sd": sd}
        header = {
            "format": FORMAT,
            "config": self.model.config.to_dict(),
            "training": self.training.to_dict(),
            "thresholds": self.thresholds,
            "statistics": list(self.statistics),
            "about": self.about,
        }
        write_tensors(path, tensors, header)

    @classmethod
    def load(cls, path: Path) -> Weights:
        """Reads what `save` wrote, onto the host; refuses anything else in words."""
        tensors, header = read_tensors(Path(path), "weights")
        if header.get("format") != FORMAT:
            raise InputError(f"weights '{path}': format {header.get('format')!r}; expected '{FORMAT}'.")
        with decoding(path, "weights"):
            config, training = HHMPNConfig.from_dict(header["config"]), TrainingConfig.from_dict(header["training"])
            model = HHMPN(config, tensors.get("model.label_mask"))
            try:
                model.load_state_dict(group(tensors, "model"))
            except RuntimeError as error:
                said = " ".join(str(error).split())
                raise InputError(f"weights '{path}': do not fit their own configuration ({said}).") from None
            held = header["statistics"]
            statistics = {n: (tensors[f"statistics.{n}.mean"], tensors[f"statistics.{n}.sd"]) for n in held}
            return cls(model.eval(), training, statistics, header["thresholds"], header["about"])
