"""Predicted GPU times: bytes and FLOP of every launch of a forward pass over the rates of a datasheet.

Rule, the same for everybody: a launch reads every tensor it touches once and writes its outputs once; what is read
again comes from cache; a launch takes the longer of its bytes and its FLOP at full rate; launches follow each other.
Nothing here was measured; what was stands in docs/gpu/measured.md.

    ours        q = x A, attention over x itself, update; no key, no value, no padding
    separate    FlashAttention-varlen: Q, K and V of every node in one product, all groups in one launch, then update
    padded      SDPA on every modality padded to its longest sequence, keys and values separate
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

LIMIT = 0.75  # F2F's traffic, projections and attention, over that of separate keys and values


@dataclass(frozen=True)
class Part:
    """A GPU's datasheet: bytes a second, FLOP a second for bf16 and for tf32, dense."""

    name: str
    bytes: float
    bf16: float
    tf32: float


PARTS = (
    Part("A100", 2.039e12, 312e12, 156e12),
    Part("H100", 3.35e12, 989e12, 495e12),
    Part("MI300X", 5.3e12, 1307e12, 654e12),
)


@dataclass(frozen=True)
class Step:
    """One launch: elements moved (of the node dtype) and FLOP."""

    name: str
    elements: float
    flop: float


def _f2f(lengths: Tensor, d: int, way: str) -> list[Step]:
    """Eqs 9-10. lengths (M, B)."""
    modalities, batch = lengths.shape
    longest = lengths.max(1).values
    if way == "padded":
        lengths = longest[:, None].expand(modalities, batch)
    n, t = float(lengths.sum()), lengths.sum(0).double()
    pairs = float((t * t).sum())
    nd, w = n * d, float(d * d)
    if way == "ours":
        return [
            Step("f2f projection", 2 * nd + w, 2 * n * w),
            Step("f2f attention", (2 + modalities) * nd, 4 * d * pairs),
            Step("f2f update", (2 + modalities) * nd + (modalities + 2) * w, 2 * n * w * (modalities + 2)),
        ]
    return [
        Step("f2f projection", 4 * nd + 3 * w, 6 * n * w),
        Step("f2f attention", (3 + modalities) * nd, 4 * d * pairs),
        Step("f2f update", (2 + modalities) * nd + (modalities + 1) * w, 2 * n * w * (modalities + 1)),
    ]


def _label_step(lengths: Tensor, d: int, labels: int, way: str) -> list[Step]:
    """Eqs 11-17 of one step."""
    modalities, batch = lengths.shape
    if way == "padded":
        lengths = lengths.max(1).values[:, None].expand(modalities, batch)
    n, w = float(lengths.sum()), float(d * d)
    fused = float(batch * labels)
    rows = fused * modalities
    read = [Step("f2l attention", (fused + n + rows) * d, 4 * d * labels * n)]
    inner = [Step("l2l attention", 3 * rows * d, 4 * d * labels * rows)]
    if way == "ours":
        f2l = [Step("f2l projection", 2 * fused * d + w, 2 * fused * w), *read]
        f2l += [Step("f2l update", (fused + 2 * rows) * d + 3 * w, 6 * rows * w)]
        l2l = [Step("l2l projection", 2 * rows * d + w, 2 * rows * w), *inner]
        l2l += [Step("l2l update", 3 * rows * d + 3 * w, 6 * rows * w)]
    else:
        f2l = [
            Step("f2l projection", (2 * fused + 3 * n) * d + 3 * w, 2 * fused * w + 4 * n * w),
            Step("f2l attention", (fused + 2 * n + rows) * d, 4 * d * labels * n),
            Step("f2l update", (fused + 2 * rows) * d + 2 * w, 4 * rows * w),
        ]
        l2l = [
            Step("l2l projection", 4 * rows * d + 3 * w, 6 * rows * w),
            Step("l2l attention", 4 * rows * d, 4 * d * labels * rows),
            Step("l2l update", 3 * rows * d + 2 * w, 4 * rows * w),
        ]
    return [*f2l, *l2l, Step("readout", (rows + fused) * d, 4 * rows * d)]


def forward(lengths: Tensor, d: int, labels: int, steps: int, way: str) -> list[Step]:
    """All launches of a forward pass after the embeddings, which all ways share."""
    return _f2f(lengths, d, way) + steps * _label_step(lengths, d, labels, way)


def seconds(launches: list[Step], part: Part, dtype: str) -> float:
    """Predicted time of launches that follow each other."""
    size, rate = (2, part.bf16) if dtype == "bf16" else (4, part.tf32)
    return sum(max(s.elements * size / part.bytes, s.flop / rate) for s in launches)


def f2f_megabytes(lengths: Tensor, d: int, way: str) -> tuple[float, float, float]:
    """Megabytes in bf16 of F2F's projections, attention and update: "ours", "separate" or "launch a group".

    separate reads its queries once for all groups; "launch a group" is separate with a launch, and a reading of the
    queries, a group: what FlashAttention-varlen, which takes one key set a call, does.
    """
    steps = _f2f(lengths, d, "ours" if way == "ours" else "separate")
    projections, attention, update = (s.elements * 2e-6 for s in steps)
    if way == "launch a group":
        attention += float(lengths.sum()) * d * (lengths.shape[0] - 1) * 2e-6
    return projections, attention, update
