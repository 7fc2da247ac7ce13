"""Batches reach the device as the host would make them, to the bit: from a set kept there, and by a lane of copies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from hhmpn_fast import Dataset, HHMPNConfig, InputError, TrainingConfig
from hhmpn_fast.data import convert
from hhmpn_fast.data.pool import Pool
from hhmpn_fast.data.resident import Resident
from hhmpn_fast.data.store import Batch, gather
from hhmpn_fast.train import feed
from hhmpn_fast.train.feed import Feed, Lane
from hhmpn_fast.train.trainer import Trainer
from tests.train.no_host import NoHost

CUDA = torch.device("cuda")


def make(root: Path, dtype: str, labels: bool = True) -> Path:
    """Ragged nodes, and nodes of a fixed number with statistics of their own each."""
    generator = np.random.default_rng(3)
    for split, n in (("train", 30), ("valid", 9)):
        ragged = generator.normal(size=(n, 5, 4))
        for i in range(n):
            ragged[i, generator.integers(1, 6) :] = 0
        held = {"a": ragged, "f": generator.normal(size=(n, 3, 2)) + 1}
        np.savez(root / f"{split}.npz", **held, y=generator.integers(0, 2, size=(n, 2)).astype(np.uint8))
    both = {"labels": "y", "label_names": ["x", "z"]} if labels else {}
    return convert("npz", root, root / "set", modalities=["a=a", "f=f"], dtype=dtype, **both)


@pytest.fixture(scope="module", params=["float32", "float16"])
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset.open(make(tmp_path_factory.mktemp("feed"), request.param), "train", standardise=True)


def assert_equal(found: Batch, expected: Batch) -> None:
    assert found.ids == expected.ids and found.features.names == expected.features.names
    assert torch.equal(found.features.lengths, expected.features.lengths)
    for x, y in zip(found.features.values, expected.features.values):
        assert x.dtype == y.dtype == torch.float32 and torch.equal(x.cpu(), y)
    for name in ("offsets", "present"):
        assert torch.equal(getattr(found.features, name).cpu(), getattr(expected.features, name))
    assert (found.labels is None) == (expected.labels is None)
    assert expected.labels is None or torch.equal(found.labels.cpu(), expected.labels)


def orders(n: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    yield from torch.randperm(n, generator=generator).split(7)
    yield torch.tensor([2, 2, 0])


def views(data: Dataset) -> dict[str, Dataset]:
    return {
        "whole": data,
        "raw": data.standardise(()),
        "subset": data.subset([5, 1, 17, 8, 0, 29]),
        "one modality": data.select(["f"]),
        "other order": data.select(["f", "a"]),
    }


def test_a_kept_set_gives_the_batches_of_the_host(data: Dataset) -> None:
    for view in views(data).values():
        kept = Resident(view, "cpu")
        for indices in orders(len(view)):
            assert_equal(kept.batch(indices), view.batch(indices))
        with pytest.raises(InputError, match="indices: found"):
            kept.batch([len(view)])


def test_a_set_without_labels_is_kept_too(tmp_path: Path) -> None:
    data = Dataset.open(make(tmp_path, "float32", labels=False), "valid")
    assert_equal(Resident(data, "cpu").batch([3, 1]), data.batch([3, 1]))


def test_gathering_reads_nothing_on_the_host(data: Dataset) -> None:
    kept = Resident(data, "meta")
    batch = kept.batch([4, 9, 2])
    assert {t.device.type for t in (*batch.features.values, batch.labels)} == {"meta"}
    assert [v.shape for v in batch.features.values] == [v.shape for v in data.batch([4, 9, 2]).features.values]
    values, offsets, rows = torch.randn(9, 2), torch.tensor([0, 4, 4, 9]), torch.tensor([2, 0])
    out = torch.empty(9, 2)
    with NoHost():
        gather(values, offsets, rows, out)
    assert torch.equal(out, torch.cat([values[4:], values[:4]]))


class Spy(Lane):
    """A lane to nowhere that says what it was given, and whether the step before had been taken by then."""

    pinned = False

    def __init__(self) -> None:
        self.events: list[str] = []

    def place(self, batch: Batch) -> Batch:
        self.events.append(f"place {batch.ids[0]}")
        return batch


def test_a_lane_takes_batches_one_by_one_in_order(data: Dataset) -> None:
    """The next batch is made after the step before was started, and so while it runs."""
    lane = Spy()
    asked = list(orders(len(data)))
    for batch, indices in zip(Feed(data, CUDA, lane=lane)(asked), asked):
        assert_equal(batch, data.batch(indices))
        lane.events.append(f"step {batch.ids[0]}")
    assert lane.events == [f"{e} {data.ids[i[0]]}" for i in asked for e in ("place", "step")]


class FakeEvent:
    """Stands in for an event of a GPU."""

    def __init__(self, said: list[str], number: int) -> None:
        self._said, self._number = said, number

    def synchronize(self) -> None:
        self._said.append(f"wait for {self._number}")


class FakeStream:
    """Stands in for a stream of a GPU."""

    def __init__(self, name: str, said: list[str]) -> None:
        self.name, self._said, self._events = name, said, 0

    def record_event(self) -> FakeEvent:
        self._events += 1
        return FakeEvent(self._said, self._events)

    def wait_stream(self, other: FakeStream) -> None:
        self._said.append(f"{self.name} after {other.name}")


def test_a_lane_copies_on_its_own_stream_and_bounds_what_waits(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    main = FakeStream("main", said)
    moved = Batch.to

    @contextlib.contextmanager
    def entered(stream: FakeStream) -> Iterator[None]:
        said.append(f"into {stream.name}")
        yield
        said.append("out")

    def to(batch: Batch, device: torch.device, *, non_blocking: bool = False) -> Batch:
        assert device == CUDA and non_blocking
        said.append("copy")
        return moved(batch, "cpu")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream("side", said))
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: said.append(f"kept for {stream.name}"))
    monkeypatch.setattr(Batch, "to", to)
    lane, batch = Lane(CUDA), data.batch([0, 1])
    for _ in range(feed.AHEAD):
        lane.place(batch)
    one = ["into side", "copy", "out", "main after side", *["kept for main"] * 5]  # two values, two tables, labels
    assert said == one * feed.AHEAD
    said.clear()
    assert_equal(lane.place(batch), batch)
    assert said == ["wait for 1", *one]


def test_pinned_batches_are_asked_for_as_such(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: asked.append(pin_memory) or empty(*a, **k))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: asked.append(True) or tensor)
    batch = data.batch([3, 4], pin=True)
    pooled = Pool([data]).batch([3, 4], pin=True)
    assert asked == [True] * 3 + [False] * 2 + [True] * 3
    monkeypatch.undo()
    assert_equal(batch, data.batch([3, 4]))
    assert_equal(pooled, batch)


def train(data: Dataset) -> Trainer:
    config = HHMPNConfig({"a": 4, "f": 2}, ("x", "z"), dim=16, steps=1, dropout=0.1)
    valid = Dataset.open(data.path, "valid", standardise=True)
    run = Trainer(config, TrainingConfig(epochs=2, batch_size=8, lr=3e-3), data, valid)
    run.fit()
    return run


def test_a_run_over_kept_sets_has_the_bits_of_one_over_the_host(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train(data)
    assert [f.describe() for f in plain.feeds] == ["", ""]
    monkeypatch.setattr(feed, "room", lambda device: 2**20)
    kept = train(data)
    assert all("lies on cpu (0.00 GiB of at most 0.00)" in f.describe() for f in kept.feeds)
    assert kept.progress == plain.progress
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, kept.model.state_dict()[name]), name


def test_what_is_kept_is_bounded(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4000, 10**9))
    assert feed.room(CUDA) == 1000 and feed.room(torch.device("cpu")) == 0
    held = Resident.bytes(data)
    assert held == sum(t.nbytes for t in (*data._values, *data._offsets, data.labels))
    for bound, expected in ((held, "split 'train' lies on cpu (0.00 GiB of at most 0.00)"), (held - 1, "")):
        monkeypatch.setattr(feed, "room", lambda device, bound=bound: bound)
        assert Feed(data, "cpu", keep=True).describe() == expected
        assert Feed(data, "cpu").describe() == ""
    assert Feed(data, "mps").describe() == "split 'train' stays on the host, batches are copied to mps"


@pytest.mark.gpu
@pytest.mark.parametrize("keep", [True, False])
def test_on_a_device_batches_are_those_of_the_host(data: Dataset, keep: bool) -> None:
    source = Feed(data, "cuda", keep=keep)
    assert ("lies on cuda" if keep else "copied to cuda") in source.describe()
    asked = [i for _ in range(5) for i in orders(len(data))]
    torch.cuda.synchronize()
    for batch, indices in zip(source(asked), asked):
        torch.cuda._sleep(1_000_000)  # the copies run ahead of what uses them
        assert_equal(batch, data.batch(indices))


@pytest.mark.gpu
def test_on_a_device_gathering_waits_for_nothing(data: Dataset) -> None:
    kept = Resident(data, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = kept.batch([4, 9, 2])
        tables = batch.features.offsets, batch.features.present
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(t.is_cuda for t in tables)
    assert_equal(batch, data.batch([4, 9, 2]))
