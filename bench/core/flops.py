"""Useful FLOP: the fewest operations known for a batch, counted from true lengths, whatever a contestant really does.

forward = sum_b min(2 d^2 T_b (M_b + 3) + 4 d T_b^2,  8 d^2 T_b + 6 d T_b^2)     F2F, the cheaper of its two equal forms
        + 2 d^2 L T sum_b (7 M_b + 1)                                            label side
        + sum_m 2 d e_m N_m                                                      embeddings
step    = 3 (forward - embeddings) + 2 embeddings             no gradient goes into the features

T_b are the nodes of sample b, M_b its modalities that hold any, d the width, L the labels, T the steps, N_m and e_m a
modality's nodes and feature size. Not counted, and small: label attention, softmax, the optimizer, products of weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from hhmpn_fast import Ragged
from hhmpn_fast.config import HHMPNConfig


@dataclass(frozen=True)
class Useful:
    """FLOP of a forward pass, by phase."""

    embed: int
    f2f: int
    labels: int

    @property
    def forward(self) -> int:
        """Inference."""
        return self.embed + self.f2f + self.labels

    @property
    def step(self) -> int:
        """A training step."""
        return 3 * (self.f2f + self.labels) + 2 * self.embed

    def of(self, mode: str) -> int:
        """`forward` of "infer", `step` of "train"."""
        return {"infer": self.forward, "train": self.step}[mode]


def useful(config: HHMPNConfig, batch: Ragged) -> Useful:
    """Useful FLOP of a forward pass of the paper's equations on a batch."""
    d, labels, steps = config.dim, len(config.labels), config.steps
    embed = sum(2 * d * v.shape[0] * v.shape[1] for v in batch.values)
    f2f = label_side = 0
    for nodes, present in zip(batch.lengths.sum(0).tolist(), (batch.lengths > 0).sum(0).tolist()):
        f2f += f2f_flop(d, nodes, present)
        label_side += 2 * d * d * labels * steps * (7 * present + 1)
    return Useful(embed, f2f, label_side)


def f2f_flop(d: int, nodes: int, modalities: int) -> int:
    """F2F of one sample: contexts of every modality through C_m, or nodes projected once and summed by weight."""
    contexts = 2 * d * d * nodes * (modalities + 3) + 4 * d * nodes**2
    projected = 8 * d * d * nodes + 6 * d * nodes**2
    return min(contexts, projected)


def attention_flop(d: int, query_lengths: list[int], key_lengths: list[int]) -> int:
    """Scores and contexts of paired segments: 4 d sum q k."""
    return 4 * d * sum(q * k for q, k in zip(query_lengths, key_lengths))


def update_labels_flop(d: int, rows: int) -> int:
    """W^v, W^r and W^b on `rows` label rows."""
    return 6 * d * d * rows


def update_features_flop(d: int, nodes: int, modalities: int) -> int:
    """C_m on M contexts, W^v on their sum, W^b."""
    return 2 * d * d * nodes * (modalities + 2)


def compulsory_bytes(parameters: int, batch: Ragged, mode: str) -> int:
    """Bytes any fp32 implementation moves: features once (twice in training), weights once.

    A training step also reads the weights again, writes gradients, and Adam reads gradient, moments and weights and
    writes the latter three: ten passes over the parameters in all.
    """
    features = sum(v.numel() for v in batch.values)
    return 4 * {"infer": features + parameters, "train": 2 * features + 10 * parameters}[mode]
