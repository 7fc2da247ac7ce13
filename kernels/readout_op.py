"""readout and the joint loss as registered ops."""

from __future__ import annotations

import torch
from torch import Tensor

from hhmpn_fast.kernels.configs import launch
from hhmpn_fast.kernels.library import define, no_second_derivative
from hhmpn_fast.kernels.readout_kernels import joint_bce_fwd, readout_bwd, readout_fwd
from hhmpn_fast.kernels.runtime import architecture, kind, padded


def readout(
    u: Tensor, present: Tensor, wl: Tensor, wo: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`hhmpn_fast.ops.readout` on a GPU: fused (B, L, d), logits (B, L), modality weights (M, B, L)."""
    fused, logits, alpha = torch.ops.hhmpn_fast_triton.readout(u, present, wl, wo)
    return fused, logits if bias is None else logits + bias, alpha


def joint_bce(
    logits: Tensor, targets: Tensor, intermediate_weight: float, label_weights: Tensor | None = None
) -> Tensor:
    """`hhmpn_fast.ops.joint_bce` in one launch with its gradient: a scalar."""
    loss, _ = torch.ops.hhmpn_fast_triton.joint_bce(logits, targets, label_weights, float(intermediate_weight))
    return loss


def _forward(u: Tensor, present: Tensor, wl: Tensor, wo: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, present, wl, wo = (t.contiguous() for t in (u, present, wl, wo))
    modalities, batch, labels, dim = u.shape
    fused, logits = u.new_empty(batch, labels, dim), u.new_empty(batch, labels)
    alpha = u.new_empty(modalities, batch, labels)
    if logits.numel():
        config = launch("readout", kind(u.dtype), dim, architecture(u))
        readout_fwd[((batch + config.m - 1) // config.m, labels)](
            u,
            present,
            wl,
            wo,
            fused,
            logits,
            alpha,
            modalities,
            batch,
            labels,
            dim,
            D=padded(dim),
            MP=padded(modalities, 2),
            BB=config.m,
            **config.options,
        )
    return fused, logits, alpha


def _backward(
    dfused: Tensor,
    dlogits: Tensor,
    dalpha: Tensor,
    u: Tensor,
    present: Tensor,
    wl: Tensor,
    wo: Tensor,
    fused: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    dfused, dlogits, dalpha, u, present = (t.contiguous() for t in (dfused, dlogits, dalpha, u, present))
    modalities, batch, labels, dim = u.shape
    du = torch.empty_like(u)
    if not dlogits.numel():
        return du, torch.zeros_like(wl), torch.zeros_like(wo)
    config = launch("readout", kind(u.dtype), dim, architecture(u))
    blocks = (batch + config.m - 1) // config.m
    partial = u.new_empty(2, blocks, labels, dim, dtype=torch.float32)
    readout_bwd[(blocks, labels)](
        u,
        present,
        wl.contiguous(),
        wo.contiguous(),
        fused,
        dfused,
        dlogits,
        dalpha,
        du,
        partial[0],
        partial[1],
        modalities,
        batch,
        labels,
        dim,
        D=padded(dim),
        MP=padded(modalities, 2),
        BB=config.m,
        **config.options,
    )
    return du, partial[0].sum((0, 1)).to(wl.dtype), partial[1].sum(0).to(wo.dtype)


def _fake(u: Tensor, present: Tensor, wl: Tensor, wo: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    modalities, batch, labels, dim = u.shape
    return u.new_empty(batch, labels, dim), u.new_empty(batch, labels), u.new_empty(modalities, batch, labels)


def _backward_fake(
    dfused: Tensor, dlogits: Tensor, dalpha: Tensor, u: Tensor, present: Tensor, wl: Tensor, wo: Tensor, *rest: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return u.new_empty(u.shape), wl.new_empty(wl.shape), wo.new_empty(wo.shape)


def _setup(ctx: object, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, output[0])


def _gradient(ctx: object, dfused: Tensor | None, dlogits: Tensor | None, dalpha: Tensor | None) -> tuple:
    u, present, wl, wo, fused = ctx.saved_tensors
    dfused = torch.zeros_like(fused) if dfused is None else dfused
    dlogits = fused.new_zeros(fused.shape[:2]) if dlogits is None else dlogits
    dalpha = fused.new_zeros(u.shape[:3]) if dalpha is None else dalpha
    du, dwl, dwo = torch.ops.hhmpn_fast_triton.readout_backward(dfused, dlogits, dalpha, u, present, wl, wo, fused)
    return du, None, dwl, dwo


def _loss(
    logits: Tensor, targets: Tensor, label_weights: Tensor | None, intermediate_weight: float
) -> tuple[Tensor, Tensor]:
    logits, targets = logits.contiguous(), targets.contiguous()
    dlogits = torch.empty_like(logits, dtype=torch.float32)
    if logits.numel() == 0:
        return logits.sum(), dlogits
    out = logits.new_empty(1, dtype=torch.float32)
    config = launch("joint_bce_fwd", kind(logits.dtype), 1, architecture(logits))
    joint_bce_fwd[(1,)](
        logits,
        targets,
        None if label_weights is None else label_weights.contiguous(),
        out,
        dlogits,
        logits.shape[0],
        targets.numel(),
        targets.shape[1],
        intermediate_weight,
        WEIGHTED=label_weights is not None,
        B=config.m,
        **config.options,
    )
    return out[0].to(logits.dtype), dlogits


def _loss_fake(
    logits: Tensor, targets: Tensor, label_weights: Tensor | None, intermediate_weight: float
) -> tuple[Tensor, Tensor]:
    return logits.new_empty(()), logits.new_empty(logits.shape, dtype=torch.float32)


def _loss_setup(ctx: object, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[1])
    ctx.mark_non_differentiable(output[1])


def _loss_gradient(ctx: object, grad: Tensor, _: object) -> tuple:
    return torch.ops.hhmpn_fast_triton.joint_bce_backward(grad, *ctx.saved_tensors), None, None, None


def _loss_backward(grad: Tensor, logits: Tensor, dlogits: Tensor) -> Tensor:
    # The logits come along so that a second derivative meets this op, which refuses it.
    return (dlogits * grad).to(logits.dtype)


def _loss_backward_fake(grad: Tensor, logits: Tensor, dlogits: Tensor) -> Tensor:
    return logits.new_empty(logits.shape)


define(
    "readout(Tensor u, Tensor present, Tensor wl, Tensor wo) -> (Tensor, Tensor, Tensor)",
    _forward,
    _fake,
    _gradient,
    _setup,
)
define(
    "readout_backward(Tensor dfused, Tensor dlogits, Tensor dalpha, Tensor u, Tensor present, Tensor wl, Tensor wo, "
    "Tensor fused) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
    no_second_derivative,
)
define(
    "joint_bce(Tensor logits, Tensor targets, Tensor? label_weights, float intermediate_weight) -> (Tensor, Tensor)",
    _loss,
    _loss_fake,
    _loss_gradient,
    _loss_setup,
)
define(
    "joint_bce_backward(Tensor grad, Tensor logits, Tensor dlogits) -> Tensor",
    _loss_backward,
    _loss_backward_fake,
    no_second_derivative,
)
