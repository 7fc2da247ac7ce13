"""Every contestant by name, its correctness gate, and the closures that are timed."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bench.core.workloads import BATCH, Workload
from bench.race.peers.base import Case, Peer, moved
from bench.race.peers.flex import Flex
from bench.race.peers.nested import Nested
from bench.race.peers.ours import ours
from bench.race.peers.packed_buckets import PackedBuckets
from bench.race.peers.packed_padded import PackedPadded
from bench.race.peers.packed_sdpa import PackedSDPA
from bench.race.peers.padded import Padded, PaddedCompiled, PaddedGraphs
from bench.race.peers.segment import Segment
from bench.race.peers.varlen import PackedFlash, PackedVarlen
from hhmpn_fast import Ragged, reference
from hhmpn_fast.backends import use_backend
from hhmpn_fast.model import HHMPN

PADDED: tuple[type[Peer], ...] = (Padded, PaddedCompiled, PaddedGraphs)
PACKED: tuple[type[Peer], ...] = (PackedSDPA, PackedPadded, PackedBuckets, PackedVarlen, PackedFlash, Nested)
PEERS: tuple[type[Peer], ...] = (*PADDED, *PACKED, Segment, Flex)
OURS = tuple(ours(backend) for backend in ("cpu", "cuda", "triton", "torch"))
CONTESTANTS: dict[str, type[Peer]] = {c.name: c for c in (*OURS, *PEERS)}
# Errors against the float64 reference. Logits: largest difference over largest entry. Gradients: norm of the difference
# over the tensor's norm, as rounding may flip a few ReLUs; one that nearly cancels is held against a twentieth of the
# largest norm. tf32 rounds factors three bits finer than bf16.
LIMITS = {
    ("fp32", "logits"): 1e-5,
    ("fp32", "grad"): 1e-5,
    ("tf32", "logits"): 0.005,
    ("tf32", "grad"): 0.005,
    ("bf16", "logits"): 0.04,
    ("bf16", "grad"): 0.04,
}
CLIP = 10.0  # of the gradients' global norm


class WrongResult(RuntimeError):
    """A contestant does not compute the model; it gets no time."""


class CannotRun(RuntimeError):
    """A contestant says itself that it cannot run."""


class Task:
    """One contestant on one batch: `run()` is an inference call or a whole training step, and returns the logits.

    On a GPU the optimizer may be captured and reads its learning rate there: at 0, a step changes no weight.
    """

    def __init__(self, peer: Peer, batch: Ragged, targets: Tensor, case: Case) -> None:
        self.peer, self.case, self.targets = peer.to(case.device), case, targets.to(case.device)
        self.data = moved(peer.prepare(batch), case.device)
        peer.train(case.mode == "train")
        self.parameters = list(peer.parameters())
        on_gpu = self.targets.is_cuda
        self.lr: Tensor | float = torch.full((), 2e-4, device=case.device) if on_gpu else 2e-4
        self.optimizer = torch.optim.Adam(self.parameters, lr=self.lr, betas=(0.9, 0.98), fused=True, capturable=on_gpu)
        self.run: Callable[[], Tensor] = {"infer": self.infer, "train": self.train}[case.mode]

    @torch.no_grad()
    def infer(self) -> Tensor:
        """Inference, (T, B, L)."""
        with self.case.autocast():
            return self.peer(self.data)

    def backward(self) -> Tensor:
        """Forward, joint loss, backward: gradients in place, logits returned."""
        with self.case.autocast():
            loss, logits = self.peer.joint_loss(self.data, self.targets)
        self.optimizer.zero_grad()
        loss.backward()
        return logits

    def train(self) -> Tensor:
        """One training step: gradients, clipping, Adam."""
        logits = self.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()
        return logits

    def gradients(self) -> dict[str, Tensor | None]:
        """The gradients in place, by the model's names; none in inference."""
        return {n: p.grad for n, p in self.peer.model.named_parameters()} if self.case.mode == "train" else {}


def expected(workload: Workload, model: HHMPN, batch: Ragged, targets: Tensor, mode: str) -> dict[str, Tensor]:
    """Logits and gradients of the reference in float64; kept in the temporary folder, as it takes seconds."""
    key = hashlib.sha256(Path(reference.__file__).read_bytes())
    key.update(repr((workload, batch.lengths.tolist(), mode, torch.__version__)).encode())
    for tensor in (*model.state_dict().values(), *batch.values, targets):
        key.update(tensor.numpy().tobytes())
    file = Path(tempfile.gettempdir()) / f"hhmpn_fast-expected-{key.hexdigest()[:24]}.pt"
    if file.exists():
        return torch.load(file)
    double = _copy(model, torch.float64)
    with use_backend("reference"), torch.set_grad_enabled(mode == "train"):
        logits = double(batch.to(torch.float64))
        out = {"logits": logits.detach()}
        if mode == "train":
            double.loss(logits, targets.double()).backward()
            out |= {name: p.grad for name, p in double.named_parameters()}
    torch.save(out, file)
    return out


def _copy(model: HHMPN, dtype: torch.dtype) -> HHMPN:
    twin = HHMPN(model.config)
    twin.load_state_dict(model.state_dict())
    return twin.to(dtype).eval()


def check(task: Task, truth: dict[str, Tensor]) -> dict[str, float]:
    """Holds logits and gradients against the reference; returns the largest errors or raises WrongResult.

    Dropout is switched off for the comparison. Call it before the first step: it changes no weight.
    """
    peer = task.peer
    peer.eval()
    logits = task.backward() if task.case.mode == "train" else task.infer()
    found = {"logits": logits, **task.gradients()}
    peer.train(task.case.mode == "train")
    errors = compare(peer.name, found, truth, task.case.dtype)
    task.optimizer.zero_grad()
    return errors


def compare(name: str, found: Mapping[str, Tensor | None], truth: Mapping[str, Tensor], dtype: str) -> dict[str, float]:
    """The largest errors of logits and gradients; raises WrongResult where one is above its limit."""
    errors = {"logits": 0.0}
    largest = max((float(t.norm()) for n, t in truth.items() if n != "logits"), default=0.0)
    for what, tensor in found.items():
        kind = "logits" if what == "logits" else "grad"
        if tensor is None or not torch.isfinite(tensor).all():
            raise WrongResult(f"{name}: {what} is missing or not finite")
        there = truth[what].to(tensor.device)
        if kind == "logits":
            error = relative(tensor, there)
        else:
            error = float((tensor.double() - there).norm()) / max(float(there.norm()), 0.05 * largest)
        errors[kind] = max(errors.get(kind, 0.0), error)
        if error > LIMITS[dtype, kind]:
            raise WrongResult(f"{name}: {what} is off by {error:.1e}")
    return errors


class Gate(NamedTuple):
    """What contestants of one case start from, and the float64 truth of the batch's first samples."""

    model: HHMPN
    batch: Ragged
    targets: Tensor
    case: Case
    truth: dict[str, Tensor]
    samples: int

    @classmethod
    def of(cls, workload: Workload, data: tuple[Ragged, Tensor], case: Case, dropout: float, samples: int) -> Gate:
        """data: batch and targets, on the CPU."""
        batch, targets = data
        small, few = first_samples(batch, samples), targets[:samples]
        truth = expected(workload, workload.model(), small, few, case.mode)
        return cls(workload.model(dropout=dropout), batch, targets, case, truth, samples)

    def admit(self, name: str) -> tuple[Task, dict[str, float]]:
        """The task of a contestant that passed, and its errors; raises CannotRun with its reason, or WrongResult.

        A larger batch is checked on its first samples: gradients alone, logits within the whole batch too.
        """
        reason = CONTESTANTS[name].why_not(self.case, self.batch)
        if reason is not None:
            raise CannotRun(reason)
        task = Task(CONTESTANTS[name](self.model), self.batch, self.targets, self.case)
        if self.batch.batch_size <= self.samples:
            return task, check(task, self.truth)
        small, few = first_samples(self.batch, self.samples), self.targets[: self.samples]
        errors = check(Task(task.peer, small, few, self.case), self.truth)
        whole = task.peer.eval()
        self.logits(name, task.infer())
        whole.train(self.case.mode == "train")
        return task, errors

    def logits(self, name: str, whole: Tensor) -> None:
        """Holds the first samples' logits of the whole batch, (T, B, L), against the truth."""
        found = whole[:, : self.samples]
        error = relative(found, self.truth["logits"].to(found.device))
        if not error <= LIMITS[self.case.dtype, "logits"]:
            raise WrongResult(f"{name}: logits of the whole batch are off by {error:.1e}")


def gather(
    names: Sequence[str], workload: Workload, batch: Ragged, targets: Tensor, case: Case, dropout: float = 0.0
) -> tuple[dict[str, Task], dict[str, dict[str, float]], dict[str, str]]:
    """Tasks that passed the gate on the first 64 samples, their errors, and why the others cannot run."""
    gate = Gate.of(workload, (batch, targets), case, dropout, BATCH)
    tasks, errors, skipped = {}, {}, {}
    for name in names:
        try:
            tasks[name], errors[name] = gate.admit(name)
        except CannotRun as reason:
            skipped[name] = str(reason)
    return tasks, errors, skipped


def relative(found: Tensor, truth: Tensor) -> float:
    """Largest difference over largest entry."""
    return float((found.double() - truth).abs().max() / truth.abs().max())


def first_samples(batch: Ragged, count: int) -> Ragged:
    """The first `count` samples."""
    lengths = batch.lengths[:, :count]
    return Ragged(batch.names, tuple(v[: int(n)] for v, n in zip(batch.values, lengths.sum(1))), lengths)
