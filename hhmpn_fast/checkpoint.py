"""Weights and checkpoints on disk: safetensors with JSON in the header, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hhmpn_fast.config import HHMPNConfig, TrainingConfig
from hhmpn_fast.errors import InputError
from hhmpn_fast.model import HHMPN

FORMAT = "hhmpn_fast weights 1"


def write_text(path: Path, text: str) -> None:
    """Writes a text file by renaming a finished sibling over it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Writes tensors and a JSON header by renaming a finished sibling over `path`."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        whole = {k: v.detach().contiguous() for k, v in tensors.items()}
        save_file(whole, beside, {"json": json.dumps(header)})
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read_tensors(path: Path, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the JSON header of a file that `write_tensors` wrote."""
    if not path.is_file():
        raise InputError(f"{what} '{path}': no such file; expected one that `hhmpn-fast train` wrote.")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("json", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{what} '{path}': cannot be read ({error}); expected a whole safetensors file.") from None
    if not isinstance(header, dict):
        raise InputError(f"{what} '{path}': has no header of this project; expected one `hhmpn-fast train` wrote.")
    return tensors, header


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
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
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
        """Reads what `save` wrote; refuses anything else in words."""
        tensors, header = read_tensors(Path(path), "weights")
        if header.get("format") != FORMAT:
            raise InputError(f"weights '{path}': format {header.get('format')!r}; expected '{FORMAT}'.")
        config = HHMPNConfig.from_dict(header["config"])
        model = HHMPN(config, tensors.get("model.label_mask"))
        try:
            model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        except RuntimeError as error:
            raise InputError(f"weights '{path}': do not fit their own configuration ({error}).") from None
        statistics = {n: (tensors[f"statistics.{n}.mean"], tensors[f"statistics.{n}.sd"]) for n in header["statistics"]}
        training = TrainingConfig.from_dict(header["training"])
        return cls(model.eval(), training, statistics, header["thresholds"], header["about"])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's moments and step counts by parameter number."""
    out = {}
    for i, parameter in enumerate(p for g in optimizer.param_groups for p in g["params"]):
        for name, value in optimizer.state.get(parameter, {}).items():
            out[f"optimizer.{i}.{name}"] = value
    return out


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, for the same parameters in the same order."""
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, i, name = key.split(".")
            optimizer.state[parameters[int(i)]][name] = value.clone()
