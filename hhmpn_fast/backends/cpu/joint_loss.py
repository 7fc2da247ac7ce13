"""joint_loss on the CPU: csrc/cpu/ops/joint_loss."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

from torch import Tensor

from hhmpn_fast.backends.cpu import infer
from hhmpn_fast.backends.cpu.embed import biases_of
from hhmpn_fast.backends.cpu.library import accumulate_dtype
from hhmpn_fast.backends.record import Body
from hhmpn_fast.ops.dropout import Dropout, arguments, site
from hhmpn_fast.ops.joint_loss import GRADIENTS, JOINT_LOSS, named
from hhmpn_fast.ops.readout import JointLoss
from hhmpn_fast.weights import ModelWeights

# Of what a chunk keeps: smaller ones leave threads waiting, larger ones gain no time.
CHUNK_BYTES = 48 << 20


def _shapes(i: SimpleNamespace) -> dict[str, object]:
    def like(weight: Tensor | list[Tensor] | None) -> Tensor | list[Tensor]:
        if isinstance(weight, Tensor):
            return weight.new_empty(weight.shape)
        return i.xs[0].new_empty(0) if weight is None else [t.new_empty(t.shape) for t in weight]

    loss = i.xs[0].new_empty((), dtype=accumulate_dtype(i.xs[0].dtype))
    gradients = {field.split()[1]: like(getattr(i, field.split()[1].removeprefix("d_"))) for field in GRADIENTS}
    return {"loss": loss, "logits": i.xs[0].new_empty(i.steps, *i.targets.shape), **gradients}


JOINT_LOSS.define("cpu", _shapes, keeps=GRADIENTS)


def joint_loss(
    xs: Sequence[Tensor],
    offsets: Tensor,
    present: Tensor,
    targets: Tensor,
    w: ModelWeights,
    loss: JointLoss,
    dropout: Dropout | None = None,
    chunk_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss (), float32 for bfloat16, and logits (T, B, L), through which no gradient flows.

    Args:
        xs: features (N_m, e_m) of every modality; none may require a gradient.
        offsets: int32 (M*B+1,), segment m*B+b is modality m of sample b.
        present: bool (M, B); an absent modality sends nothing to the readout.
        targets: (B, L) in [0, 1].
        w: the model's weights.
        loss: steps, lambda, label weights and the labels' mask.
        dropout: rate and stream.
        chunk_bytes: about how much a chunk of samples may keep for its backward pass, by default CHUNK_BYTES;
            one sample may exceed it.

    Raises:
        ValueError: shapes or dtypes that do not fit, or features that require a gradient.
    """
    p, rng, base = arguments(dropout)
    asked = {**loss._asdict(), "intermediate_weight": float(loss.intermediate_weight), "p": p, "rng": rng}
    sites = {
        f"{kind}_sites": [base + site(f"f2f_{kind}", layer) for layer in range(len(w.f2f))]
        for kind in ("attention", "update")
    }
    weights = named(w._replace(embed_bias=biases_of(w.embed, w.embed_bias)))
    budget = CHUNK_BYTES if chunk_bytes is None else chunk_bytes
    data = {"xs": list(xs), "offsets": offsets, "present": present, "targets": targets, "chunk_bytes": budget}
    value, logits = JOINT_LOSS("cpu", **data, **weights, **asked, **sites)
    return value, logits.detach()


HOLDS = {**infer.HOLDS, "loss": ("intermediate_weight", "intermediate=none")}
BODIES = {"joint_loss": Body(joint_loss, HOLDS)}
