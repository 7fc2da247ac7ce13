"""What the measures read from C++ and CUDA, by small patterns over the text without comments."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

TOKENS = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])'", re.DOTALL)
# Names that hold results or arguments of an op: even their first item is a record's field.
RECORDS = set("s saved kept rest args inputs reads writes grads gradients made list out all g w t n f in f2f".split())
NUMBER = r"(?:float[24]?|int|unsigned|u?int\d+_t|bool|char|T|bf16|__nv_bfloat162?|Acc<T>|uint4|long long)"
WIRE = r"(?:void|long long|double|Tensor|TensorList|variable_list)"
SUBSCRIPT = re.compile(r"(?P<base>[A-Za-z_]\w*)\[(?P<index>[^\[\]]*)\]")
CUT = re.compile(r"\b\w+\.(?:slice\((?P<slice>[^()]*)\)|begin\(\) \+ (?P<begin>\d+))|std::get<\d+>")
NO_FUNCTION = set("if for while switch catch return sizeof decltype alignas constexpr defined".split())


@cache
def code(file: Path, strings: bool = False) -> str:
    """The text with comments, and unless kept the strings' contents, blanked; lines stay where they are."""

    def blank(match: re.Match[str]) -> str:
        found = match[0]
        if found.startswith("/"):
            return re.sub(r"[^\n]", " ", found)
        return found if strings else found[0] + " " * (len(found) - 2) + found[-1]

    return TOKENS.sub(blank, file.read_text())


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def includes(file: Path) -> Iterator[tuple[int, str]]:
    """Line and quoted or angled name of every include."""
    for found in re.finditer(r'^#include ([<"][^>"]+[>"])', code(file, strings=True), re.MULTILINE):
        yield _line(code(file), found.start()), found[1]


def _arrays(text: str) -> set[str]:
    """Names of numbers in a row: mathematics, no record. The wires of a C interface (const long long*) stay records."""
    names = set(re.findall(rf"\b{NUMBER}(?<!long long)(?: const)?\s*[*&]\s*(?:__restrict__ )?(\w+)", text))
    names |= set(re.findall(rf"\b{NUMBER}\s*\(&(\w+)\)\[", text))
    for declared in re.finditer(
        rf"(?m)(?:^|[;{{])\s*(?:__shared__ |static |const |constexpr )*{NUMBER} ([^;()]*)", text
    ):
        names |= set(re.findall(r"(\w+)\[", declared[1].split("=")[0]))
    names -= set(re.findall(rf"{WIRE}[*& ]*(?:const\* )?(\w+)\b", text))
    return names | set(re.findall(r"IntArrayRef (\w+)", text))


def _numbered(index: str, record: bool) -> bool:
    """An index that is a literal or computed from one; the next or last neighbour (i + 1) is none outside a record."""
    literals = [int(n) for n in re.findall(r"(?<![\w.])(\d+)u?\b", index)]
    if re.fullmatch(r"\d+", index):
        return True
    return any(n > 1 for n in literals) or (record and bool(re.search(r"[-+?] ", index)))


def numbered(file: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every item that is read from a record by its number; see `python.numbered`."""
    text = code(file)
    arrays = _arrays(text) | {"rng"}  # (seed, step) is one tensor on every backend
    places: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for found in SUBSCRIPT.finditer(text):
        base, index = found["base"], found["index"].strip()
        if base not in arrays and _numbered(index, base in RECORDS):
            places[base].append((_line(text, found.start()), found[0], index))
    for base, items in places.items():
        if base in RECORDS or {index for *_, index in items} != {"0"}:
            yield from ((line, item) for line, item, _ in items)
    for found in CUT.finditer(text):
        sizes = found[0].startswith("sizes.") or found[0].split(".")[0] in arrays
        if not sizes and (not found["slice"] or any(int(n) > 1 for n in re.findall(r"\b\d+\b", found["slice"]))):
            yield _line(text, found.start()), found[0]


def _split(text: str) -> list[str]:
    """At the commas outside brackets."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in "([{<") - (c in ")]}>")
        parts[-1] += "" if c == "," and not depth else c
        parts += [""] if c == "," and not depth else []
    return [p.strip() for p in parts if p.strip() and p.strip() != "void"]


def _closing(text: str, at: int) -> int:
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i
    return len(text)


def parameters(file: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Line, name and parameters' names of every function with a body, constructors and lambdas among them."""
    text = code(file)
    for found in re.finditer(r"(\w+|\])\s*\(", text):
        end = _closing(text, found.end() - 1)
        body = re.match(r"\s*(?:(?:const|noexcept|override|mutable)\s*)*(?:->[^{;()]+)?\{", text[end + 1 : end + 200])
        starts = re.match(r"\s*:\s*\w+[({]", text[end + 1 : end + 200]) and found[1][:1].isupper()
        parts = _split(text[found.end() : end])
        if found[1] not in NO_FUNCTION and (body or (starts and all(" " in p for p in parts))):
            names = [re.search(r"(\w*)(?:\)?\[[^\]]*\])*$", p.split("=")[0].strip())[1] for p in parts]
            yield _line(text, found.start()), found[1].replace("]", "lambda"), names


def schemas(file: Path) -> Iterator[tuple[int, str]]:
    """Line and value of every string, neighbours joined."""
    text = code(file, strings=True)
    for found in re.finditer(r'(?:"(?:\\.|[^"\\\n])*"\s*)+', text):
        yield _line(text, found.start()), "".join(re.findall(r'"((?:\\.|[^"\\\n])*)"', found[0]))
