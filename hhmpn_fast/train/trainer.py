"""The trainer: Adam on the joint loss, the best validation epoch kept, resumable to the bit.

Everything random is counted, not drawn: the order of an epoch from (seed, epoch), dropout from (seed, step). A run
therefore is its checkpoint, and a resumed one ends with the weights of one that was never stopped.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from hhmpn_fast import metrics
from hhmpn_fast.config import HHMPNConfig, TrainingConfig
from hhmpn_fast.data.store import Batch, Dataset
from hhmpn_fast.errors import Diverged, InputError
from hhmpn_fast.files import decoding, read_tensors, write_tensors, write_text
from hhmpn_fast.label_graph import label_prior
from hhmpn_fast.model import HHMPN
from hhmpn_fast.train.checkpoint import Best, Progress, Weights, group, joined, optimizer_tensors, restore_optimizer
from hhmpn_fast.train.predict import probabilities

CHECKPOINT = "checkpoint.safetensors"


def new_model(config: HHMPNConfig, train_labels: Tensor, seed: int) -> HHMPN:
    """A model whose initial weights depend on the seed alone."""
    mask = label_prior(train_labels) if config.label_graph == "prior" else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HHMPN(config, mask)


def learning_rate(training: TrainingConfig, step: int, steps: int) -> float:
    """The rate of one of a run's `steps` steps, counted from 0: a linear warm-up, then as `lr_decay` says."""
    warmup = training.warmup_steps
    factor = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if training.lr_decay == "cosine":
        factor *= 0.5 * (1 + math.cos(math.pi * step / steps))
    return training.lr * factor


class Trainer:
    """Trains one model on one data set.

    Args:
        config, training: the readings of the model and of the protocol.
        train, valid: splits with labels; `valid` chooses the epoch.
        directory: where metrics.jsonl, checkpoint.safetensors and weights.safetensors go; None writes nothing.
        device: where the model lies and the batches go; a checkpoint of one device resumes on any other.
        progress: show a progress bar.
        on_epoch: called with every epoch's metrics.

    Raises:
        InputError: a split without labels or without samples.
    """

    def __init__(
        self,
        config: HHMPNConfig,
        training: TrainingConfig,
        train: Dataset,
        valid: Dataset,
        directory: Path | None = None,
        *,
        device: torch.device | str = "cpu",
        progress: bool = False,
        on_epoch: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        for data in (train, valid):
            if data.labels is None:
                raise InputError(f"split '{data.split}' of '{data.path}': has no labels; training needs them.")
            if not len(data):
                raise InputError(f"split '{data.split}' of '{data.path}': holds no sample; expected at least one.")
        self.config, self.training, self.train, self.valid = config, training, train, valid
        self.directory, self.show_bar, self.on_epoch = directory, progress, on_epoch
        self.device = torch.device(device)
        self.model = new_model(config, train.labels, training.seed).to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=training.lr,
            betas=training.betas,
            eps=training.eps,
            weight_decay=training.weight_decay,
            fused=True,
        )
        self.label_weights = self._label_weights()
        self.average = copy.deepcopy(self.model).requires_grad_(False) if training.average else None
        self.best_state = _copied(self.model.state_dict())
        self.progress = Progress()

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; the last one may be smaller."""
        return -(-len(self.train) // self.training.batch_size)

    def fit(self, checkpoint_every: int | None = None, stop: Callable[[], bool] | None = None) -> HHMPN:
        """Trains to the end and returns the model with the best epoch's weights.

        Args:
            checkpoint_every: also write a checkpoint after every so many steps, besides every epoch's end.
            stop: asked after every step; True ends the call where it stands (the checkpoint is the last one written).

        Raises:
            Diverged: the loss or a gradient stopped being finite.
        """
        at = self.progress
        while at.epoch < self.training.epochs and not self._out_of_patience():
            for batch in self._batches():
                self._step(batch)
                if stop is not None and stop():
                    return self.model
                if checkpoint_every and at.step % checkpoint_every == 0 and at.batch < self.steps_per_epoch:
                    self.save_checkpoint()
            self._end_epoch()
            self.save_checkpoint()
        self.model.load_state_dict(self.best_state)
        return self.model.eval()

    def _batches(self) -> Iterator[Batch]:
        at = self.progress
        generator = torch.Generator().manual_seed(self.training.seed * 1_000_003 + at.epoch)
        order = torch.randperm(len(self.train), generator=generator).split(self.training.batch_size)[at.batch :]
        bar = tqdm(order, f"epoch {at.epoch + 1}/{self.training.epochs}", disable=not self.show_bar, leave=False)
        for indices in bar:
            yield self.train.batch(indices).to(self.device)
            bar.set_postfix(loss=f"{at.loss_sum / max(at.batch, 1):.4f}", refresh=False)

    def _step(self, batch: Batch) -> None:
        at = self.progress
        for options in self.optimizer.param_groups:
            options["lr"] = learning_rate(self.training, at.step, self.training.epochs * self.steps_per_epoch)
        self.model.train()
        self.model.seed_dropout(self.training.seed, at.step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.training.bf16):
            loss, _ = self.model.joint_loss(batch.features, batch.labels, self.label_weights)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip or math.inf)
        value = loss.item()
        if not math.isfinite(value) or not math.isfinite(float(norm)):
            raise Diverged(
                f"training: the loss is {value} and the gradient's norm {float(norm)} at step {at.step}; "
                "expected finite values (a smaller --lr may help)."
            )
        self.optimizer.step()
        self._update_average()
        at.loss_sum += value
        at.batch += 1
        at.step += 1

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average is None:
            return
        # The first steps count fully, so that the average does not remember the initial weights.
        decay = min(self.training.average, (1 + self.progress.step) / (10 + self.progress.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)

    def _label_weights(self) -> Tensor | None:
        if self.training.class_weights == "none":
            return None
        positive = self.train.labels.double().mean(0).clamp(min=1e-6)
        return ((1 - positive) / positive).float().to(self.device)

    def _end_epoch(self) -> None:
        at = self.progress
        model = self.model if self.average is None else self.average
        targets, p = self.valid.labels.numpy(), probabilities(model, self.valid)
        found = metrics.scores(targets, metrics.decisions(p, self.training.threshold))
        tuned = metrics.tune_threshold(targets, p)
        found["micro_f1_tuned"] = metrics.scores(targets, metrics.decisions(p, tuned))["micro_f1"]
        line = {"epoch": at.epoch + 1, "step": at.step, "train_loss": at.loss_sum / self.steps_per_epoch}
        line |= {f"valid_{k}": v for k, v in found.items()} | {"valid_threshold": tuned}
        score = at.epoch if self.training.select_by == "last" else found[self.training.select_by]
        if score > at.best.score:
            at.best = Best(at.epoch + 1, score, tuned)
            self.best_state = _copied(model.state_dict())
        line["best_epoch"] = at.best.epoch
        at.history.append(line)
        at.epoch, at.batch, at.loss_sum = at.epoch + 1, 0, 0.0
        if self.on_epoch is not None:
            self.on_epoch(line)

    def _out_of_patience(self) -> bool:
        patience, at = self.training.patience, self.progress
        return patience is not None and bool(at.history) and at.epoch - at.best.epoch >= patience

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on with the trainer that resumes from it."""
        fingerprint = self.train.metadata["fingerprint"]
        return {"config": self.config.to_dict(), "training": self.training.to_dict(), "fingerprint": fingerprint}

    def save_checkpoint(self) -> None:
        """Everything the rest of the run depends on, then metrics.jsonl from the same history."""
        if self.directory is None:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        tensors = joined(
            model=self.model.state_dict(),
            best=self.best_state,
            average={} if self.average is None else self.average.state_dict(),
            optimizer=optimizer_tensors(self.optimizer),
        )
        write_tensors(self.directory / CHECKPOINT, tensors, self.progress.to_dict() | self._identity())
        self._write_history()

    def _write_history(self) -> None:
        lines = "".join(json.dumps(line) + "\n" for line in self.progress.history)
        write_text(self.directory / "metrics.jsonl", lines)

    def resume(self) -> None:
        """Continues from the directory's checkpoint; refuses one of another configuration or data set."""
        path, own = self.directory / CHECKPOINT, self._identity()
        tensors, header = read_tensors(path, "checkpoint", (*Progress().to_dict(), *own))
        with decoding(path, "checkpoint"):
            self._check_identity(header, own)
            self._restore(tensors, header)
        self._write_history()

    def _check_identity(self, header: Mapping[str, Any], own: Mapping[str, Any]) -> None:
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

    def _restore(self, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
        self.model.load_state_dict(group(tensors, "model"))
        if self.average is not None:
            self.average.load_state_dict(group(tensors, "average"))
        best = group(tensors, "best")
        self.best_state = {k: best[k].to(self.device, copy=True) for k in self.best_state}
        restore_optimizer(self.optimizer, group(tensors, "optimizer"))
        self.progress = Progress.from_dict(header)

    def weights(self) -> Weights:
        """The best epoch's model, with what it needs on new samples."""
        model, best = copy.deepcopy(self.model), self.progress.best
        model.load_state_dict(self.best_state)
        statistics = {n: self.train.statistics[n] for n in self.train.standardised}
        about = {"fingerprint": self.train.metadata["fingerprint"], "epoch": best.epoch}
        thresholds = {"fixed": self.training.threshold, "tuned": best.threshold}
        return Weights(model.eval(), self.training, statistics, thresholds, about)


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in state.items()}


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    for key in sorted(set(found) | set(expected)):
        if found.get(key) != expected.get(key):
            return f"{key} was {found.get(key)!r}, is {expected.get(key)!r}"
    return "unknown"
