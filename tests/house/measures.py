"""The measures: each function finds what breaks one rule, MEASURES says how many findings the house bears."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.house import cpp, python

ROOT = Path(__file__).resolve().parents[2]
PYTHON_PARAMETERS, CPP_PARAMETERS, KERNEL_PARAMETERS = 8, 8, 12
SIGNATURES, FILES_A_FOLDER, LONGEST, MEDIAN, COLUMNS = 2, 14, 350, 120, 120
TABLES = ("tests/**/mutants.py",)  # data, however long
# Lowest first: arrows point down or stay on their floor. The longest name that fits a module counts.
FLOORS = (
    "errors files fields readings config label_graph lengths ragged bucket buffers dropout reference masks "
    "source_digest weights metrics",
    "autocast backends backends.record backends.registry backends.plan",
    "ops",
    "backends. kernels blocks composed",  # one backend's own code, and the parts made of ops
    "model frozen graph",
    "data",
    "train info",
    "cli __main__",
)
NEVER = {"data": "model frozen graph weights blocks ops backends kernels", "model": "data"}
CPU_FLOORS = ("base", "simd", "adapter", "host", "ops")
PLACES = {"cpu", "cuda", "gpu", "triton"}  # words that say where code runs: folders'
Found = Iterator[str]


def files(*patterns: str) -> list[Path]:
    """The tree's files, links left out."""
    found = {f for p in patterns for f in ROOT.glob(p) if f.is_file()}
    return sorted(f for f in found if not any(p.is_symlink() for p in (f, *f.parents) if ROOT in p.parents))


def library() -> list[Path]:
    """The Python that is installed."""
    return files("hhmpn_fast/**/*.py", "kernels/**/*.py")


def native() -> list[Path]:
    """C++ and CUDA."""
    return files(*(f"csrc/**/*.{e}" for e in ("cpp", "h", "cu", "cuh")))


def everything() -> list[Path]:
    """The sources of every folder."""
    folders = ("hhmpn_fast", "kernels", "csrc", "bench", "tests", "build_backend")
    return files(*(f"{d}/**/*.{e}" for d in folders for e in ("py", "cpp", "hpp", "h", "cu", "cuh")))


def at(file: Path, line: int) -> str:
    """file:line."""
    return f"{file.relative_to(ROOT)}:{line}"


def _inside(file: Path, text: str) -> Path | None:
    places = (file.parent, ROOT / "csrc/cpu", ROOT / "csrc/cuda", ROOT / "csrc")
    return next((p.resolve() for p in (place / text.strip('"') for place in places) if p.is_file()), None)


def _sees_torch(file: Path, seen: set[Path]) -> bool:
    """Whether a file is the host's: it includes torch itself or through others; per-ISA code has at::vec alone."""
    seen.add(file)
    for _, name in cpp.includes(file):
        inner = None if name[0] == "<" else _inside(file, name)
        if re.match(r"<(ATen/(?!cpu/vec)|torch|c10)", name) or (inner and {inner} - seen and _sees_torch(inner, seen)):
            return True
    return False


def slots_cuda() -> Found:
    """Items read by number in csrc/cuda, the C interface included; numbers in a row (tiles, fragments) are none."""
    for file in files("csrc/cuda/**/*.*"):
        yield from (f"{at(file, line)}: {text}" for line, text in cpp.numbered(file))


def slots_cpu() -> Found:
    """Items read by number in the host's files of csrc, those that see torch; not in per-ISA code."""
    for file in native():
        if "cuda" not in file.relative_to(ROOT).parts and _sees_torch(file, set()):
            yield from (f"{at(file, line)}: {text}" for line, text in cpp.numbered(file))


def slots_python() -> Found:
    """Items read by number in the library's Python, see `python.numbered`."""
    for file in library():
        yield from (f"{at(file, line)}: {text}" for line, text in python.numbered(file))


def long_lists_python() -> Found:
    """Functions of more than PYTHON_PARAMETERS parameters, kernels left out; benchmarks too."""
    for file in [*library(), *files("bench/**/*.py")]:
        for line, name, every, _ in python.parameters(file):
            if len(every) > PYTHON_PARAMETERS and (name == "lambda" or not python.is_kernel(file, line)):
                yield f"{at(file, line)}: {name} takes {len(every)}"


def long_lists_triton() -> Found:
    """Triton functions of more than KERNEL_PARAMETERS parameters that are no constexpr."""
    for file in library():
        for line, name, every, fixed in python.parameters(file):
            count = len(every) - len(fixed)
            if count > KERNEL_PARAMETERS and name != "lambda" and python.is_kernel(file, line):
                yield f"{at(file, line)}: {name} takes {count}, and {len(fixed)} constexpr"


def long_lists_cpp() -> Found:
    """C++ and CUDA functions, constructors and lambdas of more than CPP_PARAMETERS parameters."""
    for file in native():
        for line, name, every in cpp.parameters(file):
            if len(every) > CPP_PARAMETERS:
                yield f"{at(file, line)}: {name} takes {len(every)}"


def signatures() -> Found:
    """Ops whose argument list is spelled in more than SIGNATURES places.

    A place is a schema, or the parameters of a function, whose names are the op's: three in five of both together.
    """
    spelled: list[tuple[str, set[str]]] = []
    ops: dict[str, set[str]] = {}
    for file in [*library(), *native()]:
        if file.name == "model.py":  # its methods are the model's, not an op's
            continue
        source = python if file.suffix == ".py" else cpp
        texts = python.texts(file) if file.suffix == ".py" else cpp.schemas(file)
        for line, text in texts:
            if schema := re.match(r"(\w+)(?:\.\w+)?\(([^()]*)\) -> ", text):
                names = {part.split("=")[0].split()[-1] for part in schema[2].split(",") if part.strip()}
                spelled.append((at(file, line), names))
                if len(names) > 3 and not re.search(r"_(forward|backward|save|value|plain)$", schema[1]):
                    ops[schema[1]] = names
        spelled += [(at(file, line), set(names)) for line, _, names, *_ in source.parameters(file)]
    for op, names in ops.items():
        alike = [place for place, other in spelled if len(names & other) >= 0.6 * len(names | other)]
        if len(alike) > SIGNATURES:
            yield f"{op} is spelled {len(alike)} times: {', '.join(alike)}"


def crowded_folders() -> Found:
    """Folders of csrc/cpu with more than FILES_A_FOLDER files."""
    for folder, count in Counter(f.parent for f in files("csrc/cpu/**/*.*")).items():
        if count > FILES_A_FOLDER:
            yield f"{folder.relative_to(ROOT)} holds {count} files"


def includes() -> Found:
    """csrc: includes that run up (CPU_FLOORS) and circles, of files and of folders."""
    by_file: dict[str, set[str]] = {}
    by_folder: dict[str, set[str]] = {}
    for file in native():
        here = file.relative_to(ROOT)
        for line, name in cpp.includes(file):
            if name[0] != '"' or (target := _inside(file, name)) is None:
                continue
            there = target.relative_to(ROOT)
            by_file.setdefault(str(here), set()).add(str(there))
            by_folder.setdefault(str(here.parent), set()).update({str(there.parent)} - {str(here.parent)})
            low, high = (next((i for i, f in enumerate(CPU_FLOORS) if f in p.parts[2:-1]), None) for p in (here, there))
            if None not in (low, high) and high > low:
                yield f"{at(file, line)}: {here.parent} includes {there}, which is above"
    yield from (f"circle: {c}" for c in (*circles(by_file), *circles(by_folder)))


def circles(arrows: Mapping[str, set[str]]) -> Found:
    """Rooms that reach each other: one line a group."""

    def reach(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            new = arrows.get(todo.pop(), set()) - seen
            seen |= new
            todo += new
        return seen

    reached = {room: reach(room) for room in arrows}
    groups = {tuple(sorted(r for r in reached[a] if a in reached.get(r, ()))) for a in arrows if a in reached[a]}
    yield from (" <-> ".join(group) for group in sorted(groups))


def floor(module: str) -> int:
    """The floor of a module, by the longest prefix in FLOORS; hhmpn_fast itself hands on and is above all."""
    own = module.removeprefix("hhmpn_fast").lstrip(".")
    fits = [
        (len(p), i)
        for i, names in enumerate(FLOORS)
        for p in names.split()
        if own == p or own.startswith(p if p[-1] == "." else f"{p}.")
    ]
    return max(fits)[1] if own and fits else len(FLOORS)


def imports() -> Found:
    """hhmpn_fast: imports, in functions too, that run up (FLOORS) or sideways (NEVER), and circles.

    `reference` imports nothing but torch of what is installed, and errors of the library's own.
    """
    modules = {}
    for file in library():
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        modules[name if name.startswith("hhmpn_fast") else f"hhmpn_fast.{name}"] = file
    arrows: dict[str, set[str]] = {}
    for module, file in modules.items():
        for line, target in sorted(set(python.imports(module, file, set(modules)))):
            if target == "hhmpn_fast":
                continue
            arrows.setdefault(module, set()).add(target)
            own, other = (m.split(".")[1] if "." in m else "" for m in (module, target))
            if floor(target) > floor(module) or other in NEVER.get(own, "").split():
                yield f"{at(file, line)}: {module} imports {target}"
            elif own == "reference" and other != "errors":
                yield f"{at(file, line)}: reference imports {target}"
    yield from (f"circle: {c}" for c in circles(arrows))


def long_files() -> Found:
    """Files of more than LONGEST lines (TABLES are data), and a median over MEDIAN."""
    lines = {f: f.read_text().count("\n") for f in everything() if not any(f.match(t) for t in TABLES)}
    yield from (f"{f.relative_to(ROOT)} has {n} lines" for f, n in lines.items() if n > LONGEST)
    if statistics.median(lines.values()) > MEDIAN:
        yield f"the median of {len(lines)} files is {statistics.median(lines.values()):.0f} lines"


def wide_lines() -> Found:
    """Lines of code over COLUMNS in csrc; comments may run on, a single text that fills the line too."""
    for file in native():
        for number, line in enumerate(cpp.code(file, strings=True).splitlines(), 1):
            if len(line.rstrip()) > COLUMNS and not re.search(r'"[^"]{80,}"', line):
                yield f"{at(file, number)}: {len(line.rstrip())} columns"


def file_names() -> Found:
    """Files with the name of a folder they lie in, or with a word that says where code runs (PLACES)."""
    for file in everything():
        words = file.name.split(".")[0].removeprefix("test_").split("_")
        folders = set(file.relative_to(ROOT).parts[:-1])
        if said := folders.intersection(words) or (len(words) > 1 and PLACES.intersection(words)):
            yield f"{file.relative_to(ROOT)} says {' '.join(sorted(said))}"


def formatting() -> Found:
    """Places that clang-format would change in csrc and in the tests' C++."""
    tool = shutil.which("clang-format", path=str(Path(sys.executable).parent)) or shutil.which("clang-format")
    if tool is None:
        yield "clang-format is missing: run `pip install -e '.[dev]'`"
        return
    sources = [str(f.relative_to(ROOT)) for f in everything() if f.suffix != ".py"]
    run = subprocess.run([tool, "--dry-run", "-Werror", *sources], cwd=ROOT, capture_output=True, text=True)
    yield from (line for line in run.stderr.splitlines() if "clang-format-violations" in line)


MEASURES: dict[Callable[[], Found], int] = {
    slots_cuda: 0,
    slots_cpu: 0,
    slots_python: 4,
    long_lists_python: 0,
    long_lists_triton: 0,
    long_lists_cpp: 0,
    signatures: 0,
    crowded_folders: 0,
    includes: 0,
    imports: 0,
    long_files: 0,
    wide_lines: 0,
    file_names: 0,
    formatting: 0,
}
