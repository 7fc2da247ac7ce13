"""The emulation of AVX-512 under tests/cpu/emulated: what its instructions give, against numpy and this processor."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent / "emulated"
FORMS = {
    "emulated": ["-march=x86-64-v3", "-DEMULATED_BF16", "-include", str(HERE / "avx512.h")],
    "native": ["-march=x86-64-v4", "-mavx512bf16"],
}
FLAGS = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("flags", 1)[-1].split("\n")[0].split()
BLOCK = np.dtype([("a", "<u4", 16), ("b", "<u4", 16), ("c", "<f4", 16)])
RESULT = np.dtype(
    [
        *(("masked", "<f4", 16), ("product", "<u8", 8), ("woven", "<u8", 8), ("words", "<u2", 32)),
        *(("joined", "<u4", 16), ("narrow", "<u2", 16), ("narrow_both", "<u2", 32), ("dot", "<f4", 16)),
    ]
)


@cache
def blocks() -> np.ndarray:
    """Random floats of every size, and blocks of random bits: NaNs, infinities and denormals among them."""
    draw = np.random.default_rng(5)
    made = np.zeros(4096, BLOCK)
    for name in ("a", "b", "c"):
        values = draw.standard_normal((4096, 16)) * 2.0 ** draw.integers(-20, 20, (4096, 1))
        made[name] = values.astype("<f4").view(BLOCK[name].base)
        made[name][2048:] = draw.integers(0, 2**32, (2048, 16), dtype="<u4").view(BLOCK[name].base)
    return made


def results(form: str, folder: Path) -> np.ndarray:
    """What the probe, compiled in one form, gives for `blocks`."""
    program = folder / form
    subprocess.run(["c++", "-O2", "-Wno-psabi", *FORMS[form], str(HERE / "probe.cpp"), "-o", str(program)], check=True)
    out = subprocess.run([str(program)], input=blocks().tobytes(), capture_output=True, check=True).stdout
    return np.frombuffer(out, RESULT)


@pytest.mark.skipif(not {"avx2", "fma"} <= set(FLAGS), reason="the emulation needs AVX2")
def test_the_emulation_computes_what_the_instructions_say(tmp_path: Path) -> None:
    found, given = results("emulated", tmp_path), blocks()
    a, b = given["a"], given["b"]
    low = np.ascontiguousarray(a).view("<u8") & np.uint64(0xFFFFFFFF)
    np.testing.assert_array_equal(found["product"], low * np.uint64(0xD2511F53))
    wide = np.stack([a, b], 1).reshape(-1, 32).copy().view("<u8")
    np.testing.assert_array_equal(found["woven"], wide[:, [0, 8, 1, 9, 2, 10, 3, 11]])
    halves, places = np.ascontiguousarray(b).view("<u2"), np.ascontiguousarray(a).view("<u2") & 31
    np.testing.assert_array_equal(found["words"], np.take_along_axis(halves, places.astype(int), 1))
    np.testing.assert_array_equal(found["joined"], np.concatenate([b[:, :8], b[:, :8]], 1))
    masked = np.concatenate([a[:, :8], np.full((len(a), 4), np.float32(-1)).view("<u4"), b[:, 12:]], 1)
    np.testing.assert_array_equal(found["masked"].view("<u4"), masked)
    np.testing.assert_array_equal(found["narrow"], _narrow(a))
    np.testing.assert_array_equal(found["narrow_both"], np.concatenate([_narrow(b), _narrow(a)], 1))


@pytest.mark.skipif(not {"avx2", "fma"} <= set(FLAGS), reason="the emulation needs AVX2")
def test_the_emulated_dot_product_rounds_once_an_element(tmp_path: Path) -> None:
    found, given = results("emulated", tmp_path)["dot"][:2048], blocks()[:2048]
    left, right = (np.ascontiguousarray(given[n]).view("<u2").astype("<u4") << 16 for n in ("a", "b"))
    with np.errstate(all="ignore"):
        left, right = (np.where(h & 0x7F800000, h, 0).view("<f4").astype(float) for h in (left, right))
        products, given = left * right, given["c"].astype(float)
        odd = np.float32(given + products[:, 1::2])
        both = np.float32(odd.astype(float) + products[:, ::2])
        # A product of two bfloat16 is exact in float64; a sum may round twice on the way to float32.
        ulp = 2.0**-23 * (np.abs(given) + np.abs(products[:, 1::2]) + np.abs(products[:, ::2]))
    finite = np.isfinite(both) & (ulp > 2.0**-100)
    assert (np.abs(found[finite].astype(float) - both[finite]) <= ulp[finite]).all()
    assert (found[finite] == both[finite]).mean() > 0.999


@pytest.mark.skipif("avx512_bf16" not in FLAGS, reason="this processor has no AVX-512 with bfloat16 products")
def test_the_emulation_is_the_processor(tmp_path: Path) -> None:
    emulated, native = results("emulated", tmp_path), results("native", tmp_path)
    for name in RESULT.names:
        theirs, ours = native[name], emulated[name]
        same = (theirs == ours) | ((theirs != theirs) & (ours != ours))
        assert same.all(), name


def _narrow(bits: np.ndarray) -> np.ndarray:
    """bfloat16 of floats, nearest even; denormals are zeros and a NaN stays one."""
    bits = np.where(bits & 0x7F800000, bits, bits & 0x80000000).astype("<u8")
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(nan, bits >> 16 | 0x40, bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype("<u2")
