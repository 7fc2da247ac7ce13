"""update as registered ops: checks, launches, shapes for torch.compile, gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from hhmpn_fast.errors import InputError
from hhmpn_fast.kernels.configs import Launch, launch
from hhmpn_fast.kernels.library import define, no_second_derivative
from hhmpn_fast.kernels.runtime import architecture, dropout_scalars, kind, product_constants, row_constants, step
from hhmpn_fast.kernels.update_bwd import rows_product, weight_product
from hhmpn_fast.kernels.update_fwd import update_features_fwd, update_labels_fwd
from hhmpn_fast.ops.dropout import Dropout, arguments
from hhmpn_fast.ops.update import EQUATIONS, UpdateOptions
from hhmpn_fast.weights import BlockWeights

SPAN = 512  # rows a split of a weight gradient


def update_labels(
    u: Tensor,
    context: Tensor,
    w: BlockWeights,
    dropout: Dropout | None = None,
    options: UpdateOptions = EQUATIONS,
) -> Tensor:
    """`hhmpn_fast.ops.update_labels` on a GPU: u (B*L, d) or (M, B*L, d), context (M, B*L, d) -> (M, B*L, d)."""
    options.must_be_own("update_labels")
    _check("update_labels", u, context, w)
    p, rng, site = arguments(dropout)
    dim = u.shape[-1]
    out, _, _ = torch.ops.hhmpn_fast_triton.update_labels(
        *(u.reshape(-1, dim), context.reshape(-1, dim), w.value, w.hidden, w.b1, w.output, w.b2),
        *(rng, torch.is_grad_enabled(), p, site),
    )
    return out.view(context.shape)


def update_features(
    v: Tensor,
    context: Tensor,
    w: BlockWeights,
    dropout: Dropout | None = None,
    options: UpdateOptions = EQUATIONS,
) -> Tensor:
    """`hhmpn_fast.ops.update_features` on a GPU: v (N, d), context (M, N, d) -> (N, d)."""
    options.must_be_own("update_features")
    _check("update_features", v, context, w)
    p, rng, site = arguments(dropout)
    return torch.ops.hhmpn_fast_triton.update_features(
        v, context, w.value, w.hidden, w.b1, w.output, w.b2, rng, torch.is_grad_enabled(), p, site
    )[0]


def _check(op: str, state: Tensor, context: Tensor, w: BlockWeights) -> None:
    for name, tensor in (("context", context), *w._asdict().items()):
        if name != "query" and tensor.dtype != state.dtype:
            raise InputError(f"{op}: {name} is {tensor.dtype} and the states are {state.dtype}; expected one dtype.")


def _config(kernel: str, tensor: Tensor) -> Launch:
    return launch(kernel, kind(tensor.dtype), tensor.shape[-1], architecture(tensor))


def _labels(
    u: Tensor,
    s: Tensor,
    wv: Tensor,
    wr: Tensor,
    b1: Tensor,
    wb: Tensor,
    b2: Tensor,
    rng: Tensor | None,
    save: bool,
    p: float,
    site: int,
) -> tuple[Tensor, Tensor, Tensor]:
    u, s, wv, wr, wb = (t.contiguous() for t in (u, s, wv, wr, wb))
    rows, dim = s.shape
    out = torch.empty_like(s)
    g, h = (torch.empty_like(s) if save else s.new_empty(0) for _ in range(2))
    if rows == 0:
        return out, g, h
    least, scale = dropout_scalars(p)
    config = _config("update_labels_fwd", s)
    update_labels_fwd[((rows + config.m - 1) // config.m,)](
        u,
        s,
        wv,
        wr,
        b1.contiguous(),
        wb,
        b2.contiguous(),
        rng,
        g,
        h,
        out,
        rows,
        u.shape[0],
        dim,
        least,
        scale,
        site,
        BM=config.m,
        BH=step(config.n, dim),
        BK=step(config.k, dim),
        SAVE=save,
        **row_constants(dim),
        **product_constants(s, rng),
        **config.options,
    )
    return out, g, h


def _features(
    v: Tensor,
    s: Tensor,
    wv: Tensor,
    wc: Tensor,
    b1: Tensor,
    wb: Tensor,
    b2: Tensor,
    rng: Tensor | None,
    save: bool,
    p: float,
    site: int,
) -> tuple[Tensor, Tensor]:
    v, s, wv, wc, wb = (t.contiguous() for t in (v, s, wv, wc, wb))
    rows, dim = v.shape
    out = torch.empty_like(v)
    h = torch.empty_like(v) if save else v.new_empty(0)
    if rows == 0:
        return out, h
    least, scale = dropout_scalars(p)
    config = _config("update_features_fwd", v)
    update_features_fwd[((rows + config.m - 1) // config.m,)](
        v,
        s,
        wv,
        wc,
        b1.contiguous(),
        wb,
        b2.contiguous(),
        rng,
        h,
        out,
        rows,
        s.shape[0],
        dim,
        least,
        scale,
        site,
        BM=config.m,
        BH=step(config.n, dim),
        BK=step(config.k, dim),
        SAVE=save,
        **row_constants(dim),
        **product_constants(v, rng),
        **config.options,
    )
    return out, h


def _rows(
    a: Tensor,
    w: Tensor,
    *,
    b: Tensor | None = None,
    wz: Tensor | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    dropout: tuple[float, Tensor | None, int] = (0.0, None, 0),
) -> Tensor:
    """residual + [gate > 0] (D(a) w + b wz[z]): (Z, rows, d), or (rows, d) without wz."""
    (rows, dim), (p, rng, site) = a.shape, dropout
    count = 1 if wz is None else wz.shape[0]
    out = a.new_empty(count, rows, dim)
    least, scale = dropout_scalars(p)
    config = _config("rows_product", a)
    n = step(config.n, dim)
    rows_product[((rows + config.m - 1) // config.m, (dim + n - 1) // n, count)](
        a,
        w,
        b,
        wz,
        gate,
        residual,
        rng,
        out,
        rows,
        dim,
        least,
        scale,
        site,
        BM=config.m,
        BN=n,
        BK=step(config.k, dim),
        TWO=wz is not None,
        GATE=gate is not None,
        RESIDUAL=residual is not None,
        **product_constants(a, rng),
        **config.options,
    )
    return out if wz is not None else out[0]


def _weights(
    y: Tensor, x: Tensor, *, summed: bool = False, dropout: tuple[float, Tensor | None, int] = (0.0, None, 0)
) -> tuple[Tensor, Tensor]:
    """dW[z] = D(y)^T x[z] (Z, d, d) and db = column sums of D(y) (d,); `summed` takes sum_z x[z] instead, Z = 1."""
    (rows, dim), (p, rng, site) = y.shape, dropout
    x = x.view(-1, rows, dim)
    count, splits = 1 if summed else x.shape[0], (rows + SPAN - 1) // SPAN
    partial = y.new_empty(splits, count, dim, dim, dtype=torch.float32)
    bias = y.new_empty(splits, dim, dtype=torch.float32)
    least, scale = dropout_scalars(p)
    config = _config("weight_product", y)
    n, k = step(config.n, dim), step(config.k, dim)
    weight_product[(((dim + n - 1) // n) * ((dim + k - 1) // k), count, splits)](
        y,
        x,
        rng,
        partial,
        bias,
        rows,
        x.shape[0],
        dim,
        SPAN,
        least,
        scale,
        site,
        BM=config.m,
        BN=n,
        BK=k,
        SUM=summed,
        **product_constants(y, rng),
        **config.options,
    )
    return partial.sum(0).to(y.dtype), bias.sum(0).to(y.dtype)


def _labels_backward(
    dout: Tensor,
    s: Tensor,
    g: Tensor,
    h: Tensor,
    wv: Tensor,
    wr: Tensor,
    wb: Tensor,
    rng: Tensor | None,
    rows_u: int,
    p: float,
    site: int,
) -> tuple[Tensor, ...]:
    dout, s, wv, wr, wb = (t.contiguous() for t in (dout, s, wv, wr, wb))
    rows, dim = s.shape
    if rows == 0:
        zeros = [torch.zeros_like(wv) for _ in range(3)]
        flat = [wv.new_zeros(dim) for _ in range(2)]
        return s.new_zeros(rows_u, dim), torch.zeros_like(s), zeros[0], zeros[1], flat[0], zeros[2], flat[1]
    dropped = (p, rng, site)
    dh = _rows(dout, wb, gate=h, dropout=dropped)
    dg = _rows(dh, wr, residual=dout)
    ds = _rows(dg, wv)
    (dwb, db2), (dwr, db1), (dwv, _) = _weights(dout, h, dropout=dropped), _weights(dh, g), _weights(dg, s)
    du = dg.clone() if rows_u == rows else dg.view(-1, rows_u, dim).float().sum(0).to(dg.dtype)
    return du, ds, dwv[0], dwr[0], db1, dwb[0], db2


def _features_backward(
    dout: Tensor,
    s: Tensor,
    h: Tensor,
    wv: Tensor,
    wc: Tensor,
    wb: Tensor,
    rng: Tensor | None,
    p: float,
    site: int,
) -> tuple[Tensor, ...]:
    dout, s, wv, wc, wb = (t.contiguous() for t in (dout, s, wv, wc, wb))
    rows, dim = dout.shape
    if rows == 0:
        flat = [wv.new_zeros(dim) for _ in range(2)]
        return torch.zeros_like(s), torch.zeros_like(wv), torch.zeros_like(wc), flat[0], torch.zeros_like(wb), flat[1]
    dropped = (p, rng, site)
    dh = _rows(dout, wb, gate=h, dropout=dropped)
    ds = _rows(dout, wv, b=dh, wz=wc)
    (dwb, db2), (dwc, db1) = _weights(dout, h, dropout=dropped), _weights(dh, s)
    dwv, _ = _weights(dout, s, summed=True)
    return ds, dwv[0], dwc, db1, dwb[0], db2


def _setup_labels(ctx: object, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    u, s, wv, wr, _, wb, _, rng, _, ctx.p, ctx.site = inputs
    ctx.rows_u = u.shape[0]
    ctx.save_for_backward(s, output[1], output[2], wv, wr, wb, rng)
    ctx.mark_non_differentiable(output[1], output[2])


def _labels_gradient(ctx: object, dout: Tensor, *_: object) -> tuple:
    grads = torch.ops.hhmpn_fast_triton.update_labels_backward(dout, *ctx.saved_tensors, ctx.rows_u, ctx.p, ctx.site)
    return *grads, None, None, None, None


def _setup_features(ctx: object, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    _, s, wv, wc, _, wb, _, rng, _, ctx.p, ctx.site = inputs
    ctx.save_for_backward(s, output[1], wv, wc, wb, rng)
    ctx.mark_non_differentiable(output[1])


def _features_gradient(ctx: object, dout: Tensor, *_: object) -> tuple:
    grads = torch.ops.hhmpn_fast_triton.update_features_backward(dout, *ctx.saved_tensors, ctx.p, ctx.site)
    return dout, *grads, None, None, None, None


def _labels_fake(u: Tensor, s: Tensor, *rest: object) -> tuple[Tensor, Tensor, Tensor]:
    saved = [s.new_empty(s.shape if rest[6] else 0) for _ in range(2)]
    return s.new_empty(s.shape), *saved


def _features_fake(v: Tensor, s: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), v.new_empty(v.shape if rest[6] else 0)


def _labels_backward_fake(
    dout: Tensor,
    s: Tensor,
    g: Tensor,
    h: Tensor,
    wv: Tensor,
    wr: Tensor,
    wb: Tensor,
    rng: Tensor | None,
    rows_u: int,
    p: float,
    site: int,
) -> tuple[Tensor, ...]:
    dim = s.shape[1]
    shapes = [(rows_u, dim), s.shape, wv.shape, wr.shape, (dim,), wb.shape, (dim,)]
    return tuple(s.new_empty(shape) for shape in shapes)


def _features_backward_fake(
    dout: Tensor, s: Tensor, h: Tensor, wv: Tensor, wc: Tensor, wb: Tensor, *rest: object
) -> tuple[Tensor, ...]:
    dim = wv.shape[0]
    return tuple(s.new_empty(shape) for shape in (s.shape, wv.shape, wc.shape, (dim,), wb.shape, (dim,)))


_WEIGHTS = "Tensor wv, Tensor wr, Tensor b1, Tensor wb, Tensor b2"
define(
    f"update_labels(Tensor u, Tensor s, {_WEIGHTS}, Tensor? rng, bool save, float p, int site) "
    "-> (Tensor, Tensor, Tensor)",
    _labels,
    _labels_fake,
    _labels_gradient,
    _setup_labels,
)
define(
    "update_labels_backward(Tensor dout, Tensor s, Tensor g, Tensor h, Tensor wv, Tensor wr, Tensor wb, Tensor? rng, "
    "int rows_u, float p, int site) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _labels_backward,
    _labels_backward_fake,
    no_second_derivative,
)
define(
    f"update_features(Tensor v, Tensor s, {_WEIGHTS}, Tensor? rng, bool save, float p, int site) -> (Tensor, Tensor)",
    _features,
    _features_fake,
    _features_gradient,
    _setup_features,
)
define(
    "update_features_backward(Tensor dout, Tensor s, Tensor h, Tensor wv, Tensor wc, Tensor wb, Tensor? rng, float p, "
    "int site) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _features_backward,
    _features_backward_fake,
    no_second_derivative,
)
