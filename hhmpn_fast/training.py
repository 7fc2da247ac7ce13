"""The trainer: Adam on the joint loss, the best validation epoch kept, resumable to the bit.

Everything random is counted, not drawn: the order of an epoch from (seed, epoch), dropout from (seed, step). A run
therefore is its checkpoint, and a resumed one ends with the weights of one that was never stopped.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hhmpn_fast import checkpoint as disk
from hhmpn_fast import metrics
from hhmpn_fast.config import HHMPNConfig, TrainingConfig
from hhmpn_fast.data.store import Dataset
from hhmpn_fast.errors import InputError
from hhmpn_fast.model import HHMPN

PRIOR_THRESHOLD = 0.2


class Diverged(RuntimeError):
    """The loss or a gradient stopped being finite."""


def label_prior(labels: Tensor) -> Tensor:
    """LaMP's label graph, bool (L, L): co-occurrence n_ij / sqrt(n_i n_j) >= 0.2, and every label with itself."""
    y = labels.double()
    together, count = y.T @ y, y.sum(0)
    strength = together / torch.sqrt(count[:, None] * count[None, :]).clamp(min=1)
    return (strength >= PRIOR_THRESHOLD) | torch.eye(len(count), dtype=torch.bool)


def new_model(config: HHMPNConfig, train_labels: Tensor, seed: int) -> HHMPN:
    """A model whose initial weights depend on the seed alone."""
    mask = label_prior(train_labels) if config.label_graph == "prior" else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HHMPN(config, mask)


@torch.no_grad()
def probabilities(model: HHMPN, data: Dataset, batch_size: int = 256) -> np.ndarray:
    """Eq 17 for every sample: float64 (n, L)."""
    was_training, device = model.training, model.label_embedding.device
    model.eval()
    # Samples of like length together: no padding to save, but tasks of like cost for the kernels.
    order = torch.argsort(data.lengths.sum(0), stable=True)
    out = torch.zeros(len(data), len(model.config.labels), dtype=torch.float64)
    for indices in order.split(batch_size):
        logits = model(data.batch(indices).features.to(device))[-1]
        out[indices] = torch.sigmoid(logits.double()).cpu()
    model.train(was_training)
    return out.numpy()


class Trainer:
    """Trains one model on one data set.

    Args:
        config, training: the readings of the model and of the protocol.
        train, valid: splits with labels; `valid` chooses the epoch.
        directory: where metrics.jsonl, checkpoint.safetensors and weights.safetensors go; None writes nothing.
        progress: show a progress bar.
        on_epoch: called with every epoch's metrics.
    """

    def __init__(
        self,
        config: HHMPNConfig,
        training: TrainingConfig,
        train: Dataset,
        valid: Dataset,
        directory: Path | None = None,
        *,
        progress: bool = False,
        on_epoch: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        for data in (train, valid):
            if data.labels is None:
                raise InputError(f"split '{data.split}' of '{data.path}': has no labels; training needs them.")
            if not len(data):
                raise InputError(f"split '{data.split}' of '{data.path}': holds no sample; expected at least one.")
        self.config, self.training, self.train, self.valid = config, training, train, valid
        self.directory, self.progress, self.on_epoch = directory, progress, on_epoch
        self.model = new_model(config, train.labels, training.seed)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=training.lr,
            betas=training.betas,
            eps=training.eps,
            weight_decay=training.weight_decay,
            fused=True,
        )
        self.label_weights = self._label_weights()
        self.average = {k: v.clone() for k, v in self.model.state_dict().items()} if training.average else None
        self.epoch, self.batch, self.step, self.loss_sum = 0, 0, 0, 0.0
        self.best: dict[str, Any] = {"epoch": -1, "score": -math.inf}
        self.best_state = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.history: list[dict[str, Any]] = []

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; the last one may be smaller."""
        return -(-len(self.train) // self.training.batch_size)

    def fit(self, checkpoint_every: int | None = None, stop: Callable[[], bool] | None = None) -> HHMPN:
        """Trains to the end and returns the model with the best epoch's weights.

        Args:
            checkpoint_every: also write a checkpoint after every so many steps, besides every epoch's end.
            stop: asked after every step; True ends the call where it stands (the checkpoint is the last one written).
        """
        while self.epoch < self.training.epochs and not self._out_of_patience():
            for batch in self._batches():
                self._step(batch)
                if stop is not None and stop():
                    return self.model
                if checkpoint_every and self.step % checkpoint_every == 0 and self.batch < self.steps_per_epoch:
                    self.save_checkpoint()
            self._end_epoch()
            self.save_checkpoint()
        self.model.load_state_dict(self.best_state)
        return self.model.eval()

    def _batches(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(self.training.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.train), generator=generator).split(self.training.batch_size)[self.batch :]
        bar = tqdm(order, f"epoch {self.epoch + 1}/{self.training.epochs}", disable=not self.progress, leave=False)
        for indices in bar:
            yield self.train.batch(indices)
            bar.set_postfix(loss=f"{self.loss_sum / max(self.batch, 1):.4f}", refresh=False)

    def _step(self, batch: Any) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.lr * self._lr_factor()
        device = self.model.label_embedding.device
        self.model.train()
        self.model.seed_dropout(self.training.seed, self.step)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.training.bf16):
            loss, _ = self.model.joint_loss(batch.features.to(device), batch.labels.to(device), self.label_weights)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip or math.inf)
        value = loss.item()
        if not math.isfinite(value) or not math.isfinite(float(norm)):
            raise Diverged(
                f"training: the loss is {value} and the gradient's norm {float(norm)} at step {self.step}; "
                "expected finite values (a smaller --lr may help)."
            )
        self.optimizer.step()
        self._update_average()
        self.loss_sum += value
        self.batch += 1
        self.step += 1

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average is None:
            return
        # The first steps count fully, so that the average does not remember the initial weights.
        decay = min(self.training.average, (1 + self.step) / (10 + self.step))
        pairs = [(self.average[k], p) for k, p in self.model.named_parameters()]
        torch._foreach_lerp_([a for a, _ in pairs], [p for _, p in pairs], 1 - decay)

    @contextlib.contextmanager
    def _validated(self) -> Iterator[HHMPN]:
        """The model with the weights that are validated and kept: their average, where one is taken."""
        if self.average is None:
            yield self.model
            return
        own = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        yield self.model
        self.model.load_state_dict(own)

    def _lr_factor(self) -> float:
        warmup = self.training.warmup_steps
        factor = min(1.0, (self.step + 1) / warmup) if warmup else 1.0
        if self.training.lr_decay == "cosine":
            factor *= 0.5 * (1 + math.cos(math.pi * self.step / (self.training.epochs * self.steps_per_epoch)))
        return factor

    def _label_weights(self) -> Tensor | None:
        if self.training.class_weights == "none":
            return None
        positive = self.train.labels.double().mean(0).clamp(min=1e-6)
        return ((1 - positive) / positive).float()

    def _end_epoch(self) -> None:
        with self._validated() as model:
            targets, p = self.valid.labels.numpy(), probabilities(model, self.valid)
            state = {k: v.clone() for k, v in model.state_dict().items()}
        found = metrics.scores(targets, metrics.decisions(p, self.training.threshold))
        tuned = metrics.tune_threshold(targets, p)
        found["micro_f1_tuned"] = metrics.scores(targets, metrics.decisions(p, tuned))["micro_f1"]
        line = {"epoch": self.epoch + 1, "step": self.step, "train_loss": self.loss_sum / self.steps_per_epoch}
        line |= {f"valid_{k}": v for k, v in found.items()} | {"valid_threshold": tuned}
        score = self.epoch if self.training.select_by == "last" else found[self.training.select_by]
        if score > self.best["score"]:
            self.best = {"epoch": self.epoch + 1, "score": score, "threshold": tuned}
            self.best_state = state
        line["best_epoch"] = self.best["epoch"]
        self.history.append(line)
        self.epoch, self.batch, self.loss_sum = self.epoch + 1, 0, 0.0
        if self.on_epoch is not None:
            self.on_epoch(line)

    def _out_of_patience(self) -> bool:
        patience = self.training.patience
        return patience is not None and bool(self.history) and self.epoch - self.best["epoch"] >= patience

    def save_checkpoint(self) -> None:
        """Everything the rest of the run depends on, then metrics.jsonl from the same history."""
        if self.directory is None:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best_state.items()}
        tensors |= {f"average.{k}": v for k, v in (self.average or {}).items()}
        tensors |= disk.optimizer_tensors(self.optimizer)
        header = {k: getattr(self, k) for k in ("epoch", "batch", "step", "loss_sum", "best", "history")}
        header |= {"config": self.config.to_dict(), "training": self.training.to_dict()}
        header["fingerprint"] = self.train.metadata["fingerprint"]
        if header["best"]["epoch"] < 0:
            header["best"] = None
        disk.write_tensors(self.directory / "checkpoint.safetensors", tensors, header)
        self._write_history()

    def _write_history(self) -> None:
        lines = "".join(json.dumps(line) + "\n" for line in self.history)
        disk.write_text(self.directory / "metrics.jsonl", lines)

    def resume(self) -> None:
        """Continues from the directory's checkpoint; refuses one of another configuration or data set."""
        tensors, header = disk.read_tensors(self.directory / "checkpoint.safetensors", "checkpoint")
        own = {
            "config": self.config.to_dict(),
            "training": self.training.to_dict(),
            "fingerprint": self.train.metadata["fingerprint"],
        }
        for name, expected in own.items():
            found = header[name]
            if name == "training":
                # More epochs than planned at first are a continuation, not another run.
                found, expected = ({**d, "epochs": None} for d in (found, expected))
            if found != expected:
                differs = name if name == "fingerprint" else f"{name}: {_difference(found, expected)}"
                raise InputError(
                    f"checkpoint '{self.directory}': belongs to another run ({differs}); expected the same."
                )
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        self.best_state = {k[5:]: v.clone() for k, v in tensors.items() if k.startswith("best.")}
        if self.average is not None:
            self.average = {k[8:]: v.clone() for k, v in tensors.items() if k.startswith("average.")}
        disk.restore_optimizer(self.optimizer, tensors)
        for name in ("epoch", "batch", "step", "loss_sum", "history"):
            setattr(self, name, header[name])
        self.best = header["best"] or self.best
        self._write_history()

    def weights(self) -> disk.Weights:
        """The best epoch's model, with what it needs on new samples."""
        model = HHMPN(self.config, self.best_state.get("label_mask"))
        model.load_state_dict(self.best_state)
        statistics = {n: self.train.statistics[n] for n in self.train.standardised}
        about = {"fingerprint": self.train.metadata["fingerprint"], "epoch": self.best["epoch"]}
        thresholds = {"fixed": self.training.threshold, "tuned": self.best["threshold"]}
        return disk.Weights(model.eval(), self.training, statistics, thresholds, about)


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    for key in sorted(set(found) | set(expected)):
        if found.get(key) != expected.get(key):
            return f"{key} was {found.get(key)!r}, is {expected.get(key)!r}"
    return "unknown"
