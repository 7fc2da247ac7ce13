"""The label tower on CUDA: all T steps in one launch, csrc/cuda/tower.

A shape that the kernel does not take (`refusal` says why) is composed from this backend's single ops: the same
mathematics, and never another backend.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hhmpn_fast.autocast import compute_dtype
from hhmpn_fast.backends.cuda import attention, update
from hhmpn_fast.backends.cuda.launch import dropout_fields, launch, replaced
from hhmpn_fast.backends.cuda.update import Job, weight_gradients
from hhmpn_fast.backends.plain import BACKEND as PLAIN
from hhmpn_fast.backends.record import Body
from hhmpn_fast.ops import Ops
from hhmpn_fast.ops.bodies import implement
from hhmpn_fast.ops.dropout import Dropout, site
from hhmpn_fast.ops.tower import TOWER, TowerCall, composed
from hhmpn_fast.weights import BlockWeights, TowerWeights

ROWS = 32  # of a group: the tensor cores' tile
BLOCKS = ("f2l", "l2l")
WEIGHTS = BlockWeights._fields
OWN = Ops({**attention.BODIES, **update.BODIES, "readout": PLAIN.ops["readout"]})
BLOCK_KEEPS = ("queries", "contexts", "g", "h", "states", "lse")
KEEPS = ("scores", "scores_lse", "fused", *(f"{block}_{name}" for block in BLOCKS for name in BLOCK_KEEPS))


def refusal(labels: int, modalities: int, dim: int, dtype: torch.dtype, training: bool, limit: int) -> str | None:
    """Why the one-launch tower cannot take a shape on a device with `limit` bytes of shared memory a block, or None."""
    if labels > ROWS:
        return f"{labels} labels; a block holds up to {ROWS} label rows"
    need = shared_memory(labels, modalities, dim, dtype, training)
    if need > limit:
        return f"it needs {need} bytes of shared memory a block; the device has {limit}"
    return None


def shared_memory(labels: int, modalities: int, dim: int, dtype: torch.dtype, training: bool) -> int:
    """Bytes of shared memory of a block with one sample; csrc/cuda/tower/forward.cu and backward.cu lay them out."""
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
    call = TowerCall(z, offsets, present, u0, w, steps, mask, dropout)
    return TOWER("cuda", **call.inputs()) if runs_whole(call) else single_ops(call)


def single_ops(call: TowerCall) -> Tensor:
    """The tower from this backend's single ops."""
    return composed(call, OWN.attention, OWN.update_labels, OWN.readout)


def runs_whole(call: TowerCall) -> bool:
    """Whether one launch takes this call."""
    (modalities, batch), (labels, d), w = call.present.shape, call.label_embedding.shape, call.weights
    if w.f2l.query is None or w.l2l is None or w.wl is None or batch == 0:
        return False
    dtype, limit = compute_dtype(call.z), _limit(call.z.device)
    return refusal(labels, modalities, d, dtype, torch.is_grad_enabled(), limit) is None


def _limit(device: torch.device) -> int:
    return 232448 if replaced() else torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def _processors(device: torch.device) -> int:
    return 2 if replaced() else torch.cuda.get_device_properties(device).multi_processor_count


def shapes(i: SimpleNamespace) -> dict[str, Tensor]:
    """logits (T, B, L) and what is kept, (T, M, B, L, d) for a block's row tensors; empty."""
    (modalities, batch), (labels, d), steps = i.present.shape, i.label_embedding.shape, i.steps
    scores = (steps, modalities, batch, labels)
    made = {
        "logits": i.z.new_empty(steps, batch, labels),
        "scores": i.z.new_empty(scores, dtype=torch.float32),
        "scores_lse": i.z.new_empty(steps, batch, labels, dtype=torch.float32),
        "fused": i.z.new_empty(steps, batch, labels, d),
    }
    for block in BLOCKS:
        made |= {f"{block}_{name}": i.z.new_empty(*scores, d) for name in BLOCK_KEEPS}
        made[f"{block}_lse"] = i.z.new_empty(scores, dtype=torch.float32)
    made["f2l_queries"] = i.z.new_empty(steps, batch, labels, d)  # the modalities share them
    return made


def forward(i: SimpleNamespace, keep: bool) -> dict[str, Tensor | None]:
    """logits, and with `keep` every step's rows."""
    made = shapes(i)
    kept = {name: made[name] if keep else None for name in KEEPS}
    logits = i.z.new_empty(made["logits"].shape, dtype=torch.float32)
    launch(
        "tower_forward",
        **_fields(i),
        **kept,
        present=i.present.contiguous(),
        label_embedding=i.label_embedding.contiguous(),
        logits=logits,
    )
    return {"logits": logits.to(i.z.dtype), **kept}


def backward(d: SimpleNamespace, i: SimpleNamespace, saved: SimpleNamespace) -> dict[str, Tensor]:
    """Gradients of nodes, label embedding, readout and both blocks' weights."""
    d_logits = d.logits.float().contiguous()
    made = {"d_scores": torch.empty_like(saved.scores), "d_z": torch.zeros_like(i.z, dtype=torch.float32)}
    _, batch, labels, dim = saved.fused.shape
    made["d_start"] = i.z.new_empty(batch, labels, dim, dtype=torch.float32)
    for block in BLOCKS:
        made[f"{block}_d_queries"] = torch.empty_like(getattr(saved, f"{block}_queries"))
        made |= {f"{block}_{name}": torch.empty_like(saved.f2l_states) for name in ("d_tail", "d_h", "d_g")}
    reads = {name: getattr(saved, name) for name in KEEPS if not name.endswith("_g")}
    launch("tower_backward", **_fields(i), **reads, **made, d_logits=d_logits)

    start = i.label_embedding.expand(1, batch, -1, -1)
    jobs = _jobs("f2l", i, saved, made, torch.cat([start, saved.fused[:-1]]))
    jobs |= _jobs("l2l", i, saved, made, saved.f2l_states)
    d_wl = torch.einsum("r,rd->d", made["d_scores"].flatten(), saved.l2l_states.view(-1, dim).float())
    grads = {
        "z": made["d_z"].to(i.z.dtype),
        "label_embedding": made["d_start"].sum(0),
        "wl": d_wl,
        "wo": torch.einsum("tbl,tbld->ld", d_logits, saved.fused.float()),
    }
    found = weight_gradients(jobs)
    grads |= {name: of.weight for name, of in found.items()}
    for block in BLOCKS:
        grads |= {f"{block}_b1": found[f"{block}_hidden"].bias, f"{block}_b2": found[f"{block}_output"].bias}
    return grads


def _jobs(
    block: str, i: SimpleNamespace, saved: SimpleNamespace, made: dict[str, Tensor], states: Tensor
) -> dict[str, list[Job]]:
    """A block's weight gradients, a job a set; its queries are states A. One set's rows are those of every step."""
    kept = {name: getattr(saved, f"{block}_{name}") for name in ("contexts", "g", "h")}
    d = {name: made[f"{block}_{name}"] for name in ("d_queries", "d_tail", "d_h", "d_g")}
    factors = {
        "query": Job(states, d["d_queries"]),
        "value": Job(d["d_g"], kept["contexts"]),
        "hidden": Job(d["d_h"], kept["g"]),
        "output": Job(d["d_tail"], kept["h"]),
    }
    sets, dim = i.f2l_query.shape[0], i.z.shape[1]
    return {
        f"{block}_{name}": [Job(*pair) for pair in zip(*(t.reshape(sets, -1, dim).unbind() for t in job))]
        for name, job in factors.items()
    }


def _fields(i: SimpleNamespace) -> dict[str, Any]:
    """What both passes read."""
    (modalities, batch), (labels, d) = i.present.shape, i.label_embedding.shape
    names = [f"{block}_{name}" for block in BLOCKS for name in WEIGHTS]
    kinds = [f"{block}_{part}" for block in BLOCKS for part in ("attention", "update")]
    return {
        "dtype": i.z.dtype,
        "d": d,
        "z": i.z.contiguous(),
        "offsets": i.offsets.to(torch.int32).contiguous(),
        "wl": i.wl.contiguous(),
        "wo": i.wo.contiguous(),
        "mask": None if i.mask is None else i.mask.contiguous(),
        **{name: getattr(i, name).contiguous() for name in names},
        **{f"{kind}_site": site(kind, 0) for kind in kinds},
        **dropout_fields(i.p, i.rng, i.z.device),
        "sites_a_step": site(kinds[0], 1) - site(kinds[0], 0),
        "modalities": modalities,
        "batch": batch,
        "labels": labels,
        "steps": i.steps,
        "sets": i.f2l_query.shape[0],
        "samples": samples_a_block(batch, modalities, labels, _processors(i.z.device)),
    }


implement(TOWER, "cuda", forward, backward, shapes, keeps=[f"Tensor {name}" for name in KEEPS])
HOLDS = (
    *("dropout", "sharing=tied", "exclude_self", "label_graph=prior", "output_weight=tied"),
    *("intermediate=none", "without=f2f", "without=f2l", "without=l2l", "without=m2l"),
)
BODIES = {"tower": Body(tower, HOLDS)}
