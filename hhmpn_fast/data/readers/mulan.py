"""Mulan's ARFF tables and XML list of labels.

Feature columns become modalities by groups. SOURCE is a folder that holds one XML file and NAME-train.arff and
NAME-test.arff (and, if there is one, NAME-valid.arff), or a single NAME.arff.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hhmpn_fast.data.formats.arff import Table, read_arff, read_label_names
from hhmpn_fast.data.parsing import pairs, ranges
from hhmpn_fast.data.splits import SPLITS, Contents, Modality, Split
from hhmpn_fast.errors import InputError

SUFFIXES = (".arff", ".xml")


@dataclass(frozen=True)
class Group:
    """Feature columns that make one modality.

    Attributes:
        name: the modality.
        columns: "all", places as "0-63,70" (ends included, counted over the feature columns) or "/regex/" on names.
        nodes: cut the C columns into this many nodes of C/nodes values.
        order: "blocks" when a node's columns stand side by side, "strided" when node k holds columns k, k+nodes, ...
        tag: append to every node its own number as a one-hot, so that order-free attention can tell the nodes apart.
    """

    name: str
    columns: str = "all"
    nodes: int = 1
    order: str = "blocks"
    tag: bool = False

    @classmethod
    def parse(cls, text: str) -> Group:
        """Reads NAME=COLUMNS[:NODES[:blocks|strided[:tag]]]."""
        name, equals, rest = text.partition("=")
        regex = re.match(r"(/.*/)(?::(.*))?$", rest)
        columns, *more = [regex[1], *(regex[2].split(":") if regex[2] else [])] if regex else rest.split(":")
        nodes, order, tag, *others = [*more, *("1", "blocks", "")[len(more) :]]
        if not equals or others or not nodes.isdigit() or (tag != "tag" and len(more) > 2):
            raise InputError(f"group '{text}': expected NAME=COLUMNS[:NODES[:blocks|strided[:tag]]].")
        return cls(name, columns, int(nodes), order, bool(tag))

    def place(self, features: Sequence[str]) -> list[int]:
        """The columns it takes, as places among the feature columns."""
        if self.columns == "all":
            return list(range(len(features)))
        if self.columns.startswith("/"):
            try:
                found = [i for i, f in enumerate(features) if re.search(self.columns.strip("/"), f)]
            except re.error as error:
                raise InputError(f"group '{self.name}': '{self.columns}' is no regular expression ({error}).") from None
        else:
            found = ranges(self.columns, f"group '{self.name}'")
        if not found or max(found) >= len(features):
            raise InputError(
                f"group '{self.name}': columns '{self.columns}' give {len(found)} of {len(features)} feature columns; "
                f"expected at least one within 0..{len(features) - 1}."
            )
        return found

    def cut(self, table: np.ndarray) -> np.ndarray:
        """(n, C) columns to (n, nodes, C/nodes [+ nodes])."""
        n, width = table.shape
        if self.nodes < 1 or width % self.nodes:
            raise InputError(f"group '{self.name}': {width} columns do not cut into {self.nodes} nodes of one size.")
        if self.order not in ("blocks", "strided"):
            raise InputError(f"group '{self.name}': order '{self.order}'; expected 'blocks' or 'strided'.")
        if self.order == "blocks":
            nodes = table.reshape(n, self.nodes, -1)
        else:
            nodes = table.reshape(n, -1, self.nodes).transpose(0, 2, 1)
        if self.tag:
            nodes = np.concatenate([nodes, np.broadcast_to(np.eye(self.nodes), (n, self.nodes, self.nodes))], axis=2)
        return np.ascontiguousarray(nodes)


@dataclass(frozen=True)
class Options:
    """How tables become samples.

    Attributes:
        groups: the modalities; by default one, "features", of a single node.
        files: split name to ARFF file, relative to the source, instead of NAME-train.arff and so on.
        xml: the XML file, relative to the source, where there are several.
        unlabelled: leave the label columns out, if the files have them at all.
    """

    groups: Sequence[Group | str] = ()
    files: Mapping[str, str] | None = None
    xml: str | None = None
    unlabelled: bool = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `convert mulan`."""
    parser.add_argument(
        "--group",
        action="append",
        default=[],
        metavar="NAME=COLUMNS[:NODES[:blocks|strided[:tag]]]",
        help="a modality: columns as 0-63,70 or /regex/ or all, cut into NODES vectors; tag adds one-hot node numbers",
    )
    parser.add_argument("--file", action="append", default=[], metavar="SPLIT=FILE", help="the ARFF file of a split")
    parser.add_argument("--xml", metavar="FILE", help="the XML file, where there are several")
    parser.add_argument("--unlabelled", action="store_true", help="leave the labels out (samples to predict)")


def options(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `Options`."""
    files = pairs("--file", args.file)
    return {"groups": args.group, "files": files or None, "xml": args.xml, "unlabelled": args.unlabelled}


def read(source: Path, options: Options) -> Contents:
    """Reads a Mulan data set: modalities are groups of its feature columns."""
    if not source.is_dir():
        raise InputError(f"'{source}': not a directory; expected one that holds ARFF files and an XML file.")
    names = read_label_names(_the_xml(source, options.xml))
    tables = {split: read_arff(source / file) for split, file in (options.files or _find_files(source)).items()}
    groups = [g if isinstance(g, Group) else Group.parse(g) for g in options.groups] or [Group("features")]
    first = next(iter(tables.values()))
    splits = []
    for split, table in tables.items():
        if table.columns != first.columns:
            raise InputError(
                f"split '{split}' of '{source}': attributes differ from the first file's; expected the same."
            )
        splits.append(_split(split, table, names, groups, options.unlabelled))
    features = [f for f in first.columns if f not in names]
    return Contents(splits, [_modality(g, features) for g in groups], () if options.unlabelled else names)


def _split(name: str, table: Table, labels: Sequence[str], groups: Sequence[Group], unlabelled: bool) -> Split:
    missing = [label for label in labels if label not in table.columns]
    if missing and not unlabelled:
        raise InputError(f"label '{missing[0]}': named in the XML file but no attribute of split '{name}'.")
    features = [i for i, c in enumerate(table.columns) if c not in labels]
    n, feature_names = len(table.values), [table.columns[i] for i in features]
    values, lengths = {}, {}
    for group in groups:
        nodes = group.cut(table.values[:, [features[i] for i in group.place(feature_names)]])
        values[group.name] = nodes.reshape(n * group.nodes, -1)
        lengths[group.name] = np.full(n, group.nodes, dtype=np.int64)
    found = None
    if not unlabelled:
        found = table.values[:, [table.columns.index(label) for label in labels]]
    return Split(name, values, lengths, found, [f"{name}-{i}" for i in range(n)])


def _modality(group: Group, features: Sequence[str]) -> Modality:
    places = group.place(features)
    width = len(places) // group.nodes
    tags = range(width, width + group.nodes) if group.tag else range(0)
    step = 1 if group.order == "strided" else width
    names = tuple(features[places[k * step]] for k in range(group.nodes))
    return Modality(group.name, width + len(tags), group.nodes, tuple(tags), names)


def _the_xml(source: Path, xml: str | None) -> Path:
    if xml is not None:
        return source / xml
    found = sorted(source.glob("*.xml"))
    if len(found) != 1:
        raise InputError(f"'{source}': found {len(found)} XML files; expected one, or its name as option xml.")
    return found[0]


def _find_files(source: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for split in SPLITS:
        matches = sorted(f.name for f in source.glob(f"*-{split}.arff"))
        if len(matches) > 1:
            raise InputError(f"'{source}': found {', '.join(matches)}; expected one file a split, or option files.")
        if matches:
            found[split] = matches[0]
    if not found:
        alone = sorted(f.name for f in source.glob("*.arff"))
        if len(alone) != 1:
            raise InputError(f"'{source}': found {len(alone)} ARFF files; expected NAME-train.arff (-test), or one.")
        found = {"train": alone[0]}
    return found
