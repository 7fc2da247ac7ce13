"""Launch configurations: a frozen table keyed by (kernel, kind of product, width, architecture).

The kinds: "half" bf16 and fp16, "mixed" those beside fp32 weights, "tf32", and "ieee" fp32. The widths: rows padded to
64, 128, 256 or 512. Nothing is tuned at run time, and nothing depends on lengths but the mean rows a segment, known
from shapes: kernels named `_short` take segments of few rows. Tiles keep shared memory under 99 KiB where they can, so
that sm_86 and sm_89 run them too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

_NVIDIA = ("sm80", "sm90", "sm100")
ARCHITECTURES = (*_NVIDIA, "gfx942")
WIDTHS = (64, 128, 256, 512)
KINDS = ("half", "mixed", "tf32", "ieee")
SHORT = 32  # rows a segment, on average, up to which the `_short` kernels are taken


@dataclass(frozen=True)
class Entry:
    """One entry: the tiles a kernel is launched with.

    m, n: tile rows of the two operands; update: rows and hidden units a step.  k: features a step, 0 for whole rows.
    fused: multiply-adds round once, whatever Triton's default.
    registers: the most a thread takes, NVIDIA; 0 leaves it to the assembler, which spills to fit one more block.
    kernel: whose entry it is; the table fills it in.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int
    why: str
    fused: bool = True
    registers: int = 0
    kernel: str = ""

    @property
    def options(self) -> dict[str, object]:
        """What the launcher takes."""
        most = {"maxnreg": self.registers} if self.registers else {}
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": self.fused, **most}


_FMA = "plain FMA keeps operands in registers: small tiles, 32 features a step"
_WIDE = "two rows of 512 are more than the registers hold as operands: features in steps"
_SMALL = "narrow rows: whole rows in registers, more of them a tile"
_BYTES = "bytes only: four samples of a label a block; fused, the lanes of a sum over a row would differ in a last bit"
_STEP = "within 128 registers, for one more block, some form of the kernel spills"
_FEW = "segments of a few rows: the least tile of tensor cores, more blocks a multiprocessor"

# kernel, kinds, widths, architectures, entry; a later line replaces an earlier one, and one of halves is for mixed too.
_LINES: list[tuple[str, tuple[str, ...], tuple[int, ...], tuple[str, ...], Entry]] = []


def _line(
    kernels: str, kinds: str, widths: tuple[int, ...], entry: Entry, architectures: tuple[str, ...] = ARCHITECTURES
) -> None:
    for kernel in kernels.split():
        _LINES.append((kernel, tuple(kinds.replace("half", "half mixed").split()), widths, architectures, entry))


_ATTENTION = "attention_forward attention_d_q attention_d_x"
_ATTENTION += " attention_forward_short attention_d_q_short attention_d_x_short"
_LABELS, _FEATURES = "update_labels_forward", "update_features_forward"

_line(_ATTENTION, "ieee", (64, 128, 256), Entry(16, 16, 32, 4, 1, _FMA))
_line("attention_forward attention_forward_short", "ieee", (64,), Entry(16, 16, 0, 4, 1, "half rows spill on sm_90"))
_line("attention_d_q attention_d_q_short", "ieee", (64,), Entry(16, 16, 0, 4, 1, "half rows spill"))
_line("attention_d_q attention_d_q_short", "ieee", (128,), Entry(16, 16, 32, 4, 1, _STEP, registers=168), ("sm90",))
_line("attention_d_x attention_d_x_short", "ieee", (64,), Entry(16, 16, 0, 4, 1, "half rows spill on sm_90 and sm_100"))
_line(_ATTENTION, "ieee", (512,), Entry(16, 16, 32, 8, 1, _FMA))
_line("attention_d_q attention_d_q_short", "ieee", (512,), Entry(16, 16, 32, 8, 1, _STEP, registers=168), ("sm80",))
_line("attention_d_q attention_d_q_short", "ieee", (256,), Entry(16, 16, 32, 8, 1, "4 warps spill"), ("sm80",))
_line("attention_d_q attention_d_q_short", "ieee", (256,), Entry(16, 16, 32, 8, 1, _STEP, registers=168), ("sm90",))
_line("attention_d_q attention_d_q_short", "ieee", (256,), Entry(16, 16, 32, 4, 1, _STEP, registers=168), ("sm100",))
_line("attention_d_x attention_d_x_short", "ieee", (256,), Entry(16, 16, 64, 4, 1, "32 features a step spill on sm_90"))
_line("attention_d_x attention_d_x_short", "ieee", (128,), Entry(16, 16, 64, 4, 1, "32 a step spill"), ("sm90",))
_line("attention_d_q attention_d_q_short", "ieee", (128,), Entry(16, 16, 64, 4, 1, "32 a step spill"), ("sm100",))
_line(_ATTENTION, "half tf32", (512,), Entry(16, 16, 64, 8, 1, _WIDE))

_line("attention_forward", "half", (64, 128), Entry(64, 64, 0, 4, 2, _SMALL))
_line("attention_forward", "half", (256,), Entry(64, 64, 0, 8, 2, "64 rows fill wgmma; 8 warps halve the accumulator"))
_line("attention_forward", "half", (256,), Entry(32, 32, 0, 4, 1, "64 KiB of LDS"), ("gfx942",))
_line("attention_forward", "tf32", (64, 128), Entry(32, 32, 0, 4, 2, _SMALL))
_line("attention_forward", "tf32", (256,), Entry(32, 32, 0, 8, 2, "fp32 rows of 1 KiB: 96 KiB with two stages"))
_line("attention_forward", "tf32", (256,), Entry(16, 16, 64, 4, 1, "64 KiB of LDS"), ("gfx942",))
_line("attention_forward_short", "half", (64, 128, 256), Entry(16, 32, 0, 4, 2, _FEW))
_line("attention_forward_short", "half", (256,), Entry(16, 32, 0, 4, 1, "two stages spill under a mask"), ("sm80",))
_line("attention_forward_short", "half", (256,), Entry(16, 32, 64, 4, 1, "room for three blocks"), ("gfx942",))
_line("attention_forward_short", "tf32", (64, 128, 256), Entry(16, 32, 0, 4, 2, _FEW))
_line("attention_forward_short", "tf32", (256,), Entry(16, 16, 64, 4, 1, "64 KiB of LDS"), ("gfx942",))

_line("attention_d_q", "half", (64, 128), Entry(32, 64, 0, 4, 2, _SMALL))
_line("attention_d_q", "half", (64,), Entry(16, 32, 0, 4, 1, "32 rows leave room for one block"), ("gfx942",))
_line("attention_d_q", "half", (128,), Entry(32, 32, 64, 4, 1, "64 keys leave room for one block"), ("gfx942",))
_line("attention_d_q", "half", (128,), Entry(16, 32, 0, 4, 2, "32 rows, read in two loops, spill"), _NVIDIA)
_line("attention_d_q", "half", (256,), Entry(16, 32, 0, 4, 2, "32 rows, read in two loops, spill"))
_line("attention_d_q", "half", (256,), Entry(16, 32, 0, 4, 2, "168 spill", registers=208), ("sm90", "sm100"))
_line("attention_d_q", "half", (256,), Entry(16, 32, 64, 4, 1, "whole rows leave room for one block"), ("gfx942",))
_line("attention_d_q", "tf32", (64, 128), Entry(32, 16, 0, 4, 1, _SMALL))
_line("attention_d_q", "tf32", (128,), Entry(16, 16, 64, 4, 1, "32 rows spill", registers=168), ("sm80",))
_line("attention_d_q", "tf32", (256,), Entry(16, 16, 64, 4, 1, "32 rows spill", registers=208), _NVIDIA)
_line("attention_d_q", "tf32", (256,), Entry(16, 16, 64, 4, 1, "64 KiB of LDS"), ("gfx942",))
_line("attention_d_q_short", "half", (64, 128, 256), Entry(16, 32, 0, 4, 2, _FEW))
_line("attention_d_q_short", "half", (128,), Entry(16, 32, 0, 4, 1, "two stages spill"), ("sm100",))
_line("attention_d_q_short", "half", (64, 128), Entry(16, 32, 0, 4, 1, "no two stages under a mask"), ("gfx942",))
_line("attention_d_q_short", "half", (256,), Entry(16, 32, 0, 4, 2, "168 spill", registers=208), ("sm90", "sm100"))
_line("attention_d_q_short", "half", (256,), Entry(16, 32, 64, 4, 1, "room for two blocks"), ("gfx942",))
_line("attention_d_q_short", "tf32", (64, 128, 256), Entry(16, 16, 64, 4, 1, _FEW))
_line("attention_d_q_short", "tf32", (128,), Entry(16, 16, 64, 4, 1, "128 spill", registers=168), _NVIDIA)
_line("attention_d_q_short", "tf32", (256,), Entry(16, 16, 64, 4, 1, "168 spill", registers=208), _NVIDIA)

_line("attention_d_x", "half", (64, 128), Entry(32, 64, 0, 4, 2, _SMALL))
_line("attention_d_x", "half", (64, 128), Entry(32, 64, 0, 4, 1, "the compiler fails on two stages"), ("gfx942",))
_line("attention_d_x", "half", (256,), Entry(16, 32, 0, 4, 2, "the node tile stays in registers as an operand"))
_line("attention_d_x", "tf32", (64,), Entry(32, 16, 32, 4, 1, "32 queries a step spill on sm_80 and sm_100"))
_line("attention_d_x", "tf32", (128,), Entry(32, 32, 32, 4, 1, _SMALL))
_line("attention_d_x", "tf32", (256,), Entry(32, 32, 64, 8, 1, "an fp32 node tile as an operand spills: in steps"))
_line("attention_d_x", "tf32", (256,), Entry(16, 16, 64, 4, 1, "64 KiB of LDS"), ("gfx942",))
_line("attention_d_x_short", "half", (64, 128, 256), Entry(16, 32, 0, 4, 2, _FEW))
_line("attention_d_x_short", "half", (128,), Entry(16, 32, 64, 4, 2, "whole rows spill on sm_90 and sm_100"))
_line("attention_d_x_short", "tf32", (64, 128), Entry(16, 32, 64, 4, 1, _FEW))
_line("attention_d_x_short", "tf32", (256,), Entry(16, 32, 64, 8, 1, _FEW))
_line("attention_d_x_short", "tf32", (256,), Entry(16, 32, 64, 8, 1, _STEP, registers=168), ("sm80", "sm90"))

_line(_LABELS, "half", WIDTHS, Entry(16, 32, 64, 4, 2, "few label rows; 64 hidden units a step spill"))
_line(_LABELS, "half", (512,), Entry(16, 32, 64, 8, 2, "8 warps halve two rows of 512"))
_line(_LABELS, "half", (256,), Entry(16, 32, 64, 4, 1, "one stage fits two blocks"), ("gfx942",))
_line(_LABELS, "half", (512,), Entry(16, 16, 64, 8, 1, "32 hidden units a step overflow LDS"), ("gfx942",))
_line(_LABELS, "tf32", WIDTHS, Entry(16, 32, 32, 8, 2, "few label rows; weight chunks of 32 KiB"))
_line(_LABELS, "tf32", (512,), Entry(16, 16, 32, 8, 1, "two rows of 512 in fp32 leave little room"))
_line(_LABELS, "tf32", (256,), Entry(16, 16, 64, 4, 1, "32 hidden units a step spill"), ("gfx942",))
_line(_LABELS, "ieee", WIDTHS, Entry(16, 16, 16, 8, 1, _FMA))
_line(_LABELS, "ieee", (256,), Entry(16, 16, 16, 8, 2, "one stage spills in inference"), _NVIDIA)
_line(_LABELS, "tf32 ieee", (512,), Entry(16, 16, 32, 4, 1, "8 warps have too few registers"), ("gfx942",))
_line(_LABELS, "mixed", (512,), Entry(16, 16, 32, 4, 1, "8 warps have too few registers"), ("gfx942",))
_line(_FEATURES, "half", (64, 128, 256), Entry(64, 64, 64, 8, 2, "64 rows share a pass over the weights"))
_line(_FEATURES, "half", (128, 256), Entry(64, 32, 64, 8, 2, "64 hidden units a step spill"), ("sm100",))
_line(_FEATURES, "half", (512,), Entry(32, 32, 64, 8, 1, "an accumulator of 512 columns"))
_line(_FEATURES, "mixed", (256,), Entry(64, 32, 64, 8, 2, "64 hidden units a step spill"), _NVIDIA)
_line(_FEATURES, "mixed", (512,), Entry(16, 32, 32, 8, 1, "32 rows spill, and 64 features a step"))
_line(_FEATURES, "tf32", WIDTHS, Entry(32, 32, 32, 8, 2, "weight chunks of 32 KiB"))
_line(_FEATURES, "tf32", (512,), Entry(16, 32, 32, 8, 1, "an accumulator of 512 columns"))
_line(_FEATURES, "ieee", WIDTHS, Entry(16, 16, 16, 8, 1, _FMA))
_line(_FEATURES, "ieee", (256,), Entry(32, 16, 16, 8, 1, "16 rows spill; 32 halve the reads of weights"))
_line("rows_product", "half", WIDTHS, Entry(64, 64, 64, 4, 3, "a plain product with three stages in flight"))
_line("rows_product", "tf32", WIDTHS, Entry(64, 64, 32, 4, 2, "a plain product, fp32 tiles of half the depth"))
_line("rows_product", "ieee", WIDTHS, Entry(64, 64, 16, 4, 1, _FMA))
_line("rows_product", "ieee", (256,), Entry(64, 64, 16, 4, 1, "96 spill", registers=128), ("sm100",))
_line("weight_product", "half", WIDTHS, Entry(32, 64, 64, 4, 3, "rows are the inner axis: 32 a step, three in flight"))
_line("weight_product", "tf32", WIDTHS, Entry(32, 64, 64, 4, 2, "rows are the inner axis: 32 a step"))
_line("weight_product", "tf32", WIDTHS, Entry(32, 64, 64, 4, 1, "two stages copy a word at a time"), ("sm90", "sm100"))
_line("weight_product", "ieee", WIDTHS, Entry(16, 64, 64, 4, 1, _FMA))
_line("readout_forward readout_backward", "half tf32 ieee", WIDTHS, Entry(4, 0, 0, 4, 1, _BYTES, fused=False))
_line("joint_bce_forward", "half tf32 ieee", WIDTHS, Entry(1024, 0, 0, 8, 1, "one program, 1024 logits a pass"))

TABLE: dict[tuple[str, str, int, str], Entry] = {
    (kernel, kind, width, architecture): replace(entry, kernel=kernel)
    for kernel, kinds, widths, architectures, entry in _LINES
    for kind in kinds
    for width in widths
    for architecture in architectures
}


def entry(kernel: str, kind: str, dim: int, architecture: str) -> Entry:
    """The table's entry for rows of `dim` features."""
    return TABLE[kernel, kind, next(w for w in WIDTHS if dim <= w), architecture]
