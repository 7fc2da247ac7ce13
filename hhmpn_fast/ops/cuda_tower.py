"""The label tower on CUDA: all T steps in one launch, csrc/cuda/tower.cu and tower_backward.cu.

A shape that the kernel does not take (`refusal` says why) is composed from this backend's single ops: the same
mathematics, and never another backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hhmpn_fast.ops import cuda_launch
from hhmpn_fast.ops.cuda_attention import attention, dropout_args
from hhmpn_fast.ops.cuda_launch import DTYPES, launch
from hhmpn_fast.ops.cuda_update import check_dtypes, update_labels, weight_gradients
from hhmpn_fast.ops.dropout import Dropout, site
from hhmpn_fast.ops.readout import readout
from hhmpn_fast.weights import TowerWeights

ROWS = 32  # of a group: the tensor cores' tile
KEPT = ("q", "s", "g", "h", "u")


def refusal(labels: int, modalities: int, dim: int, dtype: torch.dtype, training: bool, limit: int) -> str | None:
    """Why the one-launch tower cannot take a shape on a device with `limit` bytes of shared memory a block, or None."""
    if labels > ROWS:
        return f"{labels} labels; a block holds up to {ROWS} label rows"
    need = shared_memory(labels, modalities, dim, dtype, training)
    if need > limit:
        return f"it needs {need} bytes of shared memory a block; the device has {limit}"
    return None


def shared_memory(labels: int, modalities: int, dim: int, dtype: torch.dtype, training: bool) -> int:
    """Bytes of shared memory of a block with one sample; tower.cu and tower_backward.cu lay them out."""
    size = torch.finfo(dtype).bits // 8
    pad = 16 // size
    row, slice_ = (dim + pad) * size, 32 if size == 2 else 16
    weights = 2 * max(dim * (slice_ + pad), slice_ * (dim + pad)) * size
    scores, probs = 32 * 36 * 4, 32 * (32 + pad) * size
    several = modalities * labels > ROWS
    forward = 2 * 32 * row + max(weights, (2 if size == 2 else 1) * 32 * row) + probs + scores + 4 * 128
    forward += labels * row + (labels * dim * 4 if several else 0)
    backward = 2 * 32 * row + max(weights, 2 * 32 * row) + 2 * probs + 2 * scores + 4 * 128 + 2 * labels * dim * 4
    return max(forward, backward) if training else forward


def samples_a_block(batch: int, modalities: int, labels: int, processors: int) -> int:
    """Samples that share a block's tile: as many as fit, but no processor is left without a block."""
    return max(1, min(ROWS // (modalities * labels), -(-batch // processors)))


def tower(
    z: Tensor,
    offsets: Tensor,
    present: Tensor,
    u0: Tensor,
    w: TowerWeights,
    steps: int,
    mask: Tensor | None = None,
    dropout: Dropout | None = None,
) -> Tensor:
    """Eqs 11-17 for all steps: logits (T, B, L).

    z (N, d) nodes, offsets (M*B+1,), present (M, B) bool, u0 (L, d), mask bool (L, L); w's blocks (S, ...), S = T or 1.
    """
    modalities, labels = present.shape[0], u0.shape[0]
    whole = w.f2l.query is not None and w.l2l is not None and w.wl is not None and present.shape[1] > 0
    training = torch.is_grad_enabled()
    if not whole or refusal(labels, modalities, z.shape[1], z.dtype, training, _limit(z.device)) is not None:
        return _composed(z, offsets, present, u0, w, steps, mask, dropout)
    return _Tower.apply(z, u0, w.wl, w.wo, offsets, present, steps, mask, dropout, *w.f2l, *w.l2l)


def _limit(device: torch.device) -> int:
    if cuda_launch.replaced():
        return 232448
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def _processors(device: torch.device) -> int:
    return 2 if cuda_launch.replaced() else torch.cuda.get_device_properties(device).multi_processor_count


class _Tower(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        u0: Tensor,
        wl: Tensor,
        wo: Tensor,
        offsets: Tensor,
        present: Tensor,
        steps: int,
        mask: Tensor | None,
        dropout: Dropout | None,
        *weights: Tensor,
    ) -> Tensor:
        check_dtypes("tower", z, u0, wl, wo, *weights)
        z, u0, wl, wo, *weights = (t.contiguous() for t in (z, u0, wl, wo, *weights))
        (modalities, batch), (labels, d) = present.shape, u0.shape
        offsets, present = offsets.to(torch.int32).contiguous(), present.contiguous()
        mask = None if mask is None else mask.contiguous()
        rng, limit, _, scale = dropout_args(dropout, z.device)
        samples = samples_a_block(batch, modalities, labels, _processors(z.device))
        sites = [site(kind, 0) for kind in ("f2l_attention", "f2l_update", "l2l_attention", "l2l_update")]
        sizes = [DTYPES[z.dtype], d, modalities, batch, labels, steps, weights[0].shape[0], samples, 0, limit, *sites]
        reads = [z, offsets, present, u0, wl, wo, mask, rng, *weights]
        logits = z.new_empty(steps, batch, labels, dtype=torch.float32)
        kept: list[Tensor | None] = [None] * 15
        if any(ctx.needs_input_grad):
            rows = modalities * batch * labels
            kept[0] = z.new_empty(steps, modalities, batch, labels, dtype=torch.float32)
            kept[1] = torch.empty_like(logits)
            kept[2] = z.new_empty(steps, batch, labels, d)
            for first, queries in ((3, batch * labels), (9, rows)):
                kept[first] = z.new_empty(steps, queries, d)
                kept[first + 1 : first + 5] = [z.new_empty(steps, rows, d) for _ in range(4)]
                kept[first + 5] = z.new_empty(steps, rows, dtype=torch.float32)
        launch("hh_tower_forward", reads, [logits, *kept], sizes, [scale])
        ctx.save_for_backward(*reads, *kept)
        ctx.sizes, ctx.scale = sizes, scale
        return logits.to(z.dtype)

    @staticmethod
    def backward(ctx: Any, d_logits: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("tower: the CUDA backend has no double backward.")
        saved = ctx.saved_tensors
        reads, kept = saved[:20], saved[20:]
        z, _, present, u0, _, wo = reads[:6]
        fused, f2l, l2l = kept[2], kept[3:9], kept[9:15]
        steps, batch, labels, d = fused.shape
        d_logits = d_logits.float().contiguous()
        dz = torch.zeros_like(z, dtype=torch.float32)
        du0 = z.new_empty(batch, labels, d, dtype=torch.float32)
        d_scores = torch.empty_like(kept[0])
        made = [[torch.empty_like(block[4]) for _ in range(3)] + [torch.empty_like(block[0])] for block in (f2l, l2l)]
        writes = [dz, du0, d_scores, *made[0], *made[1]]
        launch("hh_tower_backward", [*reads, d_logits, *kept], writes, ctx.sizes, [ctx.scale])

        before = torch.cat([u0.expand(1, batch, -1, -1), fused[:-1]]).view(steps, batch * labels, d)
        grads = _weight_gradients(reads[8].shape[0], (f2l, made[0], before), (l2l, made[1], f2l[4]))
        dwl = torch.einsum("r,rd->d", d_scores.flatten(), l2l[4].view(-1, d).float()).to(z.dtype)
        dwo = torch.einsum("tbl,tbld->ld", d_logits, fused.float()).to(wo.dtype)
        head = (dz.to(z.dtype), du0.sum(0).to(u0.dtype), dwl, dwo, None, None, None, None, None)
        return (*head, *grads)


def _weight_gradients(sets: int, *blocks: tuple[Sequence[Tensor], Sequence[Tensor], Tensor]) -> list[Tensor]:
    """Gradients of A, W^v, W^r, b1, W^b, b2 (S, ...) of each block (kept, made, states), q = states A."""
    pairs = []
    for i in range(sets):
        for (_, s, g, h, _, _), (dz, dh, dg, dq), states in blocks:
            # With one set for all steps its rows are the rows of every step.
            pairs += [
                (y.view(sets, -1, y.shape[-1])[i], x.view(sets, -1, x.shape[-1])[i])
                for y, x in ((states, dq), (dg, s), (dh, g), (dz, h))
            ]
    dw, db = (t.unflatten(0, (sets, len(blocks), 4)) for t in weight_gradients(pairs))
    out = []
    for b in range(len(blocks)):
        out += [dw[:, b, 0], dw[:, b, 1], dw[:, b, 2], db[:, b, 2], dw[:, b, 3], db[:, b, 3]]
    return out


def _composed(
    z: Tensor,
    offsets: Tensor,
    present: Tensor,
    u0: Tensor,
    w: TowerWeights,
    steps: int,
    mask: Tensor | None,
    dropout: Dropout | None,
) -> Tensor:
    """The tower from this backend's single ops."""
    (modalities, batch), (labels, d) = present.shape, u0.shape
    rows = batch * labels
    u = u0.expand(batch, -1, -1).reshape(rows, d)
    q_offsets = torch.arange(0, rows + 1, labels, dtype=torch.int32, device=z.device)
    own = torch.arange(0, modalities * rows + 1, labels, dtype=torch.int32, device=z.device)
    logits = []
    for t in range(steps):

        def at(kind: str, t: int = t) -> Dropout | None:
            return dropout and dropout.at(kind, t)

        block = w.f2l.at(0 if w.f2l.value.shape[0] == 1 else t)
        q = torch.zeros_like(u) if block.query is None else u @ block.query
        context, _ = attention(q, z, q_offsets, offsets, modalities, dropout=at("f2l_attention"))
        states = update_labels(u, context, block, at("f2l_update"))
        if w.l2l is not None:
            block = w.l2l.at(0 if w.l2l.value.shape[0] == 1 else t)
            flat = states.view(-1, d)
            context, _ = attention(flat @ block.query, flat, own, own, 1, mask=mask, dropout=at("l2l_attention"))
            states = update_labels(states, context.view(states.shape), block, at("l2l_update"))
        fused, out, _ = readout(states.view(modalities, batch, labels, d), present, w.wl, w.wo)
        logits.append(out)
        u = fused.reshape(rows, d)
    return torch.stack(logits)
