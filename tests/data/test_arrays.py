"""Arrays in .npz: padding trimmed at both ends, flat and packed forms, folds, and the traps of such files."""

import time

import numpy as np
import pytest

from hhmpn_fast import InputError
from hhmpn_fast.data import Dataset, convert
from hhmpn_fast.data.nodes import trim_padding


@pytest.fixture
def rng():
    return np.random.default_rng(time.time_ns() % 2**32)


def save(tmp_path, name="a.npz", **arrays):
    np.savez(tmp_path / name, **arrays)
    return tmp_path / name


def labels(rng, n, count=3):
    y = rng.integers(0, 2, (n, count))
    y[0] = 1
    return y


def test_trimming_packs_what_lies_between_the_padding(rng):
    n, steps = 40, 9
    padded = np.zeros((n, steps, 2), dtype=np.float32)
    expected = {t: [] for t in ("both", "left", "right", "none")}
    for i in range(n):
        first = int(rng.integers(0, steps))
        last = int(rng.integers(first, steps + 1))
        padded[i, first:last] = rng.normal(size=(last - first, 2)) + 5
        if last - first > 2:
            padded[i, first + 1] = 0
        ends = {"both": (first, last), "left": (first, steps), "right": (0, last), "none": (0, steps)}
        if first == last:
            ends = {**dict.fromkeys(("both", "left", "right"), (0, 0)), "none": (0, steps)}
        for trim, (a, b) in ends.items():
            expected[trim].append(padded[i, a:b])
    for trim, parts in expected.items():
        values, lengths = trim_padding(padded, trim)
        assert lengths.tolist() == [len(p) for p in parts]
        np.testing.assert_array_equal(values, np.concatenate(parts))


def test_padded_flat_and_packed_arrays_side_by_side(tmp_path, rng):
    n = 12
    padded = np.zeros((n, 5, 2), dtype=np.float64)
    padded[:, 2:4] = rng.normal(size=(n, 2, 2))
    padded[3] = 0
    flat, y = rng.normal(size=(n, 4)), labels(rng, n)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 4, n))])
    packed = rng.normal(size=(offsets[-1], 3)).astype(np.float16)
    source = save(tmp_path, p=padded, f=flat, v=packed, o=offsets, y=y, who=np.array([f"s{i}" for i in range(n)]))
    modalities = ["pad=p", "flat=f", "pack=v@o"]
    out = convert("npz", source, tmp_path / "o", modalities=modalities, labels="y", ids="who", valid_fraction=0)
    data = Dataset.open(out, "train")
    batch = data.batch([3, 5]).features
    assert data.batch([3, 5]).ids == ("s3", "s5") and data.label_names == ("label-0", "label-1", "label-2")
    assert batch.lengths[0].tolist() == [0, 2] and batch.lengths[1].tolist() == [1, 1]
    np.testing.assert_array_equal(batch.values[0].numpy(), padded[5, 2:4].astype(np.float32))
    np.testing.assert_array_equal(batch.values[1].numpy(), flat[[3, 5]].astype(np.float32))
    wanted = np.concatenate([packed[offsets[i] : offsets[i + 1]] for i in (3, 5)]).astype(np.float32)
    np.testing.assert_array_equal(batch.values[2].numpy(), wanted)
    assert "1 of 12 samples have none left" in data.metadata["notes"][0]


def test_splits_by_key_folds_and_directory(tmp_path, rng):
    x, y = rng.normal(size=(20, 3)), labels(rng, 20)
    names = np.array(["train"] * 9 + ["none"] * 3 + ["test"] * 4 + ["skip"] * 4)
    options = {"modalities": ["m=x"], "labels": "y", "valid_fraction": 0}
    source = save(tmp_path, x=x, y=y, fold=names)
    renamed = {"none": "train", "skip": ""}
    out = convert("npz", source, tmp_path / "folds", folds="fold", fold_names=renamed, **options)
    assert [len(Dataset.open(out, s)) for s in ("train", "test")] == [12, 4]
    assert set(Dataset.open(out, "test").metadata["splits"]) == {"train", "test"}
    source = save(tmp_path, "b.npz", x_train=x[:9], y_train=y[:9], x_test=x[9:], y_test=y[9:])
    keyed = {"modalities": ["m=x_{split}"], "labels": "y_{split}", "valid_fraction": 0}
    out = convert("npz", source, tmp_path / "keys", **keyed)
    assert Dataset.open(out, "test").labels.tolist() == y[9:].tolist()
    for name, part in (("train", slice(0, 9)), ("valid", slice(9, 20))):
        save(tmp_path, f"{name}.npz", x=x[part], y=y[part])
    out = convert("npz", tmp_path, tmp_path / "folder", **options)
    assert len(Dataset.open(out, "valid")) == 11


def test_threshold_names_and_dropped_columns(tmp_path, rng):
    x, ratings = rng.normal(size=(8, 4)).astype(np.float32), rng.uniform(1, 7, (8, 2))
    ratings[0] = 6
    x[2, 1] = -np.inf
    source = save(tmp_path, x=x, y=ratings, names=np.array(["calm", "bold"]))
    options = {"modalities": ["m=x"], "labels": "y", "threshold": 4.0, "valid_fraction": 0}
    with pytest.raises(InputError, match=r"'m': found -inf in column 1 of sample 'train-2' .*drop_columns 'm:1'"):
        convert("npz", source, tmp_path / "o", **options)
    options |= {"drop_columns": {"m": "1"}, "label_names": "names"}
    data = Dataset.open(convert("npz", source, tmp_path / "o", **options), "train")
    assert data.label_names == ("calm", "bold") and data.labels.tolist() == (ratings > 4).astype(int).tolist()
    np.testing.assert_array_equal(data.batch(range(8)).features.values[0].numpy(), x[:, [0, 2, 3]])
    assert "modality 'm': dropped columns 1 of 4." in data.metadata["notes"]


def test_samples_without_nodes_are_refused_or_dropped_by_wish(tmp_path, rng):
    x, y = rng.normal(size=(8, 3, 2)), labels(rng, 8)
    x[4] = 0
    source = save(tmp_path, x=x, y=y)
    options = {"modalities": ["m=x"], "labels": "y", "valid_fraction": 0}
    with pytest.raises(InputError, match=r"sample 'train-4' .* every modality is empty .* drop_empty"):
        convert("npz", source, tmp_path / "o", **options)
    data = Dataset.open(convert("npz", source, tmp_path / "o", drop_empty=True, **options), "train")
    assert len(data) == 7 and "train-4" not in data.ids
    assert "left out 1 samples" in data.metadata["notes"][-1]


def test_validation_is_carved_when_there_is_none(tmp_path, rng):
    source = save(tmp_path, x=rng.normal(size=(100, 3)), y=labels(rng, 100))
    out = convert("npz", source, tmp_path / "o", modalities=["m=x"], labels="y", valid_fraction=0.2, seed=3)
    train, valid = Dataset.open(out, "train"), Dataset.open(out, "valid")
    assert len(train) + len(valid) == 100 and abs(len(valid) - 20) <= 2 and not set(train.ids) & set(valid.ids)
    assert "seed 3" in train.metadata["notes"][-1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"modalities": []}, "found no modality"),
        ({"modalities": ["m"]}, "modality 'm': expected NAME=KEY"),
        ({"modalities": ["m=z"]}, "key 'z': not in the file of split 'train'; expected one of x, y"),
        ({"modalities": ["m=x_{split}"]}, r"no key 'x_\{split\}' for any of train, valid, test"),
        ({"modalities": ["m=s"]}, "modality 'm': values are <U1; expected numbers"),
        ({"modalities": ["m=x@y"]}, r"expected \(N, e\) and whole numbers"),
        ({"modalities": ["m=x@bad"]}, r"modality 'm': offsets run 0..9 over 8 nodes"),
        ({"modalities": ["m=x", "k=half"]}, r"the modalities hold \{'m': 8, 'k': 4\} samples"),
        ({"modalities": ["m=deep"]}, r"shape \(2, 2, 2, 2\); expected \(n, T, e\)"),
        ({"modalities": ["m=three"], "trim": "middle"}, "trim: found 'middle'"),
        ({"labels": "half"}, r"labels 'half' .* shape \(4, 2\); expected \(8, L\)"),
        ({"label_names": "s"}, "found 2 columns and 8 names"),
        ({"ids": "bad"}, "ids 'bad' of split 'train': found 9; expected 8"),
        ({"folds": "bad"}, r"folds 'bad': shape \(9,\); expected \(8,\)"),
        ({"drop_columns": {"m": "7"}}, "columns 7 to drop; expected some of 0..2"),
        ({"drop_columns": {"k": "7"}}, "drop_columns: 'k' is no modality; expected one of m"),
        ({"threshhold": 1}, "convert npz: unknown option 'threshhold'; expected some of .*threshold"),
        ({"dtype": "int8"}, "dtype: found 'int8'; expected one of float32, float16"),
    ],
)
def test_bad_options_are_refused_in_words(tmp_path, rng, options, sentence):
    arrays = {"x": rng.normal(size=(8, 3)), "y": np.ones((8, 2)), "s": np.array(list("abcdefgh"))}
    arrays |= {"half": np.ones((4, 2)), "deep": np.ones((2, 2, 2, 2)), "three": np.ones((8, 2, 2))}
    source = save(tmp_path, **arrays, bad=np.arange(9) + (np.arange(9) > 7))
    with pytest.raises(InputError, match=sentence):
        convert("npz", source, tmp_path / "o", **{"modalities": ["m=x"], "labels": "y", "valid_fraction": 0} | options)
    assert not (tmp_path / "o").exists()


def test_unreadable_files_are_refused(tmp_path, rng):
    source = save(tmp_path, x=rng.normal(size=(80, 3)), y=np.ones((80, 2)))
    whole = source.read_bytes()
    options = {"modalities": ["m=x"], "labels": "y"}
    for size in (0, 10, len(whole) // 2, len(whole) - 5):
        source.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"a.npz': cannot be read"):
            convert("npz", source, tmp_path / "o", **options)
    np.save(tmp_path / "bare.npy", np.ones(3))
    (tmp_path / "bare.npy").rename(source)
    with pytest.raises(InputError, match="holds one bare array"):
        convert("npz", source, tmp_path / "o", **options)
    np.savez(source, x=np.array([{"a": 1}], dtype=object), y=np.ones((1, 2)))
    with pytest.raises(InputError, match="without pickles"):
        convert("npz", source, tmp_path / "o", **options)
    with pytest.raises(InputError, match="source .*none.npz': does not exist"):
        convert("npz", tmp_path / "none.npz", tmp_path / "o", **options)
    with pytest.raises(InputError, match="unknown kind 'pickle'"):
        convert("pickle", source, tmp_path / "o")
