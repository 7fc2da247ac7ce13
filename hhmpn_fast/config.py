"""Every reading of the paper's equations, as a named field; the defaults are the equations as printed.

Where the paper is unclear, one field holds the choice. `docs/readings.md` gives each field's reason and alternatives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hhmpn_fast.errors import InputError
from hhmpn_fast.fields import check_choices, check_counts, check_range, from_dict, replace, to_dict
from hhmpn_fast.readings import Deviation, choices, deviations, reading, size, touching

ABLATIONS = ("f2f", "f2l", "l2l", "m2l")


@dataclass(frozen=True)
class HHMPNConfig:
    """The model: sizes, then one field a reading of the paper.

    Each field says what it may be, which spot of the paper it reads and why so by default; see docs/readings.md.

    Sizes
        modalities: name -> feature size e_m of each modality the model reads; any subset of a data set's.
        labels: the label names, L of them.
        dim: d, the embedding size.  steps: T, the label update steps.
    """

    modalities: Mapping[str, int] = size(own=lambda c: len(c.modalities) > 1, touches=("f2f",), said="one modality")
    labels: tuple[str, ...] = size()
    dim: int = size(256)
    steps: int = size(3)
    update_hidden: int | None = reading(
        None,
        touches=("f2f", "f2l", "l2l"),
        own=lambda c: c.hidden == c.dim,
        spot="hidden width of UPD",
        options="d, any",
        why="every matrix but W^r_xx has one size",
    )
    without: tuple[str, ...] = reading(
        (),
        touches=("f2l", "l2l", "readout"),
        spot='"w/o F2F, F2L, L2L, M2L"',
        options="any subset; F2L becomes the uniform mean, M2L the sum, the others are skipped",
        why="Table 2 and its text",
    )
    f2f_residual: str = reading(
        "sum",
        choices=("sum", "node", "proj"),
        touches=("f2f",),
        spot="Eq 9-10: g is M d wide, UPD(g) is d wide",
        options="`sum`: z = v + sum_m msg_m + UPD(concat msg); `node`: v alone; `proj`: learned d x M d",
        why="keeps W^r as printed and the residuals of Eqs 6, 8; no extra parameter",
    )
    f2f_softmax: str = reading(
        "modality",
        choices=("modality", "sample"),
        touches=("f2f",),
        spot="Eq 3 in F2F: over N(i) or each N^m(i)",
        options="`modality`; `sample`: over all nodes of the sample",
        why='Eq 9 sums over N^m(i), "separately as modality"',
    )
    exclude_self: bool = reading(
        False,
        touches=("f2f", "l2l"),
        spot="does N(i) contain i",
        options="`false`: it does; `true`: not in F2F and L2L",
        why="else one node or one label would have no neighbour",
    )
    f2f_layers: int = reading(
        1,
        touches=("f2f",),
        spot="is F2F repeated every step",
        options="1 round before the label loop, or more",
        why="z in Eq 11 carries no t",
    )
    feedback: bool = reading(
        True,
        touches=("f2l", "readout"),
        spot="is the fused label state fed back",
        options="`true`: u^{t+1} replaces every u^{m,t+1}; `false`: one label stack a modality",
        why='"all the same by initialization and next iteration"',
    )
    sharing: str = reading(
        "per_step",
        choices=("per_step", "tied", "per_step_and_modality"),
        touches=("f2l", "l2l"),
        spot="weights shared over steps and modalities",
        options="`per_step`, `tied`, `per_step_and_modality`",
        why="Eqs 1-2 write MP^t, UPD^t; no weight carries m",
    )
    heads: int = reading(
        1,
        touches=("f2f", "f2l", "l2l"),
        spot="heads, scale",
        options="1, sqrt(d); H heads scale by sqrt(d/H)",
        why='W in R^{d x d}, "scaling by sqrt d"',
    )
    norm: str = reading(
        "none",
        choices=("none", "post"),
        touches=("f2f", "f2l", "l2l"),
        spot="LayerNorm",
        options="`none`; `post`: after both residuals of every MP+UPD block",
        why="the paper prints none",
    )
    dropout: float = reading(
        0.2,
        touches=("f2f", "f2l", "l2l"),
        spot="dropout: rate and place",
        options="0.2 on attention weights and UPD's output",
        why="what the authors' code names",
    )
    dropout_place: str = reading(
        "weights_and_update",
        choices=("weights_and_update", "lamp"),
        touches=("f2f", "f2l", "l2l"),
        spot="dropout: rate and place",
        options="`lamp` adds the attention output",
        why="a dropout between W^v and W^r would forbid forming their product",
    )
    embed_bias: bool = reading(
        True,
        touches=("embed",),
        spot="node embedding: bias, activation, positions",
        options="bias, linear, none",
        why='"linear embedding", order-free data',
    )
    embed_activation: str = reading(
        "none",
        choices=("none", "relu", "tanh"),
        touches=("embed",),
        spot="node embedding: bias, activation, positions",
        options="`relu`, `tanh`",
    )
    positions: tuple[str, ...] = reading(
        (),
        touches=("embed",),
        spot="node embedding: bias, activation, positions",
        options="sinusoids by modality",
    )
    readout_scorer: str = reading(
        "shared",
        choices=("shared", "per_step"),
        touches=("readout",),
        spot="W^l of Eq 16",
        options="`shared`: one d-vector; `per_step`",
        why="Eq 16 has no index",
    )
    output_weight: str = reading(
        "own",
        choices=("own", "tied"),
        touches=("readout",),
        spot="W^o of Eq 17",
        options="`own` without bias; `tied` to the label embedding",
        why="Eq 17",
    )
    output_bias: bool = reading(False, touches=("readout",), spot="W^o of Eq 17", options="a bias")
    intermediate: str = reading(
        "fused",
        choices=("fused", "lamp", "none"),
        touches=("readout", "loss"),
        spot="intermediate losses",
        options="`fused` with lambda 0.2; `lamp` detaches W^o and adds half steps; `none`",
        why="Eqs 19-20",
    )
    intermediate_weight: float = reading(0.2, touches=("loss",), spot="intermediate losses", options="any lambda")
    empty_modality: str = reading(
        "mask",
        choices=("mask", "keep"),
        touches=("readout",),
        spot="a modality without nodes",
        options="`mask`: out of Eq 16; `keep`: its label states stay in",
        why="it sends and receives no message",
    )
    label_graph: str = reading(
        "complete",
        choices=("complete", "prior"),
        touches=("l2l",),
        spot="label graph",
        options="`complete`; `prior`: labels that co-occur in training, a mask (L, L) that the model takes",
        why="E_yy holds all pairs",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "modalities", dict(self.modalities))
        for name in ("labels", "without", "positions"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise InputError(f"{name}: found the text {value!r}; expected a list of names.")
            object.__setattr__(self, name, tuple(value))
        if not self.modalities:
            raise InputError("modalities: found none; expected at least one name with its feature size.")
        for name, found in self.modalities.items():
            if not isinstance(found, int) or found < 1:
                raise InputError(f"modality '{name}': feature size is {found!r}; expected an integer of at least 1.")
        if not self.labels or len(set(self.labels)) != len(self.labels):
            raise InputError(f"labels: found {list(self.labels)}; expected at least one name, each once.")
        check_choices(self, choices(type(self)))
        for name in self.without:
            if name not in ABLATIONS:
                raise InputError(f"without: found '{name}'; expected any of {', '.join(ABLATIONS)}.")
        for name in self.positions:
            if name not in self.modalities:
                raise InputError(f"positions: found '{name}'; expected any of {', '.join(self.modalities)}.")
        check_counts(self, ("dim", "steps", "f2f_layers", "heads"))
        if self.dim % self.heads:
            raise InputError(f"heads: found {self.heads}; expected a divisor of dim = {self.dim}.")
        if self.update_hidden is not None and self.update_hidden < 1:
            raise InputError(f"update_hidden: found {self.update_hidden}; expected an integer of at least 1, or none.")
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"dropout: found {self.dropout}; expected 0 <= rate < 1.")
        check_range(self, "intermediate_weight", 0.0, float("inf"), "a number of at least 0")

    @property
    def hidden(self) -> int:
        """Hidden width of UPD."""
        return self.update_hidden or self.dim

    @property
    def weight_sets(self) -> int:
        """How many sets of label-side weights there are along the steps."""
        return 1 if self.sharing == "tied" else self.steps

    @property
    def predictions(self) -> int:
        """P, the rows of logits that the loss sees: T, or 2T with LaMP's half steps."""
        halves = self.intermediate == "lamp" and "l2l" not in self.without
        return 2 * self.steps if halves else self.steps

    @cached_property
    def deviations(self) -> tuple[Deviation, ...]:
        """Everything here that is not the equations' own."""
        return deviations(self)

    def differs(self, parts: Iterable[str]) -> tuple[Deviation, ...]:
        """What differs from the equations and touches one of the parts, of those that the model has."""
        return touching(self.deviations, set(parts) - ({"f2f", "l2l"} & set(self.without)))

    def with_(self, **changes: Any) -> HHMPNConfig:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return to_dict(self)

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
        check_choices(
            self,
            {
                "lr_decay": ("none", "cosine"),
                "select_by": ("micro_f1", "macro_f1", "accuracy", "micro_f1_tuned", "last"),
                "class_weights": ("none", "balanced"),
            },
        )
        check_counts(self, ("epochs", "batch_size"))
        for name in ("lr", "eps", "weight_decay", "clip", "warmup_steps", "seed"):
            check_range(self, name, 0.0, float("inf"), "a number of at least 0")
        check_range(self, "threshold", 0.0, 1.0, "a probability")
        if not 0.0 <= self.average < 1.0:
            raise InputError(f"average: found {self.average}; expected 0 <= decay < 1.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return to_dict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """The inverse of `to_dict`; an unknown field is refused by name."""
        return from_dict(cls, values)


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
