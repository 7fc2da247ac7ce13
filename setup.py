"""Build: the packages' places, and the C++ and CUDA extensions when a torch to build against is there.

build_backend/cpu.py and cuda.py compile; setuptools only asks for the result's place.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_backend"))
import cpu  # noqa: E402
import cuda  # noqa: E402

SOURCES = runpy.run_path(str(ROOT / "hhmpn_fast" / "source_digest.py"))  # importing the package would need torch


class Build(build_ext):
    """The CPU extension in its place, and the CUDA library beside the package."""

    @property
    def for_this_machine(self) -> bool:
        """Whether the package stays in the tree: an editable install, or `build_ext --inplace`."""
        return bool(self.inplace or self.editable_mode)

    def build_extension(self, ext: Extension) -> None:
        """Puts hhmpn_fast._C where setuptools wants it."""
        self.units = cpu.build(Path(self.get_ext_fullpath(ext.name)), self.for_this_machine)

    def run(self) -> None:
        """Builds both, and leaves beside the package what was built from which sources."""
        super().run()
        package = cuda.package_of(self)
        about = {"sources": SOURCES["digest"](ROOT / "csrc"), "units": self.units}
        (package / SOURCES["MANIFEST"]).write_text(json.dumps(about) + "\n", encoding="utf-8")
        cuda.build(package, ROOT / "build" / "cuda", editable=self.for_this_machine)


def extension() -> dict[str, object]:
    """The extensions' part of setup(), or nothing and one sentence that says why."""
    lack = cpu.lack()
    if lack is None:
        return {"ext_modules": [Extension("hhmpn_fast._C", sources=[])], "cmdclass": {"build_ext": Build}}
    said = f"hhmpn_fast: {lack[0]}, so the cpu and cuda backends are not built; {lack[1]}."
    if os.environ.get("HHMPN_CUDA") == "1":
        raise SystemExit(said)
    print(said)
    return {}


def packages() -> list[str]:
    """hhmpn_fast and its folders, and kernels/ as hhmpn_fast.kernels."""
    own = find_packages(include=["hhmpn_fast", "hhmpn_fast.*"])
    kernels = [f"hhmpn_fast.kernels.{name}" for name in find_packages("kernels")]
    return [*(name for name in own if not name.startswith("hhmpn_fast.kernels")), "hhmpn_fast.kernels", *kernels]


setup(
    packages=packages(),
    package_dir={"hhmpn_fast": "hhmpn_fast", "hhmpn_fast.kernels": "kernels"},
    package_data={"hhmpn_fast": ["py.typed"]},
    **extension(),
)
