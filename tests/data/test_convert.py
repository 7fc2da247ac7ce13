"""The command line of `convert`, and the recipes on the real data sets where they lie beside the project."""

import argparse
import importlib
from pathlib import Path

import numpy as np
import pytest

from hhmpn_fast import InputError
from hhmpn_fast.data import Dataset, read_metadata
from hhmpn_fast.data.recipes import RECIPES
from hhmpn_fast.data.summary import summary

command = importlib.import_module("hhmpn_fast.data.convert")
ROOT = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def run(*words):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(w) for w in words]))


@pytest.fixture
def npz(tmp_path):
    rng = np.random.default_rng()
    y = rng.uniform(1, 7, (30, 2))
    y[:20] = np.where(np.arange(20)[:, None] % 2, 6, 2)
    names = np.array(["train"] * 20 + ["none"] * 10)
    np.savez(tmp_path / "a.npz", a=rng.normal(size=(30, 4, 3)) + 9, b=rng.normal(size=(30, 5)), y=y, fold=names)
    return tmp_path / "a.npz"


def test_npz_on_the_command_line(npz, tmp_path, capsys):
    words = [
        "--modality",
        "x=a",
        "--modality",
        "z=b",
        "--labels",
        "y",
        "--label-names",
        "calm,bold",
        "--threshold",
        "4",
    ]
    more = ["--folds", "fold", "--fold", "none=test", "--drop-columns", "z:0-1", "--dtype", "float16", "--seed", "1"]
    run("npz", npz, tmp_path / "o", *words, *more, "--trim", "x=left", "--valid-fraction", ".25")
    data = Dataset.open(tmp_path / "o", "train")
    assert data.sizes == (3, 3) and data.label_names == ("calm", "bold") and len(data) in (14, 15, 16)
    out = capsys.readouterr().out
    assert "labels present in %: calm" in out and "iterative stratification" in out and "x 4.0 x 3" in out
    assert out.rstrip() == summary(tmp_path / "o")
    metadata = read_metadata(tmp_path / "o")
    assert metadata["provenance"]["kind"] == "npz" and list(metadata["provenance"]["sources"]) == ["a.npz"]
    assert str(tmp_path) not in str(metadata)


def test_tsv_and_mulan_on_the_command_line(tmp_path):
    text = "name\tvid\tstart\tend\tjoy\tsaid\n" + "".join(
        f"s{i}\tv\t{i}\t{i + 1}\t{i % 2}\tgo home\n" for i in range(4)
    )
    (tmp_path / "t.tsv").write_text(text)
    (tmp_path / "glove.txt").write_text("go 1 2\nhome 3 4\n")
    columns = ["--column", "id=name", "--column", "video=vid", "--column", "text=said", "--labels", "joy"]
    vectors = ["--vectors", tmp_path / "glove.txt", "--valid-fraction", "0"]
    context = ["--context", "segments", "--window", "1", "--spread", "--timing"]
    run("tsv", tmp_path / "t.tsv", tmp_path / "o", *columns, *vectors, *context)
    data = Dataset.open(tmp_path / "o", "train")
    assert data.names == ("words", "context", "timing") and data.sizes == (2, 8, 10)
    source = tmp_path / "m"
    source.mkdir()
    (source / "m.xml").write_text('<labels><label name="y"/></labels>')
    (source / "q.arff").write_text(
        "@relation r\n@attribute a real\n@attribute b real\n@attribute y {0,1}\n@data\n1,2,1\n"
    )
    group, file = ["--group", "g=all:2:strided:tag"], ["--file", "train=q.arff"]
    run("mulan", source, tmp_path / "p", *group, *file, "--valid-fraction", "0")
    assert Dataset.open(tmp_path / "p", "train").batch([0]).features.values[0].tolist() == [[1, 1, 0], [2, 0, 1]]


def test_bad_words_on_the_command_line(npz, tmp_path):
    for words, sentence in [
        (["--modality", "x=a", "--fold", "none"], "option --fold: found 'none'; expected A=B"),
        (["--modality", "x=a", "--drop-columns", "x=1"], "option --drop-columns: found 'x=1'; expected A:B"),
        (["--modality", "x=q"], "key 'q': not in the file"),
    ]:
        with pytest.raises(InputError, match=sentence):
            run("npz", npz, tmp_path / "o", *words)
    with pytest.raises(InputError, match="--column words: expected a role of text, id"):
        run("tsv", npz, tmp_path / "o", "--vectors", "x", "--column", "words=a")


EXPECTED = {
    "emotions": ({"train": None, "valid": None, "test": 202}, {"rhythm": 8, "timbre": 64}, 6),
    "mosei_text": ({"train": 16326, "valid": 1871, "test": 4659}, {"words": 50, "context": 152, "timing": 10}, 6),
    "mosei_video922": ({"train": 656, "valid": 86, "test": 180}, {"text": 768, "audio": 39, "vision": 33}, 6),
    "pom": ({"train": 600, "valid": 100, "test": 203}, {"audio": 43, "video": 41}, 16),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_on_the_real_data(tmp_path, name):
    if not (ROOT / name).is_dir():
        pytest.skip(f"the data set {name} does not lie in {ROOT}")
    out = RECIPES[name](ROOT, tmp_path / name)
    sizes, widths, labels = EXPECTED[name]
    for split, n in sizes.items():
        data = Dataset.open(out, split, standardise=True)
        assert n is None or len(data) == n
        assert dict(zip(data.names, data.sizes)) == widths and len(data.label_names) == labels
        batch = data.batch(range(min(len(data), 64)))
        assert all(bool(v.isfinite().all()) for v in batch.features.values)
    train = Dataset.open(out, "train")
    if name == "emotions":
        assert len(train) + len(Dataset.open(out, "valid")) == 391
        scaled = Dataset.open(out, "train", standardise=True).batch(range(len(train))).features.values[1]
        assert scaled[:, :4].mean().abs() < 1e-4 and abs(scaled[:, :4].std() - 1) < 1e-2
    if name == "mosei_text":
        assert train.labels.sum(0).tolist() == [8733, 4269, 3524, 1642, 2954, 1331]
    if name == "pom":
        assert int((train.lengths[1] == 0).sum()) == 322 and int(train.lengths.max()) == 20


def test_recipes_say_which_folder_is_missing(tmp_path):
    with pytest.raises(InputError, match="data folder '.*pom': not there"):
        RECIPES["pom"](tmp_path, tmp_path / "o")
