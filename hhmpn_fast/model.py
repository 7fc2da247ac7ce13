"""HHMPN: embeddings, feature-to-feature, then T label steps of feature-to-label, label-to-label and readout.

    v = W_x x                                            ops.embed
    z = F2F(v)                        Eqs 9-10           ops.attention, ops.update_features   (one phase: f2f)
    for t < T:  u^{m,t'} = F2L(u, z)  Eqs 11-12          ops.attention, ops.update_labels     (one phase: tower)
                u^{m,t+1} = L2L(u')   Eqs 13-14          ops.attention, ops.update_labels
                u^{t+1}, logits       Eqs 15-17          ops.readout

A backend that has a whole phase as one op runs it when the configuration is the equations' own; the composition below
is the same mathematics from single ops, and carries every other reading.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hhmpn_fast import backends, ops
from hhmpn_fast.blocks import Block, FeatureBlock
from hhmpn_fast.config import HHMPNConfig
from hhmpn_fast.errors import InputError
from hhmpn_fast.frozen import Frozen
from hhmpn_fast.ragged import Ragged
from hhmpn_fast.reference import Place, Reference, philox_keep, sinusoids
from hhmpn_fast.weights import BlockWeights, ModelWeights


class Readout(nn.Module):
    """W^l (d,) or (T, d) of Eq 16, W^o (L, d) of Eq 17 and an optional bias (L,)."""

    def __init__(self, config: HHMPNConfig) -> None:
        super().__init__()
        d, labels = config.dim, len(config.labels)
        if "m2l" not in config.without:
            shape = (d,) if config.readout_scorer == "shared" else (config.steps, d)
            self.wl = nn.Parameter(torch.empty(shape).uniform_(-(d**-0.5), d**-0.5))
        if config.output_weight == "own":
            self.wo = nn.Parameter(torch.empty(labels, d).uniform_(-(d**-0.5), d**-0.5))
        if config.output_bias:
            self.bias = nn.Parameter(torch.zeros(labels))


class HHMPN(nn.Module):
    """The network over packed ragged modalities.

    Called with a `Ragged` batch of B samples it returns logits (P, B, L), one row a prediction of the loss, the final
    one last; P = T, or 2T with `intermediate="lamp"`. Sigmoid of `logits[-1]` is Eq 17.

    Args:
        config: sizes and readings.
        label_mask: bool (L, L), needed by `label_graph="prior"` and by nothing else: entry [i, j] says label i reads j.

    Raises:
        InputError: a modality the configuration names is missing, or has another feature size.
    """

    def __init__(self, config: HHMPNConfig, label_mask: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        d, modalities, labels = config.dim, len(config.modalities), len(config.labels)
        if (label_mask is not None) != (config.label_graph == "prior"):
            found = "none" if label_mask is None else f"one of shape {tuple(label_mask.shape)}"
            graph = config.label_graph
            raise InputError(f"label_mask: found {found} with label_graph='{graph}'; expected one for 'prior' only.")
        if label_mask is not None and (label_mask.shape != (labels, labels) or label_mask.dtype != torch.bool):
            raise InputError(
                f"label_mask: found {label_mask.dtype} {tuple(label_mask.shape)}; expected bool ({labels}, {labels})."
            )
        self.embed = nn.ModuleList(nn.Linear(size, d, config.embed_bias) for size in config.modalities.values())
        for linear in self.embed:
            nn.init.xavier_uniform_(linear.weight, 0.5)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        layers = 0 if "f2f" in config.without else config.f2f_layers
        self.f2f = nn.ModuleList(FeatureBlock(config) for _ in range(layers))
        sets = (config.weight_sets,) + ((modalities,) if config.sharing == "per_step_and_modality" else ())
        self.f2l = Block(config, sets, uniform="f2l" in config.without)
        self.l2l = None if "l2l" in config.without else Block(config, sets)
        self.label_embedding = nn.Parameter(torch.randn(labels, d) * d**-0.5)
        self.readout = Readout(config)
        self.register_buffer("label_mask", label_mask)
        self.register_buffer("rng", torch.zeros(2, dtype=torch.int64), persistent=False)
        mask = label_mask
        if config.exclude_self:
            own = ~torch.eye(labels, dtype=torch.bool)
            mask = own if mask is None else mask & own
        self.register_buffer("l2l_mask", mask, persistent=False)

    def seed_dropout(self, seed: int, step: int = 0) -> None:
        """Sets the dropout stream; every training forward then uses the next step."""
        self.rng = torch.tensor([seed, step], dtype=torch.int64, device=self.rng.device)

    def forward(self, features: Ragged) -> Tensor:
        """Logits (P, B, L) of a packed batch."""
        features, dropout = self.checked(features), self._next_dropout()
        if backends.current() == "reference":
            return self._reference(features, dropout)
        present = features.present if self.config.empty_modality == "mask" else torch.ones_like(features.present)
        return self._tower(self._features(features, dropout), features, present, dropout)

    def loss(self, logits: Tensor, targets: Tensor, label_weights: Tensor | None = None) -> Tensor:
        """Eq 20: the final BCE plus lambda times the intermediate ones. targets (B, L) in [0, 1]."""
        if self.config.intermediate == "none":
            logits = logits[-1:]
        return ops.joint_bce(logits, targets, self.config.intermediate_weight, label_weights)

    def joint_loss(
        self, features: Ragged, targets: Tensor, label_weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`loss(self(features), targets, label_weights)` and the logits, detached: what a training step asks for.

        A backend that holds the whole of it as one op computes the gradients with the loss, in chunks of samples, so
        that the step's memory does not grow with the batch; elsewhere, and for features that require a gradient, it is
        the call above.

        Raises:
            InputError: a modality is missing, or has another feature size.
        """
        features, c = self.checked(features), self.config
        values = features.values
        run = None
        if self.runs_whole() and not any(v.requires_grad for v in values):
            run = backends.phase("joint_loss", backends.Call(values[0].device.type, self.compute_dtype(), c.dim))
        if run is None:
            logits = self(features)
            wide = logits if logits.dtype == torch.float64 else logits.float()
            return self.loss(wide, targets, label_weights), logits.detach()
        weight = 0.0 if c.intermediate == "none" else c.intermediate_weight
        asked = ops.JointLoss(c.steps, weight, label_weights, self.l2l_mask)
        data = (values, features.offsets, features.present, targets)
        return run(*data, self.weights(), asked, self._next_dropout())

    def compute_dtype(self) -> torch.dtype:
        """The dtype of node and label states: the parameters', or autocast's."""
        device = self.label_embedding.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return self.label_embedding.dtype

    def freeze(self, dtype: torch.dtype | None = None) -> Frozen:
        """A copy for inference only, whose weights are absorbed and packed once; see `hhmpn_fast.frozen.Frozen`."""
        return Frozen(self, dtype)

    def _next_dropout(self) -> ops.Dropout | None:
        if not self.training or self.config.dropout == 0:
            return None
        dropout = ops.Dropout(self.config.dropout, self.rng, 0)
        self.rng = self.rng + torch.tensor([0, 1], device=self.rng.device)
        return dropout

    def checked(self, features: Ragged) -> Ragged:
        """The batch with the configuration's modalities in its order; raises InputError where they do not fit."""
        names = tuple(self.config.modalities)
        if features.names != names:
            missing = [n for n in names if n not in features.names]
            if missing:
                raise InputError(
                    f"modality '{missing[0]}': not in the batch, which holds {', '.join(features.names)}; "
                    f"expected {', '.join(names)}."
                )
            features = features.select(names)
        for (name, size), value in zip(self.config.modalities.items(), features.values):
            if value.shape[1] != size:
                raise InputError(f"modality '{name}': features of size {value.shape[1]}; expected {size}.")
        return features

    def _features(self, features: Ragged, dropout: ops.Dropout | None) -> Tensor:
        """Embeddings and Eqs 9-10: z (N, d), modality-major."""
        x = ops.embed(features.values, [e.weight for e in self.embed], [e.bias for e in self.embed])
        if self.config.embed_activation != "none":
            x = getattr(torch, self.config.embed_activation)(x)
        if self.config.positions:
            x = x + self._positions(features, x)
        for layer, block in enumerate(self.f2f):
            x = self._f2f(x, features.offsets, layer, block, dropout)
        return x

    def _positions(self, features: Ragged, x: Tensor) -> Tensor:
        place = torch.cat([torch.arange(int(n)) for n in features.lengths.flatten()]).to(x.device)
        longest = max(int(features.lengths.max()), 1)
        chosen = torch.tensor([n in self.config.positions for n in features.names])
        chosen = torch.repeat_interleave(chosen, features.lengths.sum(1)).to(x.device)
        table = sinusoids(torch.zeros(longest, x.shape[1], dtype=x.dtype)).to(x.device)
        return table[place] * chosen[:, None]

    def _whole_f2f(self) -> bool:
        """Whether F2F is the equations' own, which a backend may hold as one op."""
        c = self.config
        special = (c.f2f_residual, c.f2f_softmax, c.exclude_self, c.heads, c.norm, c.dropout_place, c.hidden)
        return special == ("sum", "modality", False, 1, "none", "weights_and_update", c.dim)

    def _whole_tower(self) -> bool:
        """The same of the label steps."""
        c = self.config
        special = (c.heads, c.norm, c.dropout_place, c.hidden, c.feedback, c.readout_scorer, c.output_bias)
        plain = special == (1, "none", "weights_and_update", c.dim, True, "shared", False)
        plain = plain and c.intermediate != "lamp" and c.sharing != "per_step_and_modality"
        return plain and c.empty_modality == "mask"

    def runs_whole(self) -> bool:
        """Whether every phase is the equations' own, so that one op may hold them all."""
        c = self.config
        f2f = not self.f2f or (self._whole_f2f() and len(c.modalities) > 1)
        return f2f and self._whole_tower() and c.embed_activation == "none" and not c.positions

    def weights(self) -> ModelWeights:
        """The parameters as ops read them, absorbed."""
        wl, wo = self._readout()
        return ModelWeights(
            embed=[e.weight for e in self.embed],
            embed_bias=[e.bias for e in self.embed],
            f2f=[block.absorbed() for block in self.f2f],
            f2l=self.f2l.absorbed(),
            l2l=None if self.l2l is None else self.l2l.absorbed(),
            label_embedding=self.label_embedding,
            wl=wl,
            wo=wo,
        )

    def _readout(self) -> tuple[Tensor | None, Tensor]:
        wo = self.label_embedding if self.config.output_weight == "tied" else self.readout.wo
        return getattr(self.readout, "wl", None), wo

    def _f2f(self, x: Tensor, offsets: Tensor, layer: int, block: FeatureBlock, dropout: ops.Dropout | None) -> Tensor:
        c, w, modalities = self.config, block.absorbed(), len(self.config.modalities)
        if self._whole_f2f():
            run = backends.phase("f2f", backends.Call.of(x))
            if run is not None:
                return run(x, offsets, w, dropout, layer)
        q = (x @ w.query).view(-1, c.dim)
        q_offsets = offsets * c.heads if c.heads > 1 else offsets
        at = dropout and dropout.at("f2f_attention", layer)
        if c.exclude_self and c.heads > 1:
            raise InputError("exclude_self: found heads > 1; expected one head, where F2F's own node can be left out.")
        context, lse = ops.attention(q, x, q_offsets, offsets, modalities, exclude_self=c.exclude_self, dropout=at)
        if c.f2f_softmax == "sample":
            context = context * torch.softmax(lse, 0).nan_to_num()[..., None]
        context = context.reshape(modalities, x.shape[0], c.heads * c.dim)
        options = ops.UpdateOptions(
            norms=block.norms(),
            residual=c.f2f_residual,
            proj=getattr(block, "proj", None),
            message_dropout=self._message_dropout(dropout, 3 * layer),
        )
        return ops.update_features(x, context, w, dropout and dropout.at("f2f_update", layer), options)

    def _message_dropout(self, dropout: ops.Dropout | None, layer: int) -> ops.Dropout | None:
        if self.config.dropout_place != "lamp":
            return None
        # Rate 0 keeps the un-absorbed form that this reading's weights have.
        base = dropout or ops.Dropout(0.0, self.rng, 0)
        return base.at("message", layer)

    def _options(self, block: Block, at: int, dropout: ops.Dropout | None, layer: int) -> ops.UpdateOptions:
        norms = block.norms()
        return ops.UpdateOptions(norms and norms.at(at), message_dropout=self._message_dropout(dropout, layer))

    def _tower(self, z: Tensor, features: Ragged, present: Tensor, dropout: ops.Dropout | None) -> Tensor:
        """Eqs 11-17 for all steps: logits (P, B, L)."""
        c = self.config
        f2l, l2l = self.f2l.absorbed(), self.l2l.absorbed() if self.l2l is not None else None
        wl, wo = self._readout()
        bias = getattr(self.readout, "bias", None)
        if self._whole_tower():
            run = backends.phase("tower", backends.Call.of(z))
            if run is not None:
                offsets, u0 = features.offsets, self.label_embedding
                w = ops.TowerWeights(f2l, l2l, wl, wo)
                return run(z, offsets, present, u0, w, c.steps, self.l2l_mask, dropout)

        modalities, batch = present.shape
        rows = batch * len(c.labels)
        per_modality = not c.feedback or c.sharing == "per_step_and_modality"
        fused = self.label_embedding.expand(batch, -1, -1).reshape(rows, c.dim)
        states = fused.expand(modalities, -1, -1) if per_modality else fused
        logits = []
        for t in range(c.steps):
            at = 0 if c.sharing == "tied" else t
            wl_t = wl if wl is None or wl.dim() == 1 else wl[t]
            states = self._f2l(states, z, features.offsets, f2l.at(at), at, t, present.shape, dropout)
            if c.intermediate == "lamp" and l2l is not None:
                half = states.view(modalities, batch, len(c.labels), c.dim)
                logits.append(ops.readout(half, present, wl_t, wo.detach(), bias)[1])
            if l2l is not None:
                states = self._l2l(states, l2l.at(at), at, t, dropout)
            detached = c.intermediate == "lamp" and t < c.steps - 1
            view = states.view(modalities, batch, len(c.labels), c.dim)
            fused, out, _ = ops.readout(view, present, wl_t, wo.detach() if detached else wo, bias)
            logits.append(out)
            if c.feedback:
                fused = fused.view(rows, c.dim)
                states = fused.expand(modalities, -1, -1) if per_modality else fused
        return torch.stack(logits)

    def _f2l(
        self,
        u: Tensor,
        z: Tensor,
        offsets: Tensor,
        w: BlockWeights,
        at: int,
        t: int,
        shape: tuple[int, int],
        dropout: ops.Dropout | None,
    ) -> Tensor:
        """Eqs 11-12: u (B*L, d) shared by the modalities, or (M, B*L, d) -> (M, B*L, d)."""
        modalities, batch = shape
        q = torch.zeros_like(u) if w.query is None else u @ w.query
        heads = q.shape[-1] // u.shape[-1]
        segments = batch if u.dim() == 2 else modalities * batch
        context = self._read(q, z, offsets, segments, modalities if u.dim() == 2 else 1, heads, t, dropout)
        context = context.reshape(modalities, -1, heads * u.shape[-1])
        update = dropout and dropout.at("f2l_update", t)
        return ops.update_labels(u, context, w, update, self._options(self.f2l, at, dropout, 3 * t + 1))

    def _read(
        self,
        q: Tensor,
        z: Tensor,
        offsets: Tensor,
        segments: int,
        groups: int,
        heads: int,
        t: int,
        dropout: ops.Dropout | None,
    ) -> Tensor:
        rows = len(self.config.labels) * heads
        q_offsets = torch.arange(0, rows * segments + 1, rows, dtype=torch.int32, device=z.device)
        at = dropout and dropout.at("f2l_attention", t)
        return ops.attention(q.reshape(-1, z.shape[1]), z, q_offsets, offsets, groups, dropout=at)[0]

    def _l2l(self, u: Tensor, w: BlockWeights, at: int, t: int, dropout: ops.Dropout | None) -> Tensor:
        """Eqs 13-14: u (M, B*L, d) -> (M, B*L, d)."""
        d, labels = u.shape[-1], len(self.config.labels)
        q = u @ w.query
        heads = q.shape[-1] // d
        x, segments = u.reshape(-1, d), u.shape[0] * u.shape[1] // labels
        offsets = torch.arange(0, segments * labels + 1, labels, dtype=torch.int32, device=u.device)
        mask = self.l2l_mask
        if mask is not None and heads > 1:
            mask = mask.repeat_interleave(heads, 0)
        drop = dropout and dropout.at("l2l_attention", t)
        context, _ = ops.attention(q.reshape(-1, d), x, offsets * heads, offsets, 1, mask=mask, dropout=drop)
        context = context.reshape(*u.shape[:2], heads * d)
        update = dropout and dropout.at("l2l_update", t)
        return ops.update_labels(u, context, w, update, self._options(self.l2l, at, dropout, 3 * t + 2))

    def _reference(self, features: Ragged, dropout: ops.Dropout | None) -> Tensor:
        """The reference, one sample at a time: logits (P, B, L)."""
        weights = {**dict(self.named_parameters())}
        keep = None if dropout is None else philox_keep(dropout.p, *dropout.rng.tolist())
        starts = features.offsets.tolist()
        batch, out = features.batch_size, []
        for b in range(batch):
            first = [starts[m * batch + b] for m in range(len(features.names))]
            stops = [starts[m * batch + b + 1] for m in range(len(features.names))]
            base = [starts[m * batch] for m in range(len(features.names))]
            sample = [v[i - o : j - o] for v, i, j, o in zip(features.values, first, stops, base)]
            place = Place(b, batch, first, starts[-1])
            out.append(torch.stack(Reference(self.config, weights, self.label_mask, keep, place)(sample)))
        if not out:
            return features.values[0].new_zeros(self._predictions(), 0, len(self.config.labels))
        return torch.stack(out, 1)

    def _predictions(self) -> int:
        both = self.config.intermediate == "lamp" and self.l2l is not None
        return 2 * self.config.steps if both else self.config.steps
