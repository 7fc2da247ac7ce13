"""200 seeded models with a ragged batch each, over every reading of `HHMPNConfig`, for comparing two builds bit by bit.

    plain      the equations as printed, whose phases the kernels run whole
    field=x    one field away from them, every choice of every field, several times
    without=x  the ablations of Table 2, one and two at a time
    preset=x   paper, tied and lamp
    drawn      several fields at once, drawn at random

Sizes are small: d 8..48 with odd widths among them, M 1..4, L 1..9, T 1..4, B 0..6, lengths mostly 0..12 with 0, 1 and
the neighbours of tile sizes among them. Only the public interface is used, so that the cases outlive any change inside.
Numbers are integers of numpy's frozen legacy stream times a power of two: the same on every machine and version.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hhmpn_fast import HHMPN, HHMPNConfig, Ragged, preset

COUNT, FAST = 200, 5  # every FAST-th case is in the fast subset
DTYPES = ("float32", "float32", "float64", "bfloat16", "autocast")  # autocast: float32 parameters, bfloat16 states
DIMS = (8, 9, 11, 12, 13, 16, 17, 20, 23, 24, 31, 32, 33, 40, 45, 48)
TILES = (7, 8, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 95, 96, 97, 127, 128, 129)
CHOICES: dict[str, tuple[Any, ...]] = {
    "f2f_residual": ("node", "proj"),
    "f2f_softmax": ("sample",),
    "exclude_self": (True,),
    "f2f_layers": (2, 3),
    "feedback": (False,),
    "sharing": ("tied", "per_step_and_modality"),
    "heads": (2, 4),
    "norm": ("post",),
    "dropout_place": ("lamp",),
    "embed_bias": (False,),
    "embed_activation": ("relu", "tanh"),
    "positions": ("first", "all"),
    "readout_scorer": ("per_step",),
    "output_weight": ("tied",),
    "output_bias": (True,),
    "intermediate": ("lamp", "none"),
    "intermediate_weight": (0.0, 0.75),
    "empty_modality": ("keep",),
    "label_graph": ("prior",),
    "update_hidden": ("narrow", "wide"),
}
ABLATIONS = ("f2f", "f2l", "l2l", "m2l")
# Fields that the fused ops hold, for most of their choices: drawn beside the equations' own.
WHOLE = ("f2f_layers", "sharing", "embed_bias", "output_weight", "intermediate_weight", "label_graph")


@dataclass(frozen=True)
class Case:
    """One model, its batch and what is asked of them.

    Attributes:
        number: 0..COUNT-1; every number that the case needs comes from it.
        kind: which of the module's groups, as text.
        dtype: one of DTYPES.
        training: whether dropout is drawn, where its rate is not 0.
        base: the preset it starts from.
        changes: fields of the configuration.
        lengths: (M, B) nodes of every modality and sample.
        sizes: feature size of every modality.
        labels: L.
        asks: beside logits, loss and gradients: "features", "eval", "frozen", "frozen bf16", "label weights".
    """

    number: int
    kind: str
    dtype: str
    training: bool
    base: str
    changes: dict[str, Any]
    lengths: np.ndarray = field(repr=False)
    sizes: tuple[int, ...]
    labels: int
    asks: tuple[str, ...]

    @property
    def name(self) -> str:
        """What a message calls it: number, kind, dtype, sizes."""
        samples, mode = self.lengths.shape[1], "training" if self.training else "eval"
        shape = f"d {self.changes['dim']}, M {len(self.sizes)}, L {self.labels}, B {samples}"
        return f"case {self.number} ({self.kind}; {self.dtype}, {mode}, {shape})"

    @property
    def held(self) -> torch.dtype:
        """What parameters and features are held in."""
        return torch.float32 if self.dtype == "autocast" else getattr(torch, self.dtype)

    def config(self) -> HHMPNConfig:
        """The configuration."""
        modalities = {f"m{i}": size for i, size in enumerate(self.sizes)}
        return preset(self.base, modalities, tuple(f"l{i}" for i in range(self.labels)), **self.changes)

    def model(self) -> HHMPN:
        """The model, every parameter random, those that start at zero too."""
        config, count = self.config(), self.labels
        mask = None
        if config.label_graph == "prior":
            drawn = torch.from_numpy(self._stream("mask").randint(0, 10, (count, count)) < 4)
            mask = drawn | torch.eye(count, dtype=torch.bool)
        with torch.random.fork_rng(devices=[]):
            model = HHMPN(config, mask)
        scale = 2.0 ** -round(np.log2(config.dim) / 2)  # states neither vanish nor explode over the steps
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(self._numbers(name, tuple(parameter.shape), scale))
        return model.to(self.held).train(self.training)

    def batch(self) -> Ragged:
        """The features."""
        names = [f"m{i}" for i in range(len(self.sizes))]
        values = [
            self._numbers(f"features {n}", (int(row.sum()), e), 1.0).to(self.held)
            for n, row, e in zip(names, self.lengths, self.sizes)
        ]
        return Ragged(tuple(names), tuple(values), torch.from_numpy(self.lengths))

    def targets(self) -> Tensor:
        """(B, L) of 0 and 1."""
        drawn = self._stream("targets").randint(0, 2, (self.lengths.shape[1], self.labels))
        return torch.from_numpy(drawn).to(torch.float64 if self.dtype == "float64" else torch.float32)

    def label_weights(self) -> Tensor | None:
        """(L,) in eighths, or None."""
        if "label weights" not in self.asks:
            return None
        drawn = self._stream("label weights").randint(4, 24, self.labels)
        return torch.from_numpy(drawn / 8.0).to(self.targets().dtype)

    def _stream(self, name: str) -> np.random.RandomState:
        return np.random.RandomState(zlib.crc32(f"{self.number} {name}".encode()))

    def _numbers(self, name: str, shape: tuple[int, ...], scale: float) -> Tensor:
        """Multiples of scale / 1024 in -scale..scale."""
        return torch.from_numpy(self._stream(name).randint(-1024, 1025, shape) * (scale / 1024))


def cases() -> list[Case]:
    """All COUNT of them, always the same."""
    kinds: list[tuple[str, str, dict[str, Any]]] = []
    for name, values in CHOICES.items():
        for value in values:
            kinds += [(f"{name}={value}", "paper", {name: value})] * 3
    kinds += [(f"without={a}", "paper", {"without": (a,)}) for a in ABLATIONS for _ in range(4)]
    pairs = [(a, b) for i, a in enumerate(ABLATIONS) for b in ABLATIONS[i + 1 :]]
    kinds += [(f"without={'+'.join(pair)}", "paper", {"without": pair}) for pair in pairs]
    kinds += [(f"preset={name}", name, {}) for name in ("paper", "tied", "lamp") for _ in range(5)]
    kinds += [("plain", "paper", {})] * ((COUNT - len(kinds)) // 2)
    kinds += [("drawn", "paper", {})] * (COUNT - len(kinds))
    return [_case(number, *kind) for number, kind in enumerate(kinds)]


def _case(number: int, kind: str, base: str, changes: dict[str, Any]) -> Case:
    draw = np.random.RandomState(7000 + number)

    def one(values: Any) -> Any:
        return values[draw.randint(len(values))]

    changes = dict(changes)
    for name in WHOLE if kind == "plain" else CHOICES:
        if kind in ("plain", "drawn") and draw.randint(4) == 0:
            changes[name] = one(CHOICES[name])
    if kind == "drawn" and draw.randint(3) == 0:
        changes["without"] = (one(ABLATIONS),)
    modalities, labels, dim = one((1, 2, 2, 3, 3, 4)), draw.randint(1, 10), one(DIMS)
    heads = changes.get("heads", 4 if base == "lamp" else 1)
    changes["dim"] = dim - dim % heads
    if changes.get("update_hidden") in ("narrow", "wide"):
        changes["update_hidden"] = changes["dim"] + (5 if changes["update_hidden"] == "wide" else -3)
    if "positions" in changes:
        places = range(1 if changes["positions"] == "first" else modalities)
        changes["positions"] = tuple(f"m{i}" for i in places)
    changes["steps"], changes["dropout"] = draw.randint(1, 5), one((0.0, 0.25, 0.25, 0.5))
    extras = ("features", "eval", "frozen", "frozen bf16", "label weights")
    asks = tuple(a for a in extras if draw.randint(3) == 0)
    return Case(
        number,
        kind,
        DTYPES[(number + number // 15) % len(DTYPES)],
        bool(draw.randint(4)),
        base,
        changes,
        _lengths(draw, modalities, 0 if number % 40 == 9 else draw.randint(1, 7)),
        tuple(int(e) for e in draw.randint(1, 20, modalities)),
        labels,
        asks,
    )


def _lengths(draw: np.random.RandomState, modalities: int, batch: int) -> np.ndarray:
    """int64 (M, B): many empty segments, some at the edge of a tile, none of a sample's all empty."""
    lengths = draw.randint(0, one_of(draw, (4, 13, 13, 30)), (modalities, batch))
    lengths[draw.rand(modalities, batch) < 0.15] = 0
    if batch and draw.randint(3) == 0:
        lengths[draw.randint(modalities), draw.randint(batch)] = one_of(draw, TILES)
    empty = np.flatnonzero(lengths.sum(0) == 0)
    lengths[draw.randint(0, modalities, len(empty)), empty] = 1
    return lengths.astype(np.int64)


def one_of(draw: np.random.RandomState, values: tuple[int, ...]) -> int:
    """One of the values."""
    return values[draw.randint(len(values))]
