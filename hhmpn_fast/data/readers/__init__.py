"""What `convert` reads: every module of this folder is a reader, and its name is the KIND of `hhmpn-fast convert KIND`.

A reader is found by its place; nothing else names it. It holds

    its docstring       the first line is its help in `convert --help`, all of it in `convert KIND --help`
    SUFFIXES            the files of a source folder whose digests stand in the data set's provenance
    Options             a dataclass: the keywords that `hhmpn_fast.data.convert(KIND, source, out, ...)` takes for it
    arguments(parser)   adds its own options to the command line
    options(args)       the keywords of `Options`, from the parsed command line
    read(source, Options) -> Contents
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from pathlib import Path
from typing import Any, Protocol

from hhmpn_fast.data.splits import Contents


class Reader(Protocol):
    """The names of a reader's module."""

    SUFFIXES: tuple[str, ...]
    Options: type[Any]

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the reader's own options; SOURCE, OUT and what all kinds share are there already."""

    def options(self, args: argparse.Namespace) -> dict[str, Any]:
        """The keywords of `Options`; bad text raises `InputError`."""

    def read(self, source: Path, options: Any) -> Contents:
        """Reads a file or a folder that exists; what does not read raises `InputError`."""


def kinds() -> tuple[str, ...]:
    """The readers' names."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def reader(kind: str) -> Reader:
    """The reader of this name."""
    return importlib.import_module(f"{__name__}.{kind}")
