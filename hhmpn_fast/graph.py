"""A step or a call as one CUDA graph for ragged batches: captured once a bucket of capacities, then replayed.

    step = GraphedStep(one_step, "cuda", CudaGraphs("cuda"))    one_step(features, labels): forward, backward, optimizer
    for batch in batches:
        loss = step(batch.features, batch.labels)

A batch is copied into its bucket's buffers (`hhmpn_fast.buffers`). The first batches of a bucket run as they are, over
the buffers: they warm up what a capture must not do. The next one is captured, and from then on all are replayed. So
the results are those of the same calls without capture, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from hhmpn_fast import backends
from hhmpn_fast.bucket import Bucket, Buffered
from hhmpn_fast.buffers import Buffers
from hhmpn_fast.config import HHMPNConfig
from hhmpn_fast.errors import InputError
from hhmpn_fast.ragged import Ragged

Step = Callable[[Ragged | Buffered, Tensor | None], Any]
CAPTURED = ("cuda", "triton")  # backends whose attention never waits for the device
WARM_UPS = 2  # of a bucket: the first compiles and allocates, the second shows that nothing is left to do


class Captured(NamedTuple):
    """A captured call: what replays it, what it returned (overwritten by every replay), the memory it holds."""

    replay: Callable[[], None]
    result: Any
    bytes: int


class Capturer(Protocol):
    """How calls are captured: CUDA graphs, or what stands in for them in tests."""

    def warm_up(self, call: Callable[[], Any]) -> Any:
        """Runs a call that will be captured later."""

    def capture(self, call: Callable[[], Any]) -> Captured:
        """Captures a call without running it."""


class Limits(NamedTuple):
    """What a `GraphedStep` may hold.

    largest: a batch beyond it runs as it came, without buffers; None is no bound.
    buckets: how many are kept at most; batches of any other run over buffers made for the call, uncaptured.
    memory: bytes that buffers and graphs may hold; beyond it nothing more is captured. None is no bound.
    """

    largest: Bucket | None = None
    buckets: int = 16
    memory: int | None = None


_LIMITS = Limits()


class CudaGraphs:
    """CUDA graphs of one memory pool: they run one after another, so that all of them take what the largest takes."""

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, call: Callable[[], Any]) -> Any:
        """Runs a call on the stream that captures."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = call()
        current.wait_stream(self._stream)
        return result

    def capture(self, call: Callable[[], Any]) -> Captured:
        """Captures a call; whatever asks the device something is refused there.

        Raises:
            InputError: the call waits for the device, or copies from memory that is not pinned.
        """
        graph = torch.cuda.CUDAGraph()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(self._device)
        try:
            # Other threads may pin memory meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                result = call()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            said = str(error).split("\n")[0].rstrip(".")
            raise InputError(f"graph: the step cannot be captured ({said}); expected one that never waits.") from error
        return Captured(graph.replay, result, torch.cuda.memory_reserved(self._device) - before)


@dataclass
class Counts:
    """How a `GraphedStep`'s calls ran: replayed, not captured (yet) over buffers, above the largest bucket."""

    replayed: int = 0
    over_buffers: int = 0
    too_large: int = 0


@dataclass
class _Bucket:
    """One bucket's buffers, how often it ran before its capture, and the capture."""

    buffers: Buffers
    runs: int = 0
    captured: Captured | None = field(default=None)

    @property
    def bytes(self) -> int:
        return self.buffers.bytes + (0 if self.captured is None else self.captured.bytes)


class GraphedStep:
    """`step(features, labels)` over buffers of capacities, replayed from a graph a bucket.

    The step is called with a batch that lies in the buffers (`Buffered`, on a CPU a `Ragged` over them) and must be the
    same call every time: what changes from step to step (learning rate, counters, dropout's stream) lies in tensors
    that keep their place, and it never waits for the device. What it returns is overwritten by the next call.

    Args:
        step: what a batch goes through.
        device: where it runs.
        capturer: `CudaGraphs(device)`; None captures nothing: the same results, bit for bit.
        limits: how much it may hold.
        round_samples: round samples up as well. Not under dropout, whose masks depend on B (see `Bucket.of`).
        buffered: whether the step is given the buffers as `Buffered`; by default on all devices but the CPU, whose
            kernels read lengths on the host.

    Attributes:
        counts: how the calls ran.
    """

    def __init__(
        self,
        step: Step,
        device: torch.device | str,
        capturer: Capturer | None = None,
        *,
        limits: Limits = _LIMITS,
        round_samples: bool = False,
        buffered: bool | None = None,
    ) -> None:
        if limits.buckets < 1:
            raise InputError(f"limits: found {limits.buckets} buckets; expected at least 1.")
        self._step, self._device, self._capturer, self._limits = step, torch.device(device), capturer, limits
        self._round_samples = round_samples
        self._buffered = self._device.type != "cpu" if buffered is None else buffered
        self._buckets: dict[Bucket, _Bucket] = {}
        self.counts = Counts()

    def __call__(self, features: Ragged, labels: Tensor | None = None) -> Any:
        """What the step returns for this batch.

        Raises:
            InputError: a batch of other modalities than the first one's; a step that cannot be captured.
        """
        bucket = Bucket.of(features, round_samples=self._round_samples)
        largest = self._limits.largest
        if largest is not None and not largest.holds(bucket):
            self.counts.too_large += 1
            there = None if labels is None else labels.to(self._device, non_blocking=True)
            return self._step(features.to(self._device), there)
        own = self._found(bucket, features, labels)
        own.buffers.fill(features, labels)
        if own.captured is None and self._may_capture(own):
            own.captured = self._capturer.capture(lambda: self._run(own.buffers))
        if own.captured is not None:
            self.counts.replayed += 1
            own.captured.replay()
            return own.captured.result
        self.counts.over_buffers += 1
        own.runs += 1
        if self._capturer is None:
            return self._run(own.buffers)
        return self._capturer.warm_up(lambda: self._run(own.buffers))

    @property
    def bytes(self) -> int:
        """What buffers and graphs hold."""
        return sum(own.bytes for own in self._buckets.values())

    def describe(self) -> str:
        """One line: buckets, memory, and how the calls ran."""
        captured = sum(own.captured is not None for own in self._buckets.values())
        at = self.counts
        return (
            f"{captured} graphs of {len(self._buckets)} buckets hold {self.bytes / 2**20:.1f} MiB; {at.replayed} steps "
            f"replayed, {at.over_buffers} over buffers, {at.too_large} above the largest bucket"
        )

    def _found(self, bucket: Bucket, features: Ragged, labels: Tensor | None) -> _Bucket:
        own = self._buckets.get(bucket)
        if own is None:
            own = _Bucket(Buffers(bucket, features, labels, self._device))
            if len(self._buckets) < self._limits.buckets:
                self._buckets[bucket] = own
        return own

    def _may_capture(self, own: _Bucket) -> bool:
        kept = self._buckets.get(own.buffers.bucket) is own
        room = self._limits.memory is None or self.bytes < self._limits.memory
        return self._capturer is not None and kept and own.runs >= WARM_UPS and room

    def _run(self, buffers: Buffers) -> Any:
        if self._buffered:
            return self._step(buffers.features, buffers.labels)
        return self._step(buffers.live(), buffers.live_labels())


class GraphedInference:
    """`infer(batch)`, logits (P, B, L) of a model that is not trained, replayed from a graph a bucket; a copy of them.

    Args:
        infer: the model, called with a batch.
        device: where it lies.
        capturer, limits: as `GraphedStep` takes them.

    Attributes:
        step: the `GraphedStep` beneath, whose `describe` tells buckets and memory.
    """

    def __init__(
        self,
        infer: Callable[[Ragged | Buffered], Tensor],
        device: torch.device | str,
        capturer: Capturer | None = None,
        *,
        limits: Limits = _LIMITS,
        buffered: bool | None = None,
    ) -> None:
        def call(features: Ragged | Buffered, _: Tensor | None) -> Tensor:
            return infer(features)

        options = {"limits": limits, "round_samples": True, "buffered": buffered}
        self.step = GraphedStep(call, device, capturer, **options)

    @torch.no_grad()
    def __call__(self, features: Ragged) -> Tensor:
        """Logits (P, B, L) of a packed batch on any device.

        Raises:
            InputError: a batch of other modalities than the first one's; a call that cannot be captured.
        """
        return self.step(features)[:, : features.batch_size].clone()


def why_not_captured(config: HHMPNConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """None where a step of this model can be a CUDA graph under the present choice of a backend, else the reason."""
    if device.type != "cuda":
        return f"the model lies on {device}; a graph needs a CUDA device"
    call = backends.Call(device.type, dtype, config.dim)
    names = backends.AUTO_ORDER if backends.current() == "auto" else (backends.current(),)
    runs = next((name for name in names if backends.why_not(name, "attention", call) is None), None)
    if runs in CAPTURED:
        return None
    return f"attention is run by {runs or 'no backend'}; {' and '.join(CAPTURED)} never wait for the device"
