"""Every reading of the paper's equations, as a named field; the defaults are the equations as printed.

Where the paper is unclear, one field holds the choice. `docs/readings.md` gives each field's reason and alternatives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from hhmpn_fast.errors import InputError

ABLATIONS = ("f2f", "f2l", "l2l", "m2l")

CHOICES: dict[str, tuple[Any, ...]] = {
    "f2f_residual": ("sum", "node", "proj"),
    "f2f_softmax": ("modality", "sample"),
    "sharing": ("per_step", "tied", "per_step_and_modality"),
    "norm": ("none", "post"),
    "dropout_place": ("weights_and_update", "lamp"),
    "embed_activation": ("none", "relu", "tanh"),
    "readout_scorer": ("shared", "per_step"),
    "output_weight": ("own", "tied"),
    "intermediate": ("fused", "lamp", "none"),
    "empty_modality": ("mask", "keep"),
    "label_graph": ("complete", "prior"),
}


def _check_choices(config: Any, choices: Mapping[str, tuple[Any, ...]]) -> None:
    for name, allowed in choices.items():
        found = getattr(config, name)
        if found not in allowed:
            raise InputError(f"{name}: found {found!r}; expected one of {', '.join(map(repr, allowed))}.")


def _check_range(config: Any, name: str, low: float, high: float, text: str) -> None:
    found = getattr(config, name)
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not low <= found <= high:
        raise InputError(f"{name}: found {found!r}; expected {text}.")


@dataclass(frozen=True)
class HHMPNConfig:
    """The model: sizes, ablations, and one field a reading of the paper.

    Sizes
        modalities: name -> feature size e_m of each modality the model reads; any subset of a data set's.
        labels: the label names, L of them.
        dim: d, the embedding size.  steps: T, the label update steps.
        update_hidden: hidden width of UPD; None means d.
    Ablations (Table 2)
        without: any of "f2f" (z = v), "f2l" (uniform mean message), "l2l" (skipped), "m2l" (sum readout).
    Readings
        f2f_residual: r_i of z_i = r_i + UPD(concat_m msg_m): "sum" v_i + sum_m msg_m, "node" v_i, "proj" learned.
        f2f_softmax: Eq 3 normalised over each source "modality" (Eq 9) or over all nodes of the "sample".
        exclude_self: whether N(i) leaves out i, for F2F and L2L.
        f2f_layers: rounds of F2F before the label loop.
        feedback: whether u^{t+1} replaces every u^{m,t+1}; False keeps one label stack a modality.
        sharing: weight sets of the label side: one a step, one for all ("tied"), one a step and modality.
        heads: attention heads; the scale is sqrt(d / heads).
        norm: "post" adds LayerNorm after both residuals of every MP+UPD block.
        dropout: rate on the attention weights and UPD's output; dropout_place "lamp" adds the attention output.
        embed_bias, embed_activation: of the node embedding W_x.
        positions: the modalities whose nodes get sinusoidal positions.
        readout_scorer: W^l of Eq 16, one vector or one a step.
        output_weight: W^o of Eq 17 its own matrix, or "tied" to the label embedding; output_bias adds a bias.
        intermediate: Eq 19 on the "fused" u^t with W^o shared; "lamp" detaches W^o and adds the half steps; "none".
        intermediate_weight: lambda of Eq 20.
        empty_modality: "mask" takes an empty modality out of Eq 16, "keep" leaves its label states in.
        label_graph: "complete" (the paper), or "prior": only labels that co-occur in training (LaMP), which the model
            takes as an (L, L) mask.
    """

    modalities: Mapping[str, int]
    labels: tuple[str, ...]
    dim: int = 256
    steps: int = 3
    update_hidden: int | None = None
    without: tuple[str, ...] = ()
    f2f_residual: str = "sum"
    f2f_softmax: str = "modality"
    exclude_self: bool = False
    f2f_layers: int = 1
    feedback: bool = True
    sharing: str = "per_step"
    heads: int = 1
    norm: str = "none"
    dropout: float = 0.2
    dropout_place: str = "weights_and_update"
    embed_bias: bool = True
    embed_activation: str = "none"
    positions: tuple[str, ...] = ()
    readout_scorer: str = "shared"
    output_weight: str = "own"
    output_bias: bool = False
    intermediate: str = "fused"
    intermediate_weight: float = 0.2
    empty_modality: str = "mask"
    label_graph: str = "complete"

    def __post_init__(self) -> None:
        object.__setattr__(self, "modalities", dict(self.modalities))
        for name in ("labels", "without", "positions"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise InputError(f"{name}: found the text {value!r}; expected a list of names.")
            object.__setattr__(self, name, tuple(value))
        if not self.modalities:
            raise InputError("modalities: found none; expected at least one name with its feature size.")
        for name, size in self.modalities.items():
            if not isinstance(size, int) or size < 1:
                raise InputError(f"modality '{name}': feature size is {size!r}; expected an integer of at least 1.")
        if not self.labels or len(set(self.labels)) != len(self.labels):
            raise InputError(f"labels: found {list(self.labels)}; expected at least one name, each once.")
        _check_choices(self, CHOICES)
        for name in self.without:
            if name not in ABLATIONS:
                raise InputError(f"without: found '{name}'; expected any of {', '.join(ABLATIONS)}.")
        for name in self.positions:
            if name not in self.modalities:
                raise InputError(f"positions: found '{name}'; expected any of {', '.join(self.modalities)}.")
        for name in ("dim", "steps", "f2f_layers", "heads"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name}: found {value!r}; expected an integer of at least 1.")
        if self.dim % self.heads:
            raise InputError(f"heads: found {self.heads}; expected a divisor of dim = {self.dim}.")
        if self.update_hidden is not None and self.update_hidden < 1:
            raise InputError(f"update_hidden: found {self.update_hidden}; expected an integer of at least 1, or none.")
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"dropout: found {self.dropout}; expected 0 <= rate < 1.")
        _check_range(self, "intermediate_weight", 0.0, float("inf"), "a number of at least 0")

    @property
    def hidden(self) -> int:
        """Hidden width of UPD."""
        return self.update_hidden or self.dim

    @property
    def weight_sets(self) -> int:
        """How many sets of label-side weights there are along the steps."""
        return 1 if self.sharing == "tied" else self.steps

    def with_(self, **changes: Any) -> HHMPNConfig:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        out = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in out.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HHMPNConfig:
        """The inverse of `to_dict`; an unknown field is refused by name."""
        return from_dict(cls, values)


@dataclass(frozen=True)
class TrainingConfig:
    """The optimisation and the evaluation protocol, one field a reading.

    Adam with global-norm clipping; the epoch with the best validation micro-F1 is kept, an earlier epoch on ties;
    select_by "last" keeps the last one (for validation splits too small to choose by).
    `weight_decay` is decoupled (AdamW); 0 is Adam.
    `average`: decay of a moving average of the weights, which is then what is validated and kept; 0 is off.
    `patience` ends a run after that many epochs without a better one; None runs all epochs.
    `standardise` names the modalities served as (x - mean) / sd of the training split; "all", or none of them.
    `threshold` is the headline's; the tuned one, chosen on validation, is always a second line.
    """

    epochs: int = 20
    batch_size: int = 64
    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.0
    average: float = 0.0
    warmup_steps: int = 0
    lr_decay: str = "none"
    clip: float = 10.0
    threshold: float = 0.5
    select_by: str = "micro_f1"
    class_weights: str = "none"
    patience: int | None = None
    seed: int = 0
    standardise: tuple[str, ...] = ("all",)
    bf16: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "standardise", tuple(self.standardise))
        _check_choices(
            self,
            {
                "lr_decay": ("none", "cosine"),
                "select_by": ("micro_f1", "macro_f1", "accuracy", "micro_f1_tuned", "last"),
                "class_weights": ("none", "balanced"),
            },
        )
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name}: found {value!r}; expected an integer of at least 1.")
        for name in ("lr", "eps", "weight_decay", "clip", "warmup_steps", "seed"):
            _check_range(self, name, 0.0, float("inf"), "a number of at least 0")
        _check_range(self, "threshold", 0.0, 1.0, "a probability")
        if not 0.0 <= self.average < 1.0:
            raise InputError(f"average: found {self.average}; expected 0 <= decay < 1.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        out = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in out.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """The inverse of `to_dict`; an unknown field is refused by name."""
        return from_dict(cls, values)


def from_dict(cls: type, values: Mapping[str, Any]) -> Any:
    """Builds a config dataclass from plain values; refuses unknown and missing fields by name."""
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise InputError(f"option '{unknown[0]}': unknown; expected one of {', '.join(sorted(known))}.")
    required = {
        f.name for f in fields(cls) if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    missing = sorted(required - set(values))
    if missing:
        raise InputError(f"option '{missing[0]}': missing; expected a value.")
    return cls(**values)


def replace(config: Any, **changes: Any) -> Any:
    """`dataclasses.replace` that names an unknown field."""
    unknown = sorted(set(changes) - {f.name for f in fields(config)})
    if unknown:
        expected = ", ".join(f.name for f in fields(config))
        raise InputError(f"option '{unknown[0]}': unknown; expected one of {expected}.")
    return dataclasses.replace(config, **changes)


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "tied": {"sharing": "tied"},
    "lamp": {
        "norm": "post",
        "heads": 4,
        "dropout_place": "lamp",
        "intermediate": "lamp",
        "sharing": "per_step",
        "label_graph": "prior",
    },
}


def preset(name: str, modalities: Mapping[str, int], labels: tuple[str, ...], **changes: Any) -> HHMPNConfig:
    """A named starting point: `paper` (the equations), `tied` (one weight set), `lamp` (LaMP's habits)."""
    if name not in PRESETS:
        raise InputError(f"preset: found '{name}'; expected one of {', '.join(PRESETS)}.")
    return from_dict(HHMPNConfig, {"modalities": modalities, "labels": labels, **PRESETS[name], **changes})
