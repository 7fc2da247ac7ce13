"""The metrics' conventions, each by a case small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hhmpn_fast import InputError, metrics
from hhmpn_fast.train import report

TRUTH = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0], [0, 0, 0]], np.uint8)
MADE = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 1, 0]], np.uint8)


def test_counted_by_hand() -> None:
    found = metrics.scores(TRUTH, MADE)
    assert found["accuracy"] == pytest.approx((0.5 + 0 + 1 + 0) / 4)  # the empty union of sample 1 counts 0
    assert found["subset_accuracy"] == pytest.approx(2 / 4)
    assert found["hamming_loss"] == pytest.approx(2 / 12)
    assert found["micro_f1"] == pytest.approx(2 * 3 / (4 + 4))
    assert found["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert found["micro_precision"] == pytest.approx(3 / 4) and found["micro_recall"] == pytest.approx(3 / 4)


def test_published_constant_row() -> None:
    """Always "happiness" with the paper's own counts gives the row it prints for one baseline: .214 / .455 / .117."""
    counts, n = (12240, 5918, 4933, 3680, 2286, 1892), 22856
    truth = np.zeros((n, 6), np.uint8)
    for i, count in enumerate(counts):
        truth[:count, i] = 1
    made = metrics.constant_predictors(truth, n)["constant (prevalence > 0.5)"]
    found = metrics.scores(truth, made)
    assert made.sum() == n
    rounded = [round(found[k], 3) for k in ("hamming_loss", "micro_f1", "macro_f1")]
    assert rounded == [0.214, 0.455, 0.116]


def test_best_constant_set_is_the_best_prefix() -> None:
    generator = np.random.default_rng(0)
    truth = (generator.random((200, 5)) < np.array([0.5, 0.4, 0.3, 0.1, 0.05])).astype(np.uint8)
    chosen = metrics.constant_predictors(truth, 200)["constant (best set)"]
    best = metrics.scores(truth, chosen)["micro_f1"]
    order = np.argsort(-truth.mean(0), kind="stable")
    for k in range(1, 6):
        made = np.zeros_like(truth)
        made[:, order[:k]] = 1
        assert metrics.scores(truth, made)["micro_f1"] <= best + 1e-12


def test_tuned_threshold_maximises_micro_f1() -> None:
    generator = np.random.default_rng(1)
    truth = (generator.random((300, 4)) < 0.3).astype(np.uint8)
    p = np.clip(0.25 * truth + 0.5 * generator.random(truth.shape), 0, 1)
    chosen = metrics.tune_threshold(truth, p)
    best = metrics.scores(truth, metrics.decisions(p, chosen))["micro_f1"]
    every = [metrics.scores(truth, metrics.decisions(p, t))["micro_f1"] for t in metrics.THRESHOLDS]
    assert best == pytest.approx(max(every))


def test_per_label_and_tables() -> None:
    p = np.array([[0.9, 0.1, 0.4], [0.2, 0.3, 0.2], [0.8, 0.6, 0.1], [0.1, 0.7, 0.3]])
    rows = metrics.per_label(TRUTH, MADE, p, ("a", "b", "c"))
    assert [r["support"] for r in rows] == [2, 1, 1]
    assert rows[0]["average_precision"] == pytest.approx(1.0) and rows[1]["average_precision"] == pytest.approx(0.5)
    assert "a" in report.label_table(rows)
    text = report.table({"ours": metrics.scores(TRUTH, MADE), "other": {"accuracy": 0.5}})
    assert "micro-F1" in text and "0.3750" in text and " - " in text + " "


def test_bad_targets_are_refused() -> None:
    with pytest.raises(InputError, match=r"targets are \(4, 3\) and decisions \(4, 2\)"):
        metrics.scores(TRUTH, MADE[:, :2])
    with pytest.raises(InputError, match="values other than 0 and 1"):
        metrics.scores(TRUTH * 2, MADE)
