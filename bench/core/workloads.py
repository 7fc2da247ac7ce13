"""The workloads: seeded ragged batches with the length distributions of the field's data sets, and a model for each.

    mosei-aligned     6 labels   text 300, vision 35, audio 74, one length a sample      the CMU-MOSEI split, aligned
    mosei-unaligned   6 labels   the same modalities, each at its own rate
    nemu             12 labels   lyrics 300, comments 300, audio 74, vision 2048         song moods, four modalities

Lengths are log-normal with a given mean and sigma of the logarithm, rounded and clipped to 1..longest. `<name>-missing`
drops every modality of every sample with probability 0.2, never all of a sample's. `length-<n>` is samples of n nodes
and `fill-<percent>` a batch whose padded form would be filled to about that share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hhmpn_fast import InputError, Ragged
from hhmpn_fast.config import HHMPNConfig
from hhmpn_fast.model import HHMPN

DIM, STEPS, BATCH, MISSING = 256, 3, 64, 0.2


@dataclass(frozen=True)
class Modality:
    """One modality: feature size and the distribution of its lengths; sigma 0 makes every length the mean."""

    name: str
    size: int
    mean: float
    sigma: float
    longest: int


@dataclass(frozen=True)
class Workload:
    """A kind of batch. aligned: all modalities of a sample share one length. missing: share of modalities dropped."""

    name: str
    labels: int
    modalities: tuple[Modality, ...]
    aligned: bool = False
    missing: float = 0.0

    def lengths(self, batch: int, seed: int = 0) -> Tensor:
        """int64 (M, B)."""
        generator = torch.Generator().manual_seed(seed)
        rows = [_lengths(m, batch, generator) for m in self.modalities]
        table = torch.stack(rows[:1] * len(rows) if self.aligned else rows)
        if self.missing:
            table = _without_some(table, self.missing, generator)
        return table

    def batch(self, batch: int = BATCH, seed: int = 0, dtype: torch.dtype = torch.float32) -> Ragged:
        """B samples with standard normal features."""
        lengths = self.lengths(batch, seed)
        generator = torch.Generator().manual_seed(seed + 1)
        values = tuple(
            torch.randn(int(row.sum()), m.size, generator=generator, dtype=torch.float32).to(dtype)
            for m, row in zip(self.modalities, lengths)
        )
        return Ragged(tuple(m.name for m in self.modalities), values, lengths)

    def targets(self, batch: int = BATCH, seed: int = 0) -> Tensor:
        """float32 (B, L) of 0 and 1."""
        generator = torch.Generator().manual_seed(seed + 2)
        return (torch.rand(batch, self.labels, generator=generator) < 0.3).float()

    def model(self, seed: int = 0, *, dim: int = DIM, steps: int = STEPS, dropout: float = 0.0) -> HHMPN:
        """HHMPN of d = 256, T = 3 with the paper's equations; biases are random, so that a peer cannot forget them."""
        labels = tuple(f"label{i}" for i in range(self.labels))
        config = HHMPNConfig({m.name: m.size for m in self.modalities}, labels, dim=dim, steps=steps, dropout=dropout)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = HHMPN(config)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name.endswith((".b1", ".b2", ".bias")):
                        parameter.normal_(0.0, 0.05)
        return model


def _lengths(m: Modality, batch: int, generator: torch.Generator) -> Tensor:
    normal = torch.randn(batch, generator=generator, dtype=torch.float64)
    drawn = torch.exp(math.log(m.mean) - m.sigma**2 / 2 + m.sigma * normal)
    return drawn.round().long().clamp(1, m.longest)


def _without_some(table: Tensor, share: float, generator: torch.Generator) -> Tensor:
    drop = torch.rand(table.shape, generator=generator) < share
    kept = torch.randint(table.shape[0], (table.shape[1],), generator=generator)
    drop[kept, torch.arange(table.shape[1])] &= ~drop.all(0)
    return table.masked_fill(drop, 0)


_ALIGNED = tuple(Modality(n, e, 19.1, 0.7, 128) for n, e in (("text", 300), ("vision", 35), ("audio", 74)))
_BASE = (
    Workload("mosei-aligned", 6, _ALIGNED, aligned=True),
    Workload(
        "mosei-unaligned",
        6,
        (
            Modality("text", 300, 19.1, 0.7, 128),
            Modality("vision", 35, 109.0, 0.7, 500),
            Modality("audio", 74, 182.0, 0.7, 500),
        ),
    ),
    Workload(
        "nemu",
        12,
        (
            Modality("lyrics", 300, 32.0, 0.6, 128),
            Modality("comments", 300, 14.0, 0.8, 64),
            Modality("audio", 74, 115.0, 0.35, 320),
            Modality("vision", 2048, 3.0, 0.6, 12),
        ),
    ),
)
NAMES = tuple(w.name for w in _BASE)
WORKLOADS = {w.name: w for base in _BASE for w in (base, replace(base, name=f"{base.name}-missing", missing=MISSING))}


def length_workload(nodes: int) -> Workload:
    """One text, one vision and one audio sequence that together hold about `nodes` nodes a sample."""
    each = max(1, round(nodes / 3))
    parts = tuple(replace(m, mean=float(each), sigma=0.0, longest=each) for m in _ALIGNED)
    return Workload(f"length-{nodes}", 6, parts, aligned=True)


def fill_workload(percent: int) -> Workload:
    """mosei-aligned with mean length 32 and a longest sequence of 32 / fill: less fill, more padding for who pads."""
    sigma = {100: 0.0, 75: 0.12, 50: 0.3, 25: 0.62, 10: 1.05}[percent]
    longest = round(32 * 100 / percent)
    parts = tuple(replace(m, mean=32.0, sigma=sigma, longest=longest) for m in _ALIGNED)
    return Workload(f"fill-{percent}", 6, parts, aligned=True)


def named(name: str) -> Workload:
    """The workload of a name; raises InputError for an unknown one."""
    if name in WORKLOADS:
        return WORKLOADS[name]
    kind, _, number = name.rpartition("-")
    if kind == "length" and number.isdigit():
        return length_workload(int(number))
    if kind == "fill" and number in ("100", "75", "50", "25", "10"):
        return fill_workload(int(number))
    raise InputError(f"workload: found '{name}'; expected one of {', '.join(WORKLOADS)}, length-<n> or fill-<percent>.")
