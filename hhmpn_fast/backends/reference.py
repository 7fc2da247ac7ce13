"""The `reference` backend: `hhmpn_fast.reference` over a packed batch, one sample after another."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hhmpn_fast.backends.record import Backend, Body
from hhmpn_fast.config import HHMPNConfig
from hhmpn_fast.masks import philox_keep
from hhmpn_fast.ops.dropout import Dropout
from hhmpn_fast.ragged import Ragged
from hhmpn_fast.reference import READINGS, Place, Reference


def model(
    config: HHMPNConfig,
    weights: Mapping[str, Tensor],
    features: Ragged,
    label_mask: Tensor | None = None,
    dropout: Dropout | None = None,
) -> Tensor:
    """Logits (P, B, L) of a batch; weights by the names of the model's state dict."""
    keep = None if dropout is None else philox_keep(dropout.p, *dropout.rng.tolist())
    starts = features.offsets.tolist()
    batch, out = features.batch_size, []
    for b in range(batch):
        first = [starts[m * batch + b] for m in range(len(features.names))]
        stops = [starts[m * batch + b + 1] for m in range(len(features.names))]
        base = [starts[m * batch] for m in range(len(features.names))]
        sample = [v[i - o : j - o] for v, i, j, o in zip(features.values, first, stops, base)]
        place = Place(b, batch, first, starts[-1])
        out.append(torch.stack(Reference(config, weights, label_mask, keep, place)(sample)))
    if not out:
        return features.values[0].new_zeros(config.predictions, 0, len(config.labels))
    return torch.stack(out, 1)


BACKEND = Backend(
    "reference",
    device="cpu",
    ops={"model": Body(model, READINGS)},
    unavailable=lambda device: None,
    describe=lambda: {"whole models": "only, one sample at a time"},
    lacks="the reference runs whole models, one sample at a time; it has no single ops",
)
