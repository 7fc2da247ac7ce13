"""The phases of a model composed from single ops, each by the backend that the choice picks: every reading.

    embed    v = W_x x, its activation and positions                         ops.embed
    f2f      z = r + UPD(concat msg)                      Eqs 9-10           ops.attention, ops.update_features
    tower    for t < T:  u^{m,t'} = F2L(u, z)             Eqs 11-12          ops.attention, ops.update_labels
                         u^{m,t+1} = L2L(u')              Eqs 13-14          ops.attention, ops.update_labels
                         u^{t+1}, logits                  Eqs 15-17          ops.readout

`HOLDS` lists the readings that this code knows, by the part of the model that they touch; a plan refuses any other.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hhmpn_fast import lengths, ops
from hhmpn_fast.bucket import Buffered
from hhmpn_fast.config import HHMPNConfig
from hhmpn_fast.errors import InputError
from hhmpn_fast.ragged import Ragged
from hhmpn_fast.reference import sinusoids
from hhmpn_fast.weights import BlockWeights, Norms, TowerWeights

_BLOCK = ("heads", "norm=post", "dropout", "dropout_place=lamp", "update_hidden")
_LABELS = ("sharing=tied", "sharing=per_step_and_modality", "without=f2f", "without=f2l", "without=l2l", "without=m2l")
HOLDS = {
    "embed": ("embed_bias", "embed_activation=relu", "embed_activation=tanh", "positions"),
    "f2f": (
        *("f2f_residual=node", "f2f_residual=proj", "f2f_softmax=sample", "f2f_layers", "exclude_self", "one modality"),
        *_BLOCK,
    ),
    "f2l": ("feedback", *_LABELS, *_BLOCK),
    "l2l": ("exclude_self", "label_graph=prior", *_LABELS, *_BLOCK),
    "readout": (
        *("readout_scorer=per_step", "output_weight=tied", "output_bias", "feedback", "empty_modality=keep"),
        *("intermediate=lamp", "intermediate=none", *_LABELS),
    ),
    "loss": ("intermediate=lamp", "intermediate=none", "intermediate_weight"),
}


def embed(
    config: HHMPNConfig, features: Ragged | Buffered, weights: list[Tensor], biases: list[Tensor | None]
) -> Tensor:
    """All nodes v (N, d), modality-major."""
    x = features.dense(ops.embed(features.inputs(), weights, biases))
    if config.embed_activation != "none":
        x = getattr(torch, config.embed_activation)(x)
    if not config.positions:
        return x
    place, modality = features.places()
    named = [n in config.positions for n in features.names]
    chosen = features.constant("positions", lambda: torch.tensor(named).to(x.device))[modality]
    empty = torch.zeros(features.longest, x.shape[1], dtype=x.dtype)
    table = features.constant("sinusoids", lambda: sinusoids(empty).to(x.device))
    return x + table[place] * chosen[:, None]


def draw_ahead(config: HHMPNConfig, v: Tensor, features: Ragged | Buffered, dropout: ops.Dropout | None) -> None:
    """The dropout of a whole call in one pass, where a launch is dear; a reading of other rows draws at its place."""
    if dropout is None or not ops.draws_ahead(v):
        return
    modalities, batch, labels, d = len(config.modalities), features.batch_size, len(config.labels), config.dim
    rows, heads, table = modalities * batch * labels, config.heads, features.offsets

    def sites(kind: str, layers: int) -> range:
        first, second = (dropout.at(kind, layer).site for layer in (0, 1))
        return range(first, first + layers * (second - first), second - first)

    labels_in = lengths.uniform(modalities * batch, labels, v.device)
    labels_out = lengths.times(labels_in, heads)
    attended = {
        "f2f": (config.f2f_layers, ops.Segments(lengths.times(table, heads), table, modalities)),
        "f2l": (config.steps, ops.Segments(lengths.uniform(batch, labels * heads, v.device), table, modalities)),
        "l2l": (config.steps, ops.Segments(labels_out, labels_in, 1)),
    }
    blocks = []
    for kind, (layers, segments) in attended.items():
        count = v.shape[0] if kind == "f2f" else rows
        if kind not in config.without:
            blocks += segments.blocks(sites(f"{kind}_attention", layers))
        blocks.append(ops.Block(count, d, sites(f"{kind}_update", layers)))
    ops.draw_ahead(dropout, [block for block in blocks if math.prod(block.shape)], v.device)


class Layer(NamedTuple):
    """One F2F layer: its number, absorbed weights, LayerNorms and the learned residual proj (d, M*d)."""

    index: int
    weights: BlockWeights
    norms: Norms | None
    proj: Tensor | None


def f2f(config: HHMPNConfig, v: Tensor, offsets: Tensor, layer: Layer, dropout: ops.Dropout | None) -> Tensor:
    """Eqs 9-10 for all nodes: v (N, d), offsets int32 (M*B+1,) -> z (N, d)."""
    modalities, w = len(config.modalities), layer.weights
    if config.exclude_self and config.heads > 1:
        raise InputError("exclude_self: found heads > 1; expected one head, where F2F's own node can be left out.")
    q = (v @ w.query).view(-1, config.dim)
    q_offsets = lengths.times(offsets, config.heads)
    at = dropout and dropout.at("f2f_attention", layer.index)
    context, lse = ops.attention(q, v, q_offsets, offsets, modalities, exclude_self=config.exclude_self, dropout=at)
    if config.f2f_softmax == "sample":
        context = context * torch.softmax(lse, 0).nan_to_num()[..., None]
    context = context.reshape(modalities, v.shape[0], config.heads * config.dim)
    message = _message_dropout(config, dropout, 3 * layer.index)
    options = ops.UpdateOptions(layer.norms, config.f2f_residual, layer.proj, message)
    return ops.update_features(v, context, w, dropout and dropout.at("f2f_update", layer.index), options)


class LabelSteps(NamedTuple):
    """What every label step reads: nodes z (N, d), offsets (M*B+1,), present (M, B), mask bool (L, L), dropout."""

    config: HHMPNConfig
    z: Tensor
    offsets: Tensor
    present: Tensor
    mask: Tensor | None
    dropout: ops.Dropout | None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """M, B, L, d."""
        return (*self.present.shape, len(self.config.labels), self.config.dim)

    def at(self, kind: str, t: int) -> ops.Dropout | None:
        """The dropout of one op of a step."""
        return self.dropout and self.dropout.at(kind, t)

    def options(self, norms: Norms | None, message: int) -> ops.UpdateOptions:
        """The readings of an update whose message is the call's number `message`."""
        return ops.UpdateOptions(norms, message_dropout=_message_dropout(self.config, self.dropout, message))


class Readout(NamedTuple):
    """What the tower's weights do not hold: first label states (L, d), output bias (L,), both blocks' LayerNorms."""

    label_embedding: Tensor
    bias: Tensor | None
    f2l_norms: Norms | None
    l2l_norms: Norms | None


def tower(steps: LabelSteps, w: TowerWeights, readout: Readout) -> Tensor:
    """Eqs 11-17 for all steps: logits (P, B, L)."""
    c, (modalities, batch, labels, d) = steps.config, steps.shape
    per_modality = not c.feedback or c.sharing == "per_step_and_modality"
    fused = readout.label_embedding.expand(batch, -1, -1).reshape(batch * labels, d)
    states = fused.expand(modalities, -1, -1) if per_modality else fused
    f2l, l2l = w.f2l.sets(), None if w.l2l is None else w.l2l.sets()
    logits = []
    for t in range(c.steps):
        at = 0 if c.sharing == "tied" else t
        wl = w.wl if w.wl is None or w.wl.dim() == 1 else w.wl[t]
        states = _f2l(steps, states, f2l[at], readout.f2l_norms and readout.f2l_norms.at(at), t)
        if c.intermediate == "lamp" and w.l2l is not None:
            half = states.view(steps.shape)
            _, out, _ = ops.readout(half, steps.present, wl, w.wo.detach(), readout.bias)
            logits.append(out)
        if w.l2l is not None:
            states = _l2l(steps, states, l2l[at], readout.l2l_norms and readout.l2l_norms.at(at), t)
        wo = w.wo.detach() if c.intermediate == "lamp" and t < c.steps - 1 else w.wo
        fused, out, _ = ops.readout(states.view(steps.shape), steps.present, wl, wo, readout.bias)
        logits.append(out)
        if c.feedback:
            fused = fused.view(batch * labels, d)
            states = fused.expand(modalities, -1, -1) if per_modality else fused
    return torch.stack(logits)


def _f2l(steps: LabelSteps, u: Tensor, w: BlockWeights, norms: Norms | None, t: int) -> Tensor:
    """Eqs 11-12: u (B*L, d) shared by the modalities, or (M, B*L, d) -> (M, B*L, d)."""
    modalities, batch, labels, d = steps.shape
    q = torch.zeros_like(u) if w.query is None else u @ w.query
    heads = q.shape[-1] // d
    segments, groups = (batch, modalities) if u.dim() == 2 else (modalities * batch, 1)
    rows = labels * heads
    q_offsets = lengths.uniform(segments, rows, u.device)
    at = steps.at("f2l_attention", t)
    context, _ = ops.attention(q.reshape(-1, d), steps.z, q_offsets, steps.offsets, groups, dropout=at)
    context = context.reshape(modalities, -1, heads * d)
    return ops.update_labels(u, context, w, steps.at("f2l_update", t), steps.options(norms, 3 * t + 1))


def _l2l(steps: LabelSteps, u: Tensor, w: BlockWeights, norms: Norms | None, t: int) -> Tensor:
    """Eqs 13-14: u (M, B*L, d) -> (M, B*L, d)."""
    modalities, batch, labels, d = steps.shape
    q = u @ w.query
    heads, segments = q.shape[-1] // d, modalities * batch
    offsets, q_offsets = (lengths.uniform(segments, labels * n, u.device) for n in (1, heads))
    mask = steps.mask
    if mask is not None and heads > 1:
        mask = mask.repeat_interleave(heads, 0)
    at = steps.at("l2l_attention", t)
    context, _ = ops.attention(q.reshape(-1, d), u.reshape(-1, d), q_offsets, offsets, 1, mask=mask, dropout=at)
    context = context.reshape(*u.shape[:2], heads * d)
    return ops.update_labels(u, context, w, steps.at("l2l_update", t), steps.options(norms, 3 * t + 2))


def _message_dropout(config: HHMPNConfig, dropout: ops.Dropout | None, call: int) -> ops.Dropout | None:
    if config.dropout_place != "lamp":
        return None
    # Rate 0 keeps the un-absorbed form that this reading's weights have.
    base = dropout or ops.Dropout(0.0, torch.zeros(2, dtype=torch.int64), 0)
    return base.at("message", call)
