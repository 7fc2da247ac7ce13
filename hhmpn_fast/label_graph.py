"""Which labels read which (Eqs 13-14): the readings of `label_graph` that need the training labels."""

from __future__ import annotations

import torch
from torch import Tensor

PRIOR_THRESHOLD = 0.2


def label_prior(labels: Tensor) -> Tensor:
    """`label_graph="prior"`, LaMP's graph: co-occurrence n_ij / sqrt(n_i n_j) >= 0.2, and every label with itself.

    Args:
        labels: (n, L) of 0 and 1, the training split's.

    Returns:
        bool (L, L), the mask that `HHMPN` takes: entry [i, j] says label i reads j.
    """
    y = labels.double()
    together, count = y.T @ y, y.sum(0)
    strength = together / torch.sqrt(count[:, None] * count[None, :]).clamp(min=1)
    return (strength >= PRIOR_THRESHOLD) | torch.eye(len(count), dtype=torch.bool)
