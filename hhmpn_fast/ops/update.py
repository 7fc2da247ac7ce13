"""update: the tail of MP and the whole of UPD as one residual block, from contexts `s` to the next state.

    labels     g = u + s W^v^T                                u' = g + relu(g W^r^T + b1) W^b^T + b2          (Eqs 6-8)
    features   r = v + (sum_m s^m) W^v^T                      z = r + relu(sum_m s^m C_m^T + b1) W^b^T + b2   (Eqs 9-10)

    name      shape            meaning
    u         (..., d)         label states; broadcasts against the context's leading axes
    v         (N, d)           nodes
    s         (..., d) labels, (M, N, d) features: contexts of `attention`

W^v, W^r or C, b1, W^b, b2 are `BlockWeights`: value, hidden, b1, output, b2; `query` is not read. With H heads contexts
are H*d wide and W^v is block-structured; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hhmpn_fast.backends import Body, Call
from hhmpn_fast.errors import InputError
from hhmpn_fast.ops import dropout as _dropout
from hhmpn_fast.ops.accelerator import saves_launches
from hhmpn_fast.ops.dropout import Dropout, arguments, of_arguments
from hhmpn_fast.ops.op import Op
from hhmpn_fast.ops.public import Public
from hhmpn_fast.weights import BlockWeights, Norms

# Features where `hidden` is a stack (M, h, d), labels where it is (h, d).
UPDATE = Op(
    "update(Tensor state, Tensor context, Tensor value, Tensor hidden, Tensor b1, Tensor output, Tensor b2, float p, "
    "Tensor? rng, int site) -> Tensor out",
    rows=("state", "context"),
    weights=("value", "hidden", "b1", "output", "b2"),
)


class UpdateOptions(NamedTuple):
    """The readings of an update; the defaults are the equations' own, and all that a kernel has to hold.

    norms: LayerNorm after both residuals.  residual: r of features, "sum" v + sum_m msg_m, "node" v, "proj"
    concat_m(msg_m) proj^T with proj (d, M*d).  message_dropout: acts on W^v s (LaMP's place); `hidden` of features is
    then W^r (M, h, d) itself and not C, as dropout stands between the two.
    """

    norms: Norms | None = None
    residual: str = "sum"
    proj: Tensor | None = None
    message_dropout: Dropout | None = None

    def named(self) -> tuple[str, ...]:
        """What differs from the equations' own, in words; an entry added above is named without a line here."""
        named = {k: k for k, v, own in zip(self._fields, self, EQUATIONS) if v is not own and v != own}
        named.pop("proj", None)  # it comes with its residual, and only that reads it
        if "residual" in named:
            named["residual"] = f"f2f_residual {self.residual}"
        if "norms" in named:
            named["norms"] = "norm"
        return tuple(named.values())

    def must_be_own(self, op: str) -> None:
        """For a kernel that holds no option: refuses all by name, whoever calls it."""
        if self is not EQUATIONS and (named := self.named()):
            raise InputError(f"{op}: found {', '.join(named)}; expected none, which is all that these kernels hold.")


EQUATIONS = UpdateOptions()


class Update(Public):
    """update_labels and update_features on any backend."""

    def update_labels(
        self,
        u: Tensor,
        context: Tensor,
        w: BlockWeights,
        dropout: Dropout | None = None,
        options: UpdateOptions = EQUATIONS,
    ) -> Tensor:
        """Eqs 6-8 for label rows: u (B*L, d) or (M, B*L, d), context (M, B*L, d) -> (M, B*L, d).

        Raises:
            InputError: a backend that cannot run the call.
        """
        return self._update("update_labels", u, context, w, dropout, options)

    def update_features(
        self,
        v: Tensor,
        context: Tensor,
        w: BlockWeights,
        dropout: Dropout | None = None,
        options: UpdateOptions = EQUATIONS,
    ) -> Tensor:
        """Eqs 9-10 for nodes: v (N, d), context (M, N, d), w.hidden holding C (M, h, d) -> z (N, d).

        Raises:
            InputError: a backend that cannot run the call.
        """
        return self._update("update_features", v, context, w, dropout, options)

    def _update(
        self,
        op: str,
        state: Tensor,
        context: Tensor,
        w: BlockWeights,
        dropout: Dropout | None,
        options: UpdateOptions,
    ) -> Tensor:
        """A body of either takes UPDATE's inputs by name, and the options."""
        p, rng, site = arguments(dropout)
        return self.body(op, Call.of(state, *_asked(w, context, options)))(
            state=state,
            context=context,
            value=w.value,
            hidden=w.hidden,
            b1=w.b1,
            output=w.output,
            b2=w.b2,
            p=p,
            rng=rng,
            site=site,
            options=options,
        )


def _asked(w: BlockWeights, context: Tensor, options: UpdateOptions) -> tuple[str, ...]:
    """What a call asks of an update beyond the equations' own: of its weights' shapes and of its options."""
    return (
        "heads" if context.shape[-1] != w.value.shape[-2] else "",
        "update_hidden" if w.b1.shape[-1] != w.b2.shape[-1] else "",
        "weights per modality" if w.value.dim() == 3 else "",
        *options.named(),
    )


def equations_only(op: str, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The body of kernels that hold no option: run(inputs by name) behind the refusal of all of them."""

    def body(options: UpdateOptions, **inputs: Any) -> Tensor:
        options.must_be_own(op)
        return run(**inputs)

    return body


def plain_labels(options: UpdateOptions, **inputs: Any) -> Tensor:
    """update_labels in plain PyTorch."""
    i = UPDATE.record(**inputs)
    g = i.state + _drop(_linear(i.context, i.value), options.message_dropout)
    if options.norms is not None:
        g = _norm(g, _bias(options.norms.weight1), _bias(options.norms.bias1))
    return _tail(g, _linear(g, i.hidden), i, options.norms)


def plain_features(options: UpdateOptions, **inputs: Any) -> Tensor:
    """update_features in plain PyTorch."""
    i = UPDATE.record(**inputs)
    if options.message_dropout is None:
        hidden = torch.einsum("mnd,mhd->nh", i.context, i.hidden)
        summed = _linear(i.context.sum(0), i.value) if options.residual == "sum" else None
        messages = _linear(i.context, i.value) if options.residual == "proj" else None
    else:
        messages = _drop(_linear(i.context, i.value), options.message_dropout)
        hidden = torch.einsum("mnd,mhd->nh", messages, i.hidden)
        summed = messages.sum(0)
    if options.residual == "sum":
        r = i.state + summed
    elif options.residual == "proj":
        r = _linear(messages.transpose(0, 1).flatten(1), options.proj)
    else:
        r = i.state
    if options.norms is not None:
        r = _norm(r, options.norms.weight1, options.norms.bias1)
    return _tail(r, hidden, i, options.norms)


def _tail(residual: Tensor, hidden: Tensor, i: Any, norms: Norms | None) -> Tensor:
    x = torch.relu(hidden + _bias(i.b1))
    if saves_launches(x.device) and i.output.dim() == 2:
        out = F.linear(x, i.output, i.b2)
    else:
        out = _linear(x, i.output) + _bias(i.b2)
    out = residual + _drop(out, of_arguments(i.p, i.rng, i.site))
    return out if norms is None else _norm(out, _bias(norms.weight2), _bias(norms.bias2))


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:]) * weight + bias


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T for a (out, in) weight or a stack (M, out, in) of them against x (M, ..., in)."""
    return x @ weight.transpose(-1, -2)


def _drop(x: Tensor, dropout: Dropout | None) -> Tensor:
    return _dropout.apply(x.reshape(-1, x.shape[-1]), dropout).view(x.shape) if dropout is not None else x


def _bias(b: Tensor) -> Tensor:
    """A bias (d,) as it is; a stack (M, d) of them against (M, rows, d)."""
    return b if b.dim() == 1 else b[:, None, :]


HOLDS = ("norm", "heads", "message_dropout", "update_hidden")
BODIES = {
    "update_features": Body(plain_features, (*HOLDS, "f2f_residual node", "f2f_residual proj")),
    "update_labels": Body(plain_labels, (*HOLDS, "weights per modality")),
}
