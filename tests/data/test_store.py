"""The on-disk form: what is written is served, bit for bit, and nothing broken is served at all."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from hhmpn_fast import InputError
from hhmpn_fast.data import Dataset, Modality, Split, carve_validation, read_metadata, write

SIZES = {"text": 5, "audio": 3}
MODALITIES = [Modality(m, e) for m, e in SIZES.items()]


def random_split(rng, n=23, name="train", labels=4):
    lengths = {m: rng.integers(0, 6, n) for m in SIZES}
    lengths["text"] = np.maximum(lengths["text"], 1)
    values = {m: rng.normal(size=(int(lengths[m].sum()), e)).astype(np.float32) for m, e in SIZES.items()}
    marks = rng.integers(0, 2, (n, labels)).astype(np.uint8)
    marks[0] = 1
    return Split(name, values, lengths, marks, [f"{name}/ü{i}" for i in range(n)])


def store(tmp_path, *splits, **options):
    return write(tmp_path / "set", splits, MODALITIES, [f"l{i}" for i in range(4)], **options)


def nodes_of(split, m, i):
    ends = np.cumsum(split.lengths[m])
    return split.values[m][ends[i] - split.lengths[m][i] : ends[i]]


@pytest.fixture
def rng():
    return np.random.default_rng(time.time_ns() % 2**32)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_batches_hold_the_samples_asked_for_in_that_order(tmp_path, rng, dtype):
    split = random_split(rng)
    data = Dataset.open(store(tmp_path, split, dtype=dtype), "train")
    assert len(data) == 23 and data.names == ("text", "audio") and data.sizes == (5, 3)
    chosen = rng.integers(0, 23, 17)
    batch = data.batch(torch.from_numpy(chosen))
    assert batch.ids == tuple(split.ids[i] for i in chosen)
    assert torch.equal(batch.labels, torch.from_numpy(split.labels[chosen]).float())
    for m, name in enumerate(data.names):
        expected = np.concatenate([nodes_of(split, name, i) for i in chosen]).astype(dtype).astype(np.float32)
        assert batch.features.values[m].dtype == torch.float32
        assert np.array_equal(batch.features.values[m].numpy(), expected)
        assert batch.features.lengths[m].tolist() == split.lengths[name][chosen].tolist()
    assert data.labels.dtype == torch.uint8 and data.lengths.shape == (2, 23)


def test_empty_batch(tmp_path, rng):
    batch = Dataset.open(store(tmp_path, random_split(rng)), "train").batch([])
    assert batch.features.batch_size == 0 and batch.labels.shape == (0, 4) and batch.ids == ()


def test_views_nest(tmp_path, rng):
    split = random_split(rng)
    data = Dataset.open(store(tmp_path, split), "train")
    view = data.subset([20, 3, 3, 7]).subset([1, 0])
    assert view.ids == (split.ids[3], split.ids[20])
    assert np.array_equal(view.batch([1]).features.values[0].numpy(), nodes_of(split, "text", 20))


def test_select_drops_or_refuses_samples_left_empty(tmp_path, rng):
    split = random_split(rng)
    split.values["audio"] = split.values["audio"][split.lengths["audio"][0] :]
    split.lengths["audio"][0] = 0
    data = Dataset.open(store(tmp_path, split), "train")
    with pytest.raises(InputError, match=r"audio: \d+ of 23 samples .* no node .*'train/ü0'"):
        data.select(["audio"])
    view = data.select(["audio"], empty="drop")
    kept = np.flatnonzero(split.lengths["audio"])
    assert view.ids == tuple(split.ids[i] for i in kept) and view.names == ("audio",)
    assert np.array_equal(view.batch(range(len(view))).features.values[0].numpy(), split.values["audio"])
    assert data.select(["audio", "text"]).batch([2]).features.names == ("audio", "text")


def test_standardising_uses_training_statistics(tmp_path, rng):
    train, test = random_split(rng), random_split(rng, 9, "test")
    for s in (train, test):
        s.values["text"] = s.values["text"] * 7 + 3
    train.values["text"][:, 2] = 4.0
    path = store(tmp_path, train, test)
    mean, sd = train.values["text"].mean(0), train.values["text"].std(0)
    sd[2] = 1.0
    plain = Dataset.open(path, "test").batch(range(9)).features
    scaled = Dataset.open(path, "test", standardise=["text"]).batch(range(9)).features
    np.testing.assert_allclose(scaled.values[0].numpy(), (plain.values[0].numpy() - mean) / sd, rtol=2e-5, atol=2e-5)
    assert torch.equal(scaled.values[1], plain.values[1])
    assert Dataset.open(path, "test", standardise=True).standardised == ("text", "audio")


def test_fixed_nodes_are_standardised_by_position_and_tags_left_alone(tmp_path, rng):
    n, table = 11, rng.normal(size=(11, 4, 3)) * np.arange(1, 5)[:, None] + 10 * np.arange(4)[:, None]
    tagged = np.concatenate([table, np.broadcast_to(np.eye(4), (n, 4, 4))], 2).astype(np.float32)
    ids = [str(i) for i in range(n)]
    split = Split("train", {"t": tagged.reshape(-1, 7)}, {"t": np.full(n, 4)}, np.ones((n, 1)), ids)
    path = write(tmp_path / "set", [split], [Modality("t", 7, 4, (3, 4, 5, 6))], ["l"])
    got = Dataset.open(path, "train", standardise=True).batch(range(n)).features.values[0].view(n, 4, 7).numpy()
    np.testing.assert_allclose(got[..., :3], (table - table.mean(0)) / table.std(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(got[..., 3:], tagged[..., 3:])


def test_new_samples_take_the_statistics_of_another_set(tmp_path, rng):
    statistics = Dataset.open(store(tmp_path, random_split(rng)), "train").statistics
    new = random_split(rng, 6, "predict")
    new.labels = None
    bare = write(tmp_path / "new", [new], MODALITIES, [])
    data = Dataset.open(bare, "predict", standardise=True, statistics=statistics)
    assert data.labels is None and data.batch([0]).labels is None and data.label_names == ()
    mean, sd = statistics["text"]
    expected = (torch.from_numpy(nodes_of(new, "text", 1)) - mean) / sd
    torch.testing.assert_close(data.batch([1]).features.values[0], expected)
    with pytest.raises(InputError, match="'text': no training mean and sd"):
        Dataset.open(bare, "predict", standardise=True)


def test_extra_tensors_and_metadata(tmp_path, rng):
    split = random_split(rng)
    split.extra["optimum"] = rng.random((23, 4)).astype(np.float32)
    path = store(tmp_path, split, notes=["one"], provenance={"kind": "test"})
    data = Dataset.open(path, "train").subset([4, 2])
    assert np.array_equal(data.extra("optimum").numpy(), split.extra["optimum"][[4, 2]])
    with pytest.raises(InputError, match="extra 'nothing'.*expected one of optimum"):
        data.extra("nothing")
    metadata = read_metadata(path)
    assert metadata["splits"]["train"]["positives"]["l1"] == int(split.labels[:, 1].sum())
    assert metadata["notes"] == ["one"] and metadata["provenance"] == {"kind": "test"}


def test_fingerprint_tells_contents_apart(tmp_path, rng):
    split = random_split(rng)
    one = read_metadata(store(tmp_path, split))["fingerprint"]
    again = read_metadata(store(tmp_path, split, overwrite=True))["fingerprint"]
    split.values["text"][0, 0] += 1
    assert one == again != read_metadata(store(tmp_path, split, overwrite=True))["fingerprint"]


def spoil(split, how):
    if how == "nan":
        split.lengths["audio"][4] += 3
        split.values["audio"] = np.full((int(split.lengths["audio"].sum()), 3), 0.5, dtype=np.float32)
        split.values["audio"][int(split.lengths["audio"][:4].sum()) + 2, 1] = np.nan
    elif how == "width":
        split.values["audio"] = split.values["audio"][:, :2]
    elif how == "lengths":
        split.lengths["audio"][3] += 1
    elif how == "missing":
        del split.values["audio"]
    elif how == "empty":
        split.values = {m: v[split.lengths[m][0] :] for m, v in split.values.items()}
        for row in split.lengths.values():
            row[0] = 0
    elif how == "label":
        split.labels[5, 2] = 3
    elif how == "never":
        split.labels[:, 1] = 0
    elif how == "id":
        split.ids[3] = split.ids[8]
    return split


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("nan", r"modality 'audio': found nan in column 1 of sample 'train/ü4' of split 'train' .* drop the columns"),
        ("width", r"modality 'audio': values of split 'train' have shape \(\d+, 2\); expected \(nodes, 3\)"),
        ("lengths", r"modality 'audio': .* lengths that sum to \d+ over \d+ nodes"),
        ("missing", "modality 'audio': missing from split 'train'"),
        ("empty", r"sample 'train/ü0' .* every modality is empty \(as in 1 samples\)"),
        ("label", "labels of split 'train': found 3; expected 0 or 1"),
        ("never", "label 'l1': never positive in the training split"),
        ("id", "id 'train/ü8' stands more than once"),
    ],
)
def test_bad_splits_are_refused_and_nothing_is_left(tmp_path, rng, how, sentence):
    with pytest.raises(InputError, match=sentence):
        store(tmp_path, spoil(random_split(rng), how))
    assert list(tmp_path.iterdir()) == []


def test_an_id_in_two_splits_and_an_overflow_are_refused(tmp_path, rng):
    train, test = random_split(rng), random_split(rng, 5, "test")
    test.ids = [*test.ids[:4], train.ids[2]]
    with pytest.raises(InputError, match="id 'train/ü2': stands in splits 'train' and 'test'"):
        store(tmp_path, train, test)
    train.values["text"][0, 0] = 1e5
    with pytest.raises(InputError, match="modality 'text': found a value of 100000.* float32"):
        store(tmp_path, train, dtype="float16")


def test_overwriting_is_asked_for_and_whole(tmp_path, rng):
    first = random_split(rng)
    path = store(tmp_path, first)
    with pytest.raises(InputError, match="exists already"):
        store(tmp_path, random_split(rng))
    with pytest.raises(InputError, match="missing"):
        store(tmp_path, spoil(random_split(rng), "missing"), overwrite=True)
    assert Dataset.open(path, "train").ids == tuple(first.ids)
    second = random_split(rng, 5)
    store(tmp_path, second, overwrite=True)
    assert len(Dataset.open(path, "train")) == 5 and [p.name for p in tmp_path.iterdir()] == ["set"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="is not a data set of this project"):
        write(tmp_path / "mine", [second], MODALITIES, list("abcd"), overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"


def test_a_killed_conversion_leaves_no_data_set(tmp_path):
    program = """
import sys, numpy as np
from hhmpn_fast.data import Modality, Split, write
def splits():
    yield Split("train", {"m": np.ones((9, 2))}, {"m": np.ones(9, dtype=int)}, np.ones((9, 1)), list("abcdefghi"))
    print("half", flush=True)
    sys.stdin.read()
write(sys.argv[1], splits(), [Modality("m", 2)], ["l"])
"""
    out = tmp_path / "set"
    command = [sys.executable, "-c", program, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"half\n"
        child.send_signal(signal.SIGKILL)
    assert not out.exists()


def rewrite(path, **entries):
    metadata = json.loads((path / "metadata.json").read_text())
    (path / "metadata.json").write_text(json.dumps({**metadata, **entries}))


def garble(file):
    file.write_bytes(b"\xff" * file.stat().st_size)


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda p: (p / "train.text.safetensors").unlink(), "train.text.safetensors': missing"),
        (lambda p: os.truncate(p / "train.audio.safetensors", 50), "found 50 bytes; expected .* truncated"),
        (lambda p: (p / "metadata.json").write_text("{"), "cannot be read"),
        (lambda p: (p / "metadata.json").unlink(), "found no metadata.json"),
        (lambda p: rewrite(p, version=7), "format version 7; expected 1"),
        (lambda p: rewrite(p, splits={"train": [1]}), "entry 'splits' is not whole; expected the JSON"),
        (lambda p: rewrite(p, modalities=[{"name": "a", "size": 3}]), "entry 'modalities' is not whole"),
        (lambda p: rewrite(p, format="other"), "not a data set of this project"),
        (lambda p: garble(p / "train.text.safetensors"), "cannot be read .*expected a safetensors file"),
    ],
)
def test_a_broken_data_set_is_refused(tmp_path, rng, harm, sentence):
    path = store(tmp_path, random_split(rng))
    harm(path)
    with pytest.raises(InputError, match=sentence):
        Dataset.open(path, "train")


def test_unknown_names_and_indices_are_refused(tmp_path, rng):
    path = store(tmp_path, random_split(rng))
    data = Dataset.open(path, "train")
    for call, sentence in [
        (lambda: Dataset.open(path, "dev"), "no split 'dev'; expected one of train"),
        (lambda: data.select(["smell"]), "modality 'smell': not in"),
        (lambda: data.select([]), "expected at least one"),
        (lambda: data.standardise(["smell"]), "modality 'smell': not in"),
        (lambda: data.batch([0, 23]), r"indices: found 0..23 .* within 0..22"),
        (lambda: data.batch([-1]), "within 0..22"),
        (lambda: data.subset([[0]]), "indices"),
    ]:
        with pytest.raises(InputError, match=sentence):
            call()


def test_validation_is_cut_by_stratification_and_by_seed(rng):
    train = random_split(rng, 400)
    train.labels[:, 3] = np.arange(400) % 10 == 0
    left, held = carve_validation(train, 0.25, 5)
    again = carve_validation(train, 0.25, 5)[1]
    assert held.ids == again.ids != carve_validation(train, 0.25, 6)[1].ids
    assert set(left.ids) | set(held.ids) == set(train.ids) and not set(left.ids) & set(held.ids)
    assert abs(held.labels.sum(0) - train.labels.sum(0) / 4).max() <= 4
    where = train.ids.index(held.ids[7])
    assert np.array_equal(nodes_of(held, "text", 7), nodes_of(train, "text", where))
    with pytest.raises(InputError, match="validation share"):
        carve_validation(train, 1.5, 0)
