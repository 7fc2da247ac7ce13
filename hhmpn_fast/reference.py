"""Equations 1-20 of the paper, one sample at a time: the specification every other path is held against.

Nothing is absorbed, packed or fused, nothing is shared with the fast path, and only torch is imported. Float64 in gives
float64 out. Weights come by the names of the model's state dict; `config` is read by attribute (an `HHMPNConfig`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# The readings written down here, `name` or `name=value`: the reference refuses any other by name.
READINGS = (
    *("one modality", "update_hidden", "without=f2f", "without=f2l", "without=l2l", "without=m2l"),
    *("f2f_residual=node", "f2f_residual=proj", "f2f_softmax=sample", "exclude_self", "f2f_layers", "feedback"),
    *("sharing=tied", "sharing=per_step_and_modality", "heads", "norm=post", "dropout", "dropout_place=lamp"),
    *("embed_bias", "embed_activation=relu", "embed_activation=tanh", "positions", "readout_scorer=per_step"),
    *("output_weight=tied", "output_bias", "intermediate=lamp", "intermediate=none", "empty_modality=keep"),
    "label_graph=prior",
)


class Place(NamedTuple):
    """Where a sample stands in its packed batch: dropout masks are keyed by packed rows.

    index: b.  batch: B.  first_node: packed row of the sample's first node, a modality.  nodes: N of the batch.
    """

    index: int
    batch: int
    first_node: Sequence[int]
    nodes: int


class Norm(NamedTuple):
    """A LayerNorm."""

    weight: Tensor
    bias: Tensor


class Block(NamedTuple):
    """The weights of one MP + UPD pair; norms are the LayerNorms of `norm="post"`."""

    w1: Tensor | None
    w2: Tensor | None
    wv: Tensor
    wr: Tensor
    b1: Tensor
    wb: Tensor
    b2: Tensor
    norms: tuple[Norm, Norm] | None


class Site(NamedTuple):
    """Where a dropout mask belongs: an op's kind, its layer or step, packed rows, and the group of keys."""

    kind: str
    layer: int
    rows: Sequence[int]
    group: int = 0


Keep = Callable[[str, int, Sequence[int], int, int], Tensor]


def eq4_scores(targets: Tensor, sources: Tensor, w1: Tensor, w2: Tensor, heads: int) -> Tensor:
    """e_ij = (W1 v_i)^T (W2 v_j) / sqrt(d): (targets, sources, heads)."""
    a = (targets @ w1.T).unflatten(1, (heads, -1))
    b = (sources @ w2.T).unflatten(1, (heads, -1))
    return torch.einsum("ihd,jhd->ijh", a, b) / math.sqrt(a.shape[-1])


def eq3_weights(scores: Tensor, neighbours: Tensor) -> Tensor:
    """alpha_ij = exp(e_ij) / sum_{k in N(i)} exp(e_ik); 0 outside N(i), and all 0 where N(i) is empty."""
    inside = neighbours[..., None]
    # The shift leaves every ratio as it is; over all sources, so that it is finite where N(i) is empty.
    shift = scores.detach().amax(1, keepdim=True)
    exps = torch.where(inside, torch.exp(scores - shift), 0.0)
    total = exps.sum(1, keepdim=True)
    return exps / torch.where(inside.any(1, keepdim=True), total, 1.0)


def eq5_messages(weights: Tensor, sources: Tensor, wv: Tensor) -> Tensor:
    """sum_j alpha_ij W^v v_j, heads side by side: (targets, d)."""
    values = (sources @ wv.T).unflatten(1, (weights.shape[2], -1))
    return torch.einsum("ijh,jhd->ihd", weights, values).flatten(1)


def eq6_full_message(state: Tensor, message: Tensor) -> Tensor:
    """g_i = v_i + sum_j MP(v_i, v_j)."""
    return state + message


def eq7_update(g: Tensor, block: Block) -> Tensor:
    """UPD(g) = ReLU(W^r g + b1)^T W^b + b2."""
    return torch.relu(g @ block.wr.T + block.b1) @ block.wb.T + block.b2


def eq8_next_state(g: Tensor, update: Tensor) -> Tensor:
    """v^{t+1} = g + UPD(g)."""
    return g + update


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Normalised over the last axis, eps 1e-5."""
    mean = x.mean(-1, keepdim=True)
    var = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias


def eq16_modality_weights(states: Tensor, wl: Tensor, present: Sequence[bool]) -> Tensor:
    """alpha_i^m = exp(W^l u_i^m) / sum_m' exp(W^l u_i^m'), over the modalities present: (M, L)."""
    at = [m for m, p in enumerate(present) if p]
    alpha = torch.zeros(states.shape[:2], dtype=states.dtype)
    return alpha.index_put((torch.tensor(at),), torch.softmax(states[at] @ wl, 0))


def eq15_fused(states: Tensor, alpha: Tensor) -> Tensor:
    """u_i^{t+1} = sum_m alpha_i^m u_i^{m,t+1}: (L, d)."""
    return torch.einsum("ml,mld->ld", alpha, states)


def eq17_logits(fused: Tensor, wo: Tensor) -> Tensor:
    """W^o_i u_i, before the sigmoid: (L,)."""
    return torch.stack([wo[i] @ fused[i] for i in range(wo.shape[0])])


def eq18_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross entropy over the labels (Eqs 18 and 19), from logits."""
    softplus = torch.clamp(logits, min=0) + torch.log1p(torch.exp(-logits.abs()))
    return (softplus - targets * logits).mean()


def eq20_joint(logits: Sequence[Tensor], targets: Tensor, weight: float) -> Tensor:
    """J_out + lambda sum_{t<T} J_int^t."""
    out = eq18_bce(logits[-1], targets)
    for intermediate in logits[:-1]:
        out = out + weight * eq18_bce(intermediate, targets)
    return out


def _block(config: Any, weights: Mapping[str, Tensor], prefix: str, at: tuple[int, ...] = ()) -> Block:
    def get(name: str) -> Tensor | None:
        tensor = weights.get(f"{prefix}.{name}")
        return None if tensor is None else tensor[at] if at else tensor

    norms = tuple(Norm(get(f"{n}_weight"), get(f"{n}_bias")) for n in ("norm1", "norm2"))
    matrices = {n: get(n) for n in Block._fields if n != "norms"}
    return Block(**matrices, norms=norms if config.norm == "post" else None)


def _dropped(values: Tensor, keep: Tensor, rate: float) -> Tensor:
    return torch.where(keep, values / (1.0 - rate), torch.zeros_like(values))


class Reference:
    """The model of one sample. `keep(kind, layer, rows, columns, group)` gives a dropout mask; None is no dropout."""

    def __init__(
        self,
        config: Any,
        weights: Mapping[str, Tensor],
        label_mask: Tensor | None = None,
        keep: Keep | None = None,
        place: Place | None = None,
    ) -> None:
        self.c, self.w, self.label_mask, self.keep, self.place = config, weights, label_mask, keep, place
        self.lamp_dropout = config.dropout_place == "lamp"

    def _attend(
        self,
        targets: Tensor,
        sources: Tensor,
        block: Block,
        neighbours: Tensor,
        at: Site,
        scale: Tensor | None = None,
    ) -> Tensor:
        """Eqs 3-5 from sources to targets: the summed messages, (targets, d)."""
        heads = self.c.heads
        if sources.shape[0] == 0:
            return torch.zeros_like(targets)
        scores = torch.zeros(targets.shape[0], sources.shape[0], heads, dtype=targets.dtype)
        if block.w1 is not None:
            scores = eq4_scores(targets, sources, block.w1, block.w2, heads)
        weights = eq3_weights(scores, neighbours)
        weights = weights if scale is None else weights * scale
        if self.keep is not None:
            head_rows = [r * heads + h for r in at.rows for h in range(heads)]
            kept = self.keep(at.kind, at.layer, head_rows, sources.shape[0], at.group)
            kept = kept.unflatten(0, (len(at.rows), heads)).transpose(1, 2)
            weights = _dropped(weights, kept, self.c.dropout)
        return eq5_messages(weights, sources, block.wv)

    def _message_dropout(self, message: Tensor, layer: int, rows: Sequence[int]) -> Tensor:
        if self.keep is None or not self.lamp_dropout:
            return message
        return _dropped(message, self.keep("message", layer, rows, message.shape[1], 0), self.c.dropout)

    def _update(self, g: Tensor, hidden_in: Tensor, block: Block, kind: str, layer: int, rows: Sequence[int]) -> Tensor:
        """Eqs 7-8 with the residual g and UPD's input (the same for labels, the concatenated messages for features)."""
        before, after = block.norms or (None, None)
        if before is not None:
            first = layer_norm(g, *before)
            hidden_in = first if hidden_in is g else hidden_in
            g = first
        update = eq7_update(hidden_in, block)
        if self.keep is not None:
            update = _dropped(update, self.keep(kind, layer, rows, update.shape[1], 0), self.c.dropout)
        out = eq8_next_state(g, update)
        return out if after is None else layer_norm(out, *after)

    def embed(self, sample: Sequence[Tensor]) -> list[Tensor]:
        """v_j^m = W_x^m x_j^m: one (S^m, d) a modality."""
        out = []
        for m, (name, x) in enumerate(zip(self.c.modalities, sample)):
            v = x @ self.w[f"embed.{m}.weight"].T
            if self.c.embed_bias:
                v = v + self.w[f"embed.{m}.bias"]
            v = {"none": lambda t: t, "relu": torch.relu, "tanh": torch.tanh}[self.c.embed_activation](v)
            out.append(v + sinusoids(v) if name in self.c.positions else v)
        return out

    def f2f(self, nodes: Sequence[Tensor], layer: int) -> list[Tensor]:
        """Eqs 9-10: every node reads each modality separately, UPD reads the concatenation."""
        block = _block(self.c, self.w, f"f2f.{layer}")
        out = []
        for m, v in enumerate(nodes):
            first = self.place.first_node if self.place else [0] * len(nodes)
            rows = [first[m] + i for i in range(v.shape[0])]
            allowed = []
            for k, source in enumerate(nodes):
                neighbours = torch.ones(v.shape[0], source.shape[0], dtype=torch.bool)
                if k == m and self.c.exclude_self:
                    neighbours &= ~torch.eye(v.shape[0], dtype=torch.bool)
                allowed.append(neighbours)
            scales = self._sample_softmax_scales(v, nodes, block, allowed)
            messages = []
            for k, source in enumerate(nodes):
                message = self._attend(v, source, block, allowed[k], Site("f2f_attention", layer, rows, k), scales[k])
                total = self.place.nodes if self.place else 0
                messages.append(self._message_dropout(message, 3 * layer, [k * total + r for r in rows]))
            concatenated = torch.cat(messages, 1)
            if self.c.f2f_residual == "sum":
                residual = eq6_full_message(v, sum(messages))
            elif self.c.f2f_residual == "proj":
                residual = concatenated @ self.w[f"f2f.{layer}.proj"].T
            else:
                residual = v
            out.append(self._update(residual, concatenated, block, "f2f_update", layer, rows))
        return out

    def _sample_softmax_scales(
        self, v: Tensor, nodes: Sequence[Tensor], block: Block, allowed: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """For f2f_softmax="sample": each modality's share of the softmax over all nodes of the sample."""
        if self.c.f2f_softmax == "modality":
            return [None] * len(nodes)
        scores = eq4_scores(v, torch.cat(list(nodes)), block.w1, block.w2, self.c.heads)
        joint = eq3_weights(scores, torch.cat(list(allowed), 1))
        shares = joint.split([n.shape[0] for n in nodes], 1)
        return [share.sum(1, keepdim=True) for share in shares]

    def f2l(self, u: Tensor, nodes: Tensor, m: int, t: int) -> Tensor:
        """Eqs 11-12 for modality m: (L, d)."""
        block = self._label_block("f2l", t, m)
        per_modality = not self.c.feedback or self.c.sharing == "per_step_and_modality"
        rows = self._label_rows(m)
        query_rows = rows if per_modality else self._label_rows(0)
        neighbours = torch.ones(u.shape[0], nodes.shape[0], dtype=torch.bool)
        at = Site("f2l_attention", t, query_rows, 0 if per_modality else m)
        message = self._attend(u, nodes, block, neighbours, at)
        g = eq6_full_message(u, self._message_dropout(message, 3 * t + 1, rows))
        return self._update(g, g, block, "f2l_update", t, rows)

    def l2l(self, u: Tensor, m: int, t: int) -> Tensor:
        """Eqs 13-14 for modality m: (L, d)."""
        block = self._label_block("l2l", t, m)
        neighbours = torch.ones(u.shape[0], u.shape[0], dtype=torch.bool)
        if self.label_mask is not None:
            neighbours &= self.label_mask
        if self.c.exclude_self:
            neighbours &= ~torch.eye(u.shape[0], dtype=torch.bool)
        rows = self._label_rows(m)
        message = self._attend(u, u, block, neighbours, Site("l2l_attention", t, rows))
        g = eq6_full_message(u, self._message_dropout(message, 3 * t + 2, rows))
        return self._update(g, g, block, "l2l_update", t, rows)

    def readout(self, states: Tensor, present: Sequence[bool], t: int) -> Tensor:
        """Eqs 15-16: (L, d)."""
        if "m2l" in self.c.without:
            return sum(states[m] for m, p in enumerate(present) if p)
        wl = self.w["readout.wl"]
        return eq15_fused(states, eq16_modality_weights(states, wl if wl.dim() == 1 else wl[t], present))

    def logits(self, fused: Tensor, detach: bool = False) -> Tensor:
        """Eq 17: (L,)."""
        wo = self.w["label_embedding"] if self.c.output_weight == "tied" else self.w["readout.wo"]
        out = eq17_logits(fused, wo.detach() if detach else wo)
        return out + self.w["readout.bias"] if self.c.output_bias else out

    def __call__(self, sample: Sequence[Tensor]) -> list[Tensor]:
        """The logits of every prediction in the order of the loss, the final one last; each (L,)."""
        nodes = self.embed(sample)
        if "f2f" not in self.c.without:
            for layer in range(self.c.f2f_layers):
                nodes = self.f2f(nodes, layer)
        present = [n.shape[0] > 0 or self.c.empty_modality == "keep" for n in nodes]
        states = [self.w["label_embedding"]] * len(nodes)
        lamp, out = self.c.intermediate == "lamp", []
        for t in range(self.c.steps):
            states = [self.f2l(u, nodes[m], m, t) for m, u in enumerate(states)]
            if lamp and "l2l" not in self.c.without:
                out.append(self.logits(self.readout(torch.stack(states), present, t), detach=True))
            if "l2l" not in self.c.without:
                states = [self.l2l(u, m, t) for m, u in enumerate(states)]
            fused = self.readout(torch.stack(states), present, t)
            out.append(self.logits(fused, detach=lamp and t < self.c.steps - 1))
            if self.c.feedback:
                states = [fused] * len(nodes)
        return out

    def loss(self, sample: Sequence[Tensor], targets: Tensor) -> Tensor:
        """Eq 20 of this sample."""
        logits = self(sample)
        if self.c.intermediate == "none":
            logits = logits[-1:]
        return eq20_joint(logits, targets, self.c.intermediate_weight)

    def _label_block(self, name: str, t: int, m: int) -> Block:
        at: tuple[int, ...] = (0 if self.c.sharing == "tied" else t,)
        return _block(self.c, self.w, name, at + (m,) if self.c.sharing == "per_step_and_modality" else at)

    def _label_rows(self, m: int) -> list[int]:
        labels = len(self.c.labels)
        b, batch = (self.place.index, self.place.batch) if self.place else (0, 1)
        return [(m * batch + b) * labels + label for label in range(labels)]


def sinusoids(v: Tensor) -> Tensor:
    """Positions of "Attention is all you need": sin and cos of place / 10000^(2i/d), interleaved."""
    place = torch.arange(v.shape[0], dtype=torch.float64)[:, None]
    column = torch.arange(v.shape[1], dtype=torch.float64)[None, :]
    angle = place / 10000 ** (2 * torch.div(column, 2, rounding_mode="floor") / v.shape[1])
    return torch.where(column % 2 == 0, torch.sin(angle), torch.cos(angle)).to(v.dtype)
