"""Text with word vectors: tokens, look-up, neighbouring segments, timing; and broken tables."""

import time

import numpy as np
import pytest

from hhmpn_fast import InputError
from hhmpn_fast.data import Dataset, convert
from hhmpn_fast.data.formats.words import load_vectors, tokenise
from hhmpn_fast.data.readers.tsv import Columns
from hhmpn_fast.data.segments import TIMING_COLUMNS, Context, neighbours

HEADER = "id\tvideo_id\tstart\tend\tjoy\tfear\ttext\n"
ROWS = [
    ("v1b", "v1", 5.0, 7.0, 0.0, 0.66, "don't go"),
    ("v1a", "v1", 1.0, 4.0, 1.0, 0.0, "go home now"),
    ("v2a", "v2", 0.0, 2.0, 0.33, 0.0, "zzz"),
    ("v1c", "v1", 9.0, 9.5, 0.0, 1.0, "home"),
]
WORDS = ["do", "not", "go", "home", "now"]


@pytest.fixture
def vectors():
    return np.random.default_rng(time.time_ns() % 2**32).normal(size=(5, 3)).astype(np.float32)


@pytest.fixture
def source(tmp_path, vectors):
    (tmp_path / "train.tsv").write_text(HEADER + "".join("\t".join(map(str, r)) + "\n" for r in ROWS))
    np.savez(tmp_path / "w.npz", words=np.array(WORDS), vectors=vectors)
    return tmp_path


def make(source, **options):
    options = {"vectors": source / "w.npz", "labels": ["joy", "fear"], "valid_fraction": 0} | options
    return Dataset.open(convert("tsv", source / "train.tsv", source / "o", overwrite=True, **options), "train")


def test_tokens():
    assert tokenise("It\u2019s GREAT, I can't won\u2019t don't!") == [
        *("it", "'s", "great", ",", "i", "can", "not", "will", "not", "do", "not", "!"),
    ]
    assert tokenise("well-known o'clock 90s (really) we'd") == [
        *("well-known", "o'clock", "90s", "(", "really", ")", "we", "'d"),
    ]
    assert tokenise("") == []


def test_words_become_nodes_and_labels_lie_above_the_threshold(source, vectors):
    data = make(source, timing=True)
    assert data.names == ("words", "timing") and data.ids == ("v1b", "v1a", "v2a", "v1c")
    assert data.labels.tolist() == [[0, 1], [1, 0], [1, 0], [0, 1]]
    batch = data.batch([0, 2, 1]).features
    assert batch.lengths[0].tolist() == [3, 0, 3]
    np.testing.assert_array_equal(batch.values[0].numpy(), vectors[[0, 1, 2, 2, 3, 4]])
    assert make(source, timing=True, threshold=0.5).labels.tolist() == [[0, 1], [1, 0], [0, 0], [0, 1]]
    assert "1 of 8 words (12.5 %) have no vector (drop); most often 'zzz' 1." in data.metadata["notes"]


@pytest.mark.parametrize("unknown", ["zero", "mean"])
def test_unknown_words_can_stay(source, vectors, unknown):
    node = make(source, unknown=unknown).batch([2]).features.values[0].numpy()
    np.testing.assert_allclose(node, [vectors.mean(0) if unknown == "mean" else np.zeros(3)], rtol=1e-6)


def test_context_is_the_neighbours_in_start_order(source, vectors):
    mean = {k: vectors[v].mean(0) for k, v in {"a": [2, 3, 4], "b": [0, 1, 2], "c": [3]}.items()}
    data = make(source, context=Context("segments", 2), timing=True).select(["context", "timing"])
    batch = data.batch([1, 0, 2]).features
    assert batch.lengths[0].tolist() == [2, 2, 0]
    expected = [[*mean["b"], 1, 0.5], [*mean["c"], 1, 1], [*mean["a"], -1, 0.5], [*mean["c"], 1, 0.5]]
    np.testing.assert_allclose(batch.values[0].numpy(), expected, rtol=1e-6)
    near = make(source, context=Context("segments", 1, spread=True), timing=True).batch([1]).features.values[1]
    pooled = [*mean["b"], *vectors[[0, 1, 2]].max(0), *vectors[[0, 1, 2]].min(0), 1, 1]
    np.testing.assert_allclose(near.numpy(), [pooled], rtol=1e-6)
    words = make(source, context=Context("words", 1), timing=True).batch([0]).features.values[1].numpy()
    np.testing.assert_array_equal(words[:, :3], vectors[[2, 3, 4, 3]])
    assert words[:, 3].tolist() == [-1, -1, -1, 1]


def test_neighbours_with_equal_starts_keep_the_order_of_the_file():
    found = neighbours(["a", "b", "a", "a"], np.array([2.0, 0.0, 1.0, 2.0]))
    assert [f.tolist() for f in found] == [[2, 0, 3], [1]]


def test_timing(source):
    data = make(source, timing=True).select(["timing"])
    table = {n: data.batch(range(4)).features.values[0][:, i].tolist() for i, n in enumerate(TIMING_COLUMNS)}
    log = np.log1p
    np.testing.assert_allclose(table["log duration"], log([2, 3, 2, 0.5]), rtol=1e-6)
    np.testing.assert_allclose(table["log words a second"], log([1.5, 1, 0, 2]), rtol=1e-6)
    np.testing.assert_allclose(table["place in the video"], [1.5 / 3, 0.5 / 3, 0.5, 2.5 / 3], rtol=1e-6)
    assert table["has previous"] == [1, 0, 0, 1] and table["has next"] == [1, 1, 0, 0]
    np.testing.assert_allclose(table["gap to previous"], [log(1), 0, 0, log(2)], rtol=1e-6)
    np.testing.assert_allclose(table["gap to next"], [log(2), log(1), 0, 0], rtol=1e-6)


def test_a_directory_gives_its_splits_and_no_labels_give_samples_to_predict(source):
    (source / "test.tsv").write_text(HEADER + "x\tv9\t0\t1\t0\t0\tgo go\n")
    out = convert("tsv", source, source / "o", vectors=source / "w.npz", labels=["joy"], timing=True, valid_fraction=0)
    assert len(Dataset.open(out, "train")) == 4 and Dataset.open(out, "test").batch([0]).features.lengths[0].item() == 2
    out = convert("tsv", source / "test.tsv", source / "p", vectors=source / "w.npz", labels=[])
    assert Dataset.open(out, "predict").labels is None


def test_glove_text_files(source, vectors):
    lines = [f"{w} {' '.join(f'{x:.6f}' for x in v)}\n" for w, v in zip(WORDS, vectors)]
    for head in ("", "5 3\n"):
        (source / "glove.txt").write_text(head + "".join(lines))
        table = load_vectors(source / "glove.txt")
        assert table.index["home"] == 3 and table.size == 3
        np.testing.assert_allclose(table.vectors[:5], vectors, atol=1e-6)
    (source / "glove.txt").write_text("".join([*lines, "cut 0.1 0."]))
    with pytest.raises(InputError, match="glove.txt' line 6: 2 numbers; expected 3"):
        load_vectors(source / "glove.txt")
    (source / "glove.txt").write_text("a 1 b\n")
    with pytest.raises(InputError, match="cannot be read"):
        load_vectors(source / "glove.txt")


def test_broken_vectors_are_refused(source, vectors):
    vectors[2, 1] = np.nan
    np.savez(source / "w.npz", words=np.array(WORDS), vectors=vectors)
    with pytest.raises(InputError, match="vector of 'go' has NaN or inf"):
        make(source)
    np.savez(source / "w.npz", words=np.array(WORDS[:4]), vectors=vectors)
    with pytest.raises(InputError, match=r"words \(4,\) and vectors \(5, 3\)"):
        make(source)
    np.savez(source / "w.npz", vectors=vectors)
    with pytest.raises(InputError, match="found keys vectors; expected 'words' and 'vectors'"):
        make(source)


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ("", {}, "found 0 lines"),
        (HEADER, {}, "found 1 lines"),
        (HEADER + "a\tv\t0\t1\t1\n", {}, "line 2: found 5 fields; expected 7"),
        (HEADER.replace("joy", "fun") + "a\tv\t0\t1\t1\t1\tgo\n", {}, "column 'joy' is missing; found id, video_id"),
        (HEADER + "a\tv\t0\t1\tx\t1\tgo\n", {}, "column 'joy': could not convert .* expected numbers"),
        (HEADER + "a\tv\tnan\t1\t1\t1\tgo\n", {"timing": True}, "line 2: column 'start' is nan"),
        (HEADER + "a\tv\t0\t1\t1\t0\tgo\n", {}, "label 'fear': never positive"),
        (HEADER + "a\tv\t0\t1\t1\t1\tzzz\n", {}, "sample 'a' .* every modality is empty"),
        (HEADER + "a\tv\t0\t1\t1\t1\tgo\n", {"columns": Columns(text="words")}, "column 'words' is missing"),
        (HEADER + "a\tv\t0\t1\t1\t1\tgo\n", {"unknown": "guess"}, "unknown words: found 'guess'"),
        (HEADER + "a\tv\t0\t1\t1\t1\tgo\n", {"contxt": 1}, "convert tsv: unknown option 'contxt'"),
    ],
)
def test_broken_tables_are_refused_in_words(source, text, options, sentence):
    (source / "train.tsv").write_text(text)
    with pytest.raises(InputError, match=sentence):
        make(source, **options)
    assert not (source / "o").exists()


def test_bad_utf8_and_bad_context_are_refused(source):
    (source / "train.tsv").write_bytes(HEADER.encode() + b"a\tv\t0\t1\t1\t1\t\xff\xfe\n")
    with pytest.raises(InputError, match="train.tsv': cannot be read"):
        make(source)
    with pytest.raises(InputError, match="context: found 'soon'"):
        Context("soon")
    with pytest.raises(InputError, match="window: found 0"):
        Context("words", 0)
