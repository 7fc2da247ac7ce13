"""Multi-label metrics by scikit-learn, each with its convention in words, and the predictors that see no features.

    accuracy         example Jaccard |Y & P| / |Y or P|, mean over samples; a sample with an empty union counts 0
    subset_accuracy  share of samples whose whole label set is right
    hamming_loss     share of wrong label decisions
    micro_*          precision, recall, F1 over all decisions pooled
    macro_*          mean over labels; a label without support or without decisions counts 0
    average_precision, per label: area under the precision-recall curve by the step rule; NaN without a positive

The field calls the first one "Acc". 15 % of MOSEI's samples have no label, so the empty-union convention moves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hhmpn_fast.errors import InputError

HEADLINE = ("accuracy", "subset_accuracy", "hamming_loss", "micro_f1", "macro_f1", "micro_precision", "micro_recall")
THRESHOLDS = tuple(np.round(np.arange(0.05, 0.951, 0.01), 2).tolist())


def decisions(probabilities: np.ndarray, threshold: float | Sequence[float]) -> np.ndarray:
    """0/1 decisions: a label is predicted iff its probability is greater than its threshold."""
    return (probabilities > np.asarray(threshold)).astype(np.uint8)


def scores(targets: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """The headline metrics of 0/1 decisions (n, L) against 0/1 targets (n, L)."""
    from sklearn import metrics as sk

    targets, predicted = _checked(targets, predicted)
    out = {
        "accuracy": sk.jaccard_score(targets, predicted, average="samples", zero_division=0),
        "subset_accuracy": float((targets == predicted).all(1).mean()),
        "hamming_loss": float((targets != predicted).mean()),
    }
    for average in ("micro", "macro"):
        p, r, f, _ = sk.precision_recall_fscore_support(targets, predicted, average=average, zero_division=0)
        out |= {f"{average}_precision": p, f"{average}_recall": r, f"{average}_f1": f}
    return {k: float(v) for k, v in out.items()}


def per_label(
    targets: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Support, precision, recall, F1 and average precision of every label."""
    from sklearn import metrics as sk

    targets, predicted = _checked(targets, predicted)
    p, r, f, support = sk.precision_recall_fscore_support(targets, predicted, average=None, zero_division=0)
    rows = []
    for i, name in enumerate(labels):
        ap = sk.average_precision_score(targets[:, i], probabilities[:, i]) if support[i] else float("nan")
        row = {"support": int(support[i]), "precision": p[i], "recall": r[i], "f1": f[i], "average_precision": ap}
        rows.append({"label": name} | {k: v if k == "support" else float(v) for k, v in row.items()})
    return rows


def tune_threshold(targets: np.ndarray, probabilities: np.ndarray) -> float:
    """The one threshold for all labels with the best micro-F1 on these samples (validation!); the lowest on ties."""
    best, chosen = -1.0, THRESHOLDS[0]
    truth = targets.astype(bool)
    for t in THRESHOLDS:
        made = probabilities > t
        f1 = 2.0 * np.logical_and(made, truth).sum() / max(made.sum() + truth.sum(), 1)
        if f1 > best:
            best, chosen = f1, t
    return float(chosen)


def constant_predictors(train_targets: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Decisions (count, L) of two predictors that see no features.

    "prevalence > 0.5": the labels that more than half of the training samples have.  "best set": the k most frequent
    labels, with the k of the best training micro-F1.
    """
    prevalence = train_targets.mean(0)
    order = np.argsort(-prevalence, kind="stable")
    positives = train_targets.sum(0)[order].cumsum()
    sizes = np.arange(1, len(order) + 1) * len(train_targets)
    best = int(np.argmax(2.0 * positives / (sizes + train_targets.sum()))) + 1
    chosen = np.zeros(len(order), np.uint8)
    chosen[order[:best]] = 1
    rows = {"constant (prevalence > 0.5)": (prevalence > 0.5).astype(np.uint8), "constant (best set)": chosen}
    return {name: np.tile(row, (count, 1)) for name, row in rows.items()}


def mean_average_precision(targets: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean of the labels' average precision, labels without a positive left out."""
    from sklearn import metrics as sk

    at = targets.sum(0) > 0
    if not at.any():
        return float("nan")
    return float(np.mean([sk.average_precision_score(targets[:, i], probabilities[:, i]) for i in np.flatnonzero(at)]))


def mean_auc(targets: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean area under the ROC curve over the labels that have both classes."""
    from sklearn import metrics as sk

    at = (targets.sum(0) > 0) & (targets.sum(0) < len(targets))
    if not at.any():
        return float("nan")
    return float(np.mean([sk.roc_auc_score(targets[:, i], probabilities[:, i]) for i in np.flatnonzero(at)]))


def _checked(targets: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if targets.shape != predicted.shape or targets.ndim != 2 or not len(targets):
        raise InputError(
            f"metrics: targets are {targets.shape} and decisions {predicted.shape}; expected both (n, L) with n > 0."
        )
    if not np.isin(targets, (0, 1)).all():
        raise InputError("metrics: targets hold values other than 0 and 1; expected 0/1 labels.")
    return targets.astype(np.uint8), predicted.astype(np.uint8)
