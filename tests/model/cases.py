"""Random ragged batches and configurations, shared by the tests of the model and of its backends."""

from __future__ import annotations

import torch

from hhmpn_fast import Ragged
from hhmpn_fast.config import HHMPNConfig
from hhmpn_fast.model import HHMPN


def random_lengths(generator: torch.Generator, modalities: int, batch: int, longest: int) -> torch.Tensor:
    """Lengths 0..longest with many empty modalities, and no sample without a node."""
    lengths = torch.randint(0, longest + 1, (modalities, batch), generator=generator)
    lengths[torch.rand(modalities, batch, generator=generator) < 0.2] = 0
    for b in (lengths.sum(0) == 0).nonzero().flatten():
        lengths[int(torch.randint(modalities, (1,), generator=generator)), b] = 1
    return lengths


def random_batch(
    generator: torch.Generator, sizes: dict[str, int], batch: int, longest: int, dtype: torch.dtype = torch.float64
) -> Ragged:
    """A batch with standard normal features."""
    lengths = random_lengths(generator, len(sizes), batch, longest)
    values = tuple(
        torch.randn(int(row.sum()), size, generator=generator, dtype=dtype)
        for row, size in zip(lengths, sizes.values())
    )
    return Ragged(tuple(sizes), values, lengths)


def random_model(seed: int, dtype: torch.dtype = torch.float64, **changes: object) -> tuple[HHMPN, torch.Generator]:
    """A small model of random sizes with every parameter random, biases too."""
    generator = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    sizes = {f"m{i}": pick(1, 7) for i in range(pick(1, 5))}
    labels = tuple(f"l{i}" for i in range(pick(1, 20)))
    config = HHMPNConfig(**{"modalities": sizes, "labels": labels, "dim": 12, "steps": pick(1, 4), **changes})
    mask = None
    if config.label_graph == "prior":
        count = len(config.labels)
        mask = (torch.rand(count, count, generator=generator) < 0.4) | torch.eye(count, dtype=torch.bool)
    model = HHMPN(config, mask).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            # States that neither vanish nor explode over the steps, so that rounding is not amplified.
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype) * 0.5 * config.dim**-0.5)
    return model, generator
