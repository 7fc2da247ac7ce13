"""Every op of a backend at small shapes, forward and backward: what `gpu-sanitize` runs under compute-sanitizer.

    python -m bench.gpu.small --backend triton|cuda|torch [--device cuda]

A model of d = 64 on a ragged batch with lengths of 0, 1 and more than a tile, in float32 and bfloat16, with and without
dropout: a training step and an inference call each. Fails where a result is not finite.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hhmpn_fast import Ragged
from hhmpn_fast.backends import use_backend
from hhmpn_fast.config import HHMPNConfig
from hhmpn_fast.model import HHMPN

SIZES = {"text": 9, "vision": 5}
LENGTHS = ((70, 0, 1, 3), (1, 2, 0, 40))
LABELS, DIM, STEPS = 6, 64, 2
DTYPES = (torch.float32, torch.bfloat16)


def case(dtype: torch.dtype, p: float) -> tuple[HHMPN, Ragged, Tensor]:
    """A model with random parameters, a batch and its targets, on the CPU."""
    generator = torch.Generator().manual_seed(1)
    model = HHMPN(HHMPNConfig(SIZES, tuple(f"label{n}" for n in range(LABELS)), dim=DIM, steps=STEPS, dropout=p))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5 * DIM**-0.5)
    lengths = torch.tensor(LENGTHS)
    values = (torch.randn(int(n), s, generator=generator) for n, s in zip(lengths.sum(1), SIZES.values()))
    batch = Ragged(tuple(SIZES), tuple(v.to(dtype) for v in values), lengths)
    targets = (torch.rand(lengths.shape[1], LABELS, generator=generator) < 0.5).to(dtype)
    return model.to(dtype), batch, targets


def results(device: str, backend: str) -> Iterator[tuple[str, list[Tensor]]]:
    """(the call in words, what it gives)."""
    for dtype in DTYPES:
        for p in (0.0, 0.3):
            model, batch, targets = case(dtype, p)
            model, batch, targets = model.to(device), batch.to(device), targets.to(device)
            words = f"{str(dtype).removeprefix('torch.')}, dropout {p}"
            with use_backend(backend):
                loss = model.train().loss(model(batch), targets)
                grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
                yield f"training step, {words}", [loss, *(g for g in grads if g is not None)]
                with torch.no_grad():
                    yield f"inference, {words}", [model.eval()(batch)]


def main(given: Sequence[str] | None = None) -> int:
    """Runs the calls; 1 where a result is not finite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--device", default="cuda")
    chosen = parser.parse_args(given)
    count, wrong = 0, []
    for words, found in results(chosen.device, chosen.backend):
        count += 1
        wrong += [] if all(bool(torch.isfinite(t).all()) for t in found) else [words]
    print("\n".join(f"not finite: {words}" for words in wrong) or f"{count} calls on {chosen.backend}, all finite")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
