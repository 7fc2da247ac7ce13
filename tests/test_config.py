"""Every reading is a named field; unknown and impossible values are refused in words."""

from __future__ import annotations

import pytest

from hhmpn_fast import InputError
from hhmpn_fast.config import CHOICES, PRESETS, HHMPNConfig, TrainingConfig, preset

SIZES, LABELS = {"text": 300, "audio": 74}, ("happy", "sad")


def test_defaults_are_the_paper() -> None:
    config = preset("paper", SIZES, LABELS)
    assert config == HHMPNConfig(SIZES, LABELS)
    assert (config.dim, config.steps, config.heads, config.dropout, config.intermediate_weight) == (256, 3, 1, 0.2, 0.2)
    assert (config.sharing, config.norm, config.f2f_residual, config.without) == ("per_step", "none", "sum", ())


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip(name: str) -> None:
    config = preset(name, SIZES, LABELS, without=("l2l",))
    assert HHMPNConfig.from_dict(config.to_dict()) == config
    training = TrainingConfig(epochs=3, betas=(0.8, 0.9))
    assert TrainingConfig.from_dict(training.to_dict()) == training


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_checked(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: found 'nonsense'; expected one of '"):
        HHMPNConfig(SIZES, LABELS, **{name: "nonsense"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 10, "heads": 4}, "heads: found 4; expected a divisor of dim = 10"),
        ({"steps": 0}, "steps: found 0; expected an integer of at least 1"),
        ({"dim": 2.5}, "dim: found 2.5; expected an integer"),
        ({"dropout": 1.0}, "dropout: found 1.0; expected 0 <= rate < 1"),
        ({"without": ("f2x",)}, "without: found 'f2x'; expected any of f2f, f2l, l2l, m2l"),
        ({"without": "f2f"}, "without: found the text 'f2f'; expected a list"),
        ({"positions": ("video",)}, "positions: found 'video'; expected any of text, audio"),
        ({"labels": ()}, "labels: found \\[\\]; expected at least one name"),
        ({"labels": ("a", "a")}, "expected at least one name, each once"),
        ({"modalities": {}}, "modalities: found none"),
        ({"modalities": {"text": 0}}, "modality 'text': feature size is 0"),
        ({"dimension": 3}, "option 'dimension': unknown; expected one of"),
    ],
)
def test_impossible_values_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        HHMPNConfig.from_dict({"modalities": SIZES, "labels": LABELS, **changes})


def test_training_values_are_checked() -> None:
    with pytest.raises(InputError, match="lr: found -1.0; expected a number of at least 0"):
        TrainingConfig(lr=-1.0)
    with pytest.raises(InputError, match="select_by: found 'loss'"):
        TrainingConfig(select_by="loss")
    with pytest.raises(InputError, match="option 'epoch': unknown"):
        TrainingConfig.from_dict({"epoch": 1})
    with pytest.raises(InputError, match="option 'labels': missing"):
        HHMPNConfig.from_dict({"modalities": SIZES})
