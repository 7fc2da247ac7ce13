"""Mulan's ARFF and XML: dense, sparse, quoted, grouped; and every way such a file is broken."""

import numpy as np
import pytest

from hhmpn_fast import InputError
from hhmpn_fast.data import Dataset, convert
from hhmpn_fast.data.formats.arff import read_arff, read_label_names
from hhmpn_fast.data.parsing import ranges
from hhmpn_fast.data.readers.mulan import Group

XML = """<?xml version="1.0" encoding="utf-8"?>
<labels xmlns="http://mulan.sourceforge.net/labels">
<label name="joy"><label name="it's calm"></label></label>
</labels>
"""
HEADER = r"""% a comment
@RELATION 'a set'
@attribute a numeric
@ATTRIBUTE 'b, quoted' REAL
@attribute c {red, 'dark blue'}
@attribute d integer
@attribute joy {0,1}
@attribute "it's calm" {0, 1}

@data
"""
DENSE = HEADER + "1,-2.5e-1,red,4,1,0\n% between\n\n 5, 6 ,'dark blue',8,1,1  % after\n"
SPARSE = HEADER + "{0 1.5, 4 1}\n{ }\n{2 'dark blue',3 -7,5 1}\n"


def folder(tmp_path, train=DENSE, test=None, xml=XML):
    (tmp_path / "s.xml").write_text(xml)
    (tmp_path / "s-train.arff").write_text(train)
    if test is not None:
        (tmp_path / "s-test.arff").write_text(test)
    return tmp_path


def test_dense_and_sparse_rows(tmp_path):
    (tmp_path / "a").write_text(DENSE)
    table = read_arff(tmp_path / "a")
    assert table.columns == ("a", "b, quoted", "c", "d", "joy", "it's calm")
    np.testing.assert_array_equal(table.values, [[1, -0.25, 0, 4, 1, 0], [5, 6, 1, 8, 1, 1]])
    (tmp_path / "a").write_text(SPARSE)
    expected = [[1.5, 0, 0, 0, 1, 0], [0] * 6, [0, 0, 1, -7, 0, 1]]
    np.testing.assert_array_equal(read_arff(tmp_path / "a").values, expected)


def test_label_names_with_nesting(tmp_path):
    (tmp_path / "x").write_text(XML)
    assert read_label_names(tmp_path / "x") == ("joy", "it's calm")


def test_groups_cut_columns_into_nodes():
    table = np.arange(24.0).reshape(2, 12)
    blocks = Group("g", nodes=3).cut(table)
    strided = Group("g", nodes=3, order="strided", tag=True).cut(table)
    np.testing.assert_array_equal(blocks[1], [[12, 13, 14, 15], [16, 17, 18, 19], [20, 21, 22, 23]])
    np.testing.assert_array_equal(strided[0, :, :4], [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]])
    np.testing.assert_array_equal(strided[1, :, 4:], np.eye(3))
    assert Group.parse("t=0-5,9:2:strided:tag") == Group("t", "0-5,9", 2, "strided", True)
    assert Group.parse("t=/M:C_[0-9]/:4") == Group("t", "/M:C_[0-9]/", 4)
    assert Group("t", "/^M/").place(["Ma", "Ra", "Mb"]) == [0, 2]
    assert ranges("0-2, 7", "it") == [0, 1, 2, 7]


def test_conversion_end_to_end(tmp_path):
    source = folder(tmp_path, DENSE, SPARSE)
    out = convert("mulan", source, tmp_path / "o", groups=["x=0-1:2", Group("y", "2-3")], valid_fraction=0)
    train, test = Dataset.open(out, "train"), Dataset.open(out, "test")
    assert train.label_names == ("joy", "it's calm") and train.ids == ("train-0", "train-1")
    assert train.labels.tolist() == [[1, 0], [1, 1]] and test.labels.tolist() == [[1, 0], [0, 0], [0, 1]]
    batch = test.batch([2, 0]).features
    assert batch.lengths.tolist() == [[2, 2], [1, 1]]
    assert batch.values[0].flatten().tolist() == [0, 0, 1.5, 0] and batch.values[1].tolist() == [[1, -7], [0, 0]]
    names = {m["name"]: m["node_names"] for m in train.metadata["modalities"]}
    assert names == {"x": ["a", "b, quoted"], "y": ["c"]}


def test_unlabelled_samples(tmp_path):
    plain = "@relation r\n@attribute a numeric\n@attribute b numeric\n@data\n1,2\n3,4\n"
    out = convert("mulan", folder(tmp_path, plain), tmp_path / "o", unlabelled=True)
    data = Dataset.open(out, "predict")
    assert data.labels is None and data.batch([1]).features.values[0].tolist() == [[3, 4]]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (HEADER[:50], "found no @data line"),
        (HEADER, "found 6 attributes and 0 rows"),
        (HEADER + "1,2,red\n", "line 11: found 3 values; expected 6"),
        (HEADER + "1,x,red,4,1,0\n", "line 11: 'b, quoted' is 'x'; expected a number"),
        (HEADER + "1,?,red,4,1,0\n", r"line 11: 'b, quoted' is missing \('\?'\)"),
        (HEADER + "1,2,green,4,1,0\n", "line 11: 'c' is 'green'; expected one of red, dark blue"),
        (HEADER + "{0 1, 9 2}\n", "line 11: sparse index '9'; expected 0..5"),
        (HEADER + "{0 1, 4", "a sparse row without its '}'"),
        (HEADER.replace("integer", "string") + "1,2,red,4,1,0\n", "attribute 'd' has type 'string'"),
        (HEADER.replace("@attribute d", "@atribute d"), "line 6: found '@atribute d integer'"),
        (HEADER + "1,nan,red,4,1,0\n", "modality 'features': found nan in column 1 of sample 'train-0'"),
        (HEADER + "1,2,red,4,1,0\n", "label 'it's calm': never positive"),
    ],
)
def test_broken_tables_are_refused_in_words(tmp_path, text, sentence):
    with pytest.raises(InputError, match=sentence):
        convert("mulan", folder(tmp_path, text), tmp_path / "o", valid_fraction=0)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"groups": ["x"]}, "group 'x': expected NAME="),
        ({"groups": ["x=0-9"]}, r"group 'x': columns '0-9' give 10 of 4 feature columns"),
        ({"groups": ["x=b-c"]}, "group 'x': columns 'b-c'; expected places"),
        ({"groups": ["x=/zzz/"]}, "give 0 of 4"),
        ({"groups": ["x=/(/"]}, "no regular expression"),
        ({"groups": ["x=all:3"]}, "4 columns do not cut into 3 nodes"),
        ({"groups": ["x=all:2:sideways"]}, "order 'sideways'"),
        ({"groups": ["x=0", "x=1"]}, "modality name 'x': stands more than once"),
        ({"files": {"train": "no.arff"}}, r"no.arff': cannot be read"),
        ({"xml": "no.xml"}, "no.xml': cannot be read"),
        ({"colour": 1}, "convert mulan: unknown option 'colour'"),
        ({"drop_labels": ["sad"]}, "drop_labels: 'sad' is no label; expected some of joy"),
    ],
)
def test_bad_options_are_refused_in_words(tmp_path, options, sentence):
    with pytest.raises(InputError, match=sentence):
        convert("mulan", folder(tmp_path), tmp_path / "o", **options)


def test_label_files_that_do_not_fit(tmp_path):
    with pytest.raises(InputError, match="label 'envy': named in the XML file but no attribute"):
        convert("mulan", folder(tmp_path, xml=XML.replace("joy", "envy")), tmp_path / "o")
    with pytest.raises(InputError, match="cannot be read .*expected Mulan's XML"):
        convert("mulan", folder(tmp_path, xml=XML[:80]), tmp_path / "o")
    with pytest.raises(InputError, match="attributes differ"):
        convert("mulan", folder(tmp_path, DENSE, DENSE.replace("@attribute a", "@attribute z")), tmp_path / "o")
