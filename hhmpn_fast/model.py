"""HHMPN: embeddings, feature-to-feature, then T label steps of feature-to-label, label-to-label and readout.

    v = W_x x                                            embed
    z = F2F(v)                        Eqs 9-10           f2f
    for t < T:  u^{m,t'} = F2L(u, z)  Eqs 11-12          tower
                u^{m,t+1} = L2L(u')   Eqs 13-14
                u^{t+1}, logits       Eqs 15-17

A call asks for its plan once (`hhmpn_fast.backends.plan`): a phase that a backend holds under this configuration is one
op, every other is composed from single ops (`hhmpn_fast.composed`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import hhmpn_fast
from hhmpn_fast import backends, composed, ops
from hhmpn_fast.autocast import compute_dtype
from hhmpn_fast.blocks import Block, FeatureBlock
from hhmpn_fast.bucket import Buffered
from hhmpn_fast.config import HHMPNConfig
from hhmpn_fast.errors import InputError
from hhmpn_fast.ragged import Ragged
from hhmpn_fast.weights import ModelWeights, TowerWeights


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
        for place, value in zip(self.rng, (seed, step)):
            place.fill_(value)  # in place and without a copy from the host: a captured step reads this memory

    def forward(self, features: Ragged | Buffered) -> Tensor:
        """Logits (P, B, L) of a packed batch, or of one in buffers, B then the bucket's."""
        features, plan, dropout = self.checked(features), self.plan(), self._next_dropout()
        if plan["model"].run is not None:
            weights = dict(self.named_parameters())
            return plan["model"].run(self.config, weights, features, self.label_mask, dropout)
        x = composed.embed(self.config, features, [e.weight for e in self.embed], [e.bias for e in self.embed])
        composed.draw_ahead(self.config, x, features, dropout)
        for index in range(len(self.f2f)):
            x = self._f2f(plan, x, features.offsets, index, dropout)
        return self._tower(plan, x, features, dropout)

    def _f2f(self, plan: backends.Plan, v: Tensor, offsets: Tensor, index: int, dropout: ops.Dropout | None) -> Tensor:
        """Eqs 9-10 of one layer: v (N, d) -> z (N, d)."""
        block = self.f2f[index]
        w = block.absorbed()
        if plan["f2f"].run is not None:
            return plan["f2f"].run(v, offsets, w, dropout, index)
        layer = composed.Layer(index, w, block.norms(), getattr(block, "proj", None))
        return composed.f2f(self.config, v, offsets, layer, dropout)

    def _tower(
        self, plan: backends.Plan, z: Tensor, features: Ragged | Buffered, dropout: ops.Dropout | None
    ) -> Tensor:
        """Eqs 11-17 for all steps: logits (P, B, L)."""
        c, offsets, mask, w = self.config, features.offsets, self.l2l_mask, self._tower_weights()
        present = features.present if c.empty_modality == "mask" else torch.ones_like(features.present)
        if plan["tower"].run is not None:
            return plan["tower"].run(z, offsets, present, self.label_embedding, w, c.steps, mask, dropout)
        norms = self.f2l.norms(), None if self.l2l is None else self.l2l.norms()
        rest = composed.Readout(self.label_embedding, getattr(self.readout, "bias", None), *norms)
        return composed.tower(composed.LabelSteps(c, z, offsets, present, mask, dropout), w, rest)

    def loss(
        self,
        logits: Tensor,
        targets: Tensor,
        label_weights: Tensor | None = None,
        samples: Tensor | None = None,
    ) -> Tensor:
        """Eq 20: the final BCE plus lambda times the intermediate ones. targets (B, L) in [0, 1].

        `samples` (), int32 on the logits' device, counts the first ones that are real: the mean is over these.
        """
        if self.config.intermediate == "none":
            logits = logits[-1:]
        return ops.joint_bce(logits, targets, self.config.intermediate_weight, label_weights, samples)

    def joint_loss(
        self, features: Ragged | Buffered, targets: Tensor, label_weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`loss(self(features), targets, label_weights)` and the logits, detached: what a training step asks for.

        A backend that holds the whole of it as one op computes the gradients with the loss, in chunks of samples, so
        that the step's memory does not grow with the batch; elsewhere, for features that require a gradient and for a
        batch in buffers, whose own samples alone count, it is the call above.

        Raises:
            InputError: a modality is missing, or has another feature size.
        """
        features, c = self.checked(features), self.config
        run = self.plan()["joint_loss"].run
        buffered = isinstance(features, Buffered)
        if run is None or buffered or any(v.requires_grad for v in features.values):
            logits = self(features)
            wide = logits if logits.dtype == torch.float64 else logits.float()
            samples = features.samples if buffered else None
            return self.loss(wide, targets, label_weights, samples), logits.detach()
        weight = 0.0 if c.intermediate == "none" else c.intermediate_weight
        asked = ops.JointLoss(c.steps, weight, label_weights, self.l2l_mask)
        data = (features.values, features.offsets, features.present, targets)
        return run(*data, self.weights(), asked, self._next_dropout())

    def plan(self) -> backends.Plan:
        """Who runs which phase of the next call; `print(hhmpn_fast.explain(config=model.config))` says it in words."""
        return backends.plan(self.config, self.label_embedding.device.type, self.compute_dtype())

    def compute_dtype(self) -> torch.dtype:
        """The dtype of node and label states: the parameters', or autocast's."""
        return compute_dtype(self.label_embedding)

    def freeze(self, dtype: torch.dtype | None = None, graph: bool | None = None) -> hhmpn_fast.Frozen:
        """A copy for inference only, whose weights are absorbed and packed once; see `hhmpn_fast.freeze`."""
        return hhmpn_fast.freeze(self, dtype, graph)

    def _next_dropout(self) -> ops.Dropout | None:
        if not self.training or self.config.dropout == 0:
            return None
        dropout = ops.Dropout(self.config.dropout, self.rng.clone(), 0)  # the backward pass reads this step's
        _, step = self.rng
        step.add_(1)
        return dropout

    def checked(self, features: Ragged | Buffered) -> Ragged | Buffered:
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

    def weights(self) -> ModelWeights:
        """The parameters as ops read them, absorbed."""
        return ModelWeights(
            embed=[e.weight for e in self.embed],
            embed_bias=[e.bias for e in self.embed],
            f2f=[block.absorbed() for block in self.f2f],
            label_embedding=self.label_embedding,
            **self._tower_weights()._asdict(),
        )

    def _tower_weights(self) -> TowerWeights:
        tied = self.config.output_weight == "tied"
        return TowerWeights(
            f2l=self.f2l.absorbed(),
            l2l=None if self.l2l is None else self.l2l.absorbed(),
            wl=getattr(self.readout, "wl", None),
            wo=self.label_embedding if tied else self.readout.wo,
        )
