"""The bugs that `cuda_mutants` plants in csrc/cuda, beside every barrier and wait removed."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One planted bug: the `nth` match of a regular expression in a file below csrc/cuda, replaced."""

    name: str
    file: str
    pattern: str
    replacement: str
    nth: int = 0


MUTANTS = [
    Mutant("queries one row too many", "base/rows.cuh", r"row < count;", "row <= count;"),
    Mutant("rows stored one too many", "base/rows.cuh", r"i < count \* kPieces", "i < (count + 1) * kPieces"),
    Mutant("tile count not clipped", "base/rows.cuh", r"min\(kRows, end - first\)", "kRows"),
    Mutant("tile numbers one off", "base/rows.cuh", r"to / kRows \+ i \+ 1", "to / kRows + i"),
    Mutant("B fragments swapped", "base/tile.cuh",
     r"fb\[0\], fb\[1\]\);\s+mma_16816<T>\(v\[j \+ 1\], fa\[0\], fb\[2\], fb\[3\]",
     "fb[0], fb[2]); mma_16816<T>(v[j + 1], fa[0], fb[1], fb[3]"),
    Mutant("A read untransposed", "base/tile.cuh", r"ldmatrix_x4_trans\(fa", "ldmatrix_x4(fa"),
    Mutant("fp32 rows interleaved wrongly", "base/tile.cuh", r"lane / 8 \+ i \* 4;", "lane / 8 * 4 + i;"),
    Mutant("row stride without padding", "base/tile.cuh", r"n \+ kPad<T>", "n + kPad<T> / 2"),
    Mutant("stored columns off by one", "base/tile.cuh", r"j \* 8 \+ lane % 4 \* 2;", "j * 8 + lane % 4 * 2 + 1;"),
    Mutant("key bound off by one", "attention/params.h", r"key >= keys", "key > keys"),
    Mutant("mask transposed", "attention/params.h", r"p\.mask\[int64_t\(row\) \* p\.mask_columns \+ key\]",
     "p.mask[int64_t(key) * p.mask_columns + row]"),
    Mutant("self excluded in every segment", "attention/params.h", r"query == source && row == key", "row == key"),
    Mutant("running sum not rescaled", "base/softmax.cuh", r"sum = sum \* factor \+", "sum = sum +"),
    Mutant("maximum over half a row", "base/softmax.cuh", r"int o = 4; o; o >>= 1\) x = fmaxf",
     "int o = 2; o; o >>= 1) x = fmaxf"),
    Mutant("empty row divides by zero", "base/softmax.cuh", r"sum == 0\.f \? 0\.f : 1\.f / sum", "1.f / sum"),
    Mutant("context not rescaled", "attention/forward.cu", r"v \*= s\.factor\[r\];", "(void)v;"),
    Mutant("prefetch wait missing", "attention/forward.cu", r"cp_async_wait<0>\(\);", "cp_async_wait<1>();"),
    Mutant("short shared-memory request", "attention/forward.cu", r"sizeof\(ForwardSmem<T, D>\), stream",
     "sizeof(ForwardSmem<T, D>) - 16, stream"),
    Mutant("dropout row off by one", "attention/forward.cu", r"q\.begin \+ place, k0", "q.begin + place + 1, k0"),
    Mutant("delta forgotten", "attention/backward.cu", r"\* keep\[i\] - delta\)", "* keep[i])"),
    Mutant("dlse forgotten", "attention/backward.cu", r"if \(p\.d_lse\) delta -=", "if (false) delta -="),
    Mutant("a row's rounding left in dq", "attention/backward.cu",
     r"v -= s\.missed\[r\] \* to_float\([^;]*;", "(void)v;"),
    Mutant("dropout of a row's rounding", "attention/backward.cu", r"missed / p\.dropout\.scale", "missed"),
    Mutant("dropped weights in dx undropped", "attention/backward.cu", r"s\[i\] \*= keep\[i\];", ""),
    Mutant("last query tile skipped", "attention/backward.cu", r"r0 < rows; r0", "r0 + kQ < rows; r0"),
    Mutant("short shared-memory request backward", "attention/backward.cu", r"sizeof\(KeySmem<T, D>\)",
     "sizeof(KeySmem<T, D>) - 16"),
    Mutant("Philox key not stepped", "base/philox.cuh", r"k0 \+= 0x9E3779B9u", "k0 += 0u"),
    Mutant("Philox word of another column", "base/philox.cuh", r"column >> 2, row", "column >> 3, row"),
    Mutant("weight slice wait missing", "base/weights.cuh", r"cp_async_wait<0>\(\);", "cp_async_wait<1>();"),
    Mutant("weight slices in one stage", "base/weights.cuh", r"stage\[slice % 2\], w \+ slice", "stage[0], w + slice"),
    Mutant("relu negated", "base/weights.cuh", r"x < 0\.f \? 0\.f : x", "-x"),
    Mutant("dropout backward of another row", "update/shared.cuh", r"first \+ row, c, keep", "row, c, keep"),
    Mutant("residual of another row", "update/forward.cu", r"% p\.state_rows", "% (p.state_rows + 1)"),
    Mutant("dropout forgotten", "update/forward.cu", r"if \(p\.dropout\.rng\) v \*= keep1\([^;]*;",
     "v += 0.f;"),
    Mutant("first modality left out of the sum", "update/forward.cu",
     r"int m = 0; m < p\.modalities; m\+\+\) \{\s+const T\* at",
     "int m = 1; m < p.modalities; m++) { const T* at"),
    Mutant("last rows not stored", "update/forward.cu", r"s\.x, count\);\n\}", "s.x, count - 1);\n}"),
    Mutant("relu's mask forgotten", "update/backward.cu", r"<= 0\.f\) v = 0\.f;", "<= -1e30f) v = 0.f;"),
    Mutant("d_g without d_out", "update/backward.cu", r"v \+= to_float\(s\.x\[r \* kLd \+ c\]\);", "(void)v;"),
    # A row's last 16 bytes are padding that nobody reads, and a slice of W leaves 512 bytes of its stage.
    Mutant("short shared-memory request update", "update/forward.cu", r"smem = sizeof\(UpdateSmem<T, D>\)",
     "smem = sizeof(UpdateSmem<T, D>) - 32"),
    Mutant("short shared-memory request update backward", "update/backward.cu", r"smem = sizeof\(UpdateSmem<T, D>\)",
     "smem = sizeof(UpdateSmem<T, D>) - 544"),
    Mutant("split overlaps the next", "weight_gradients/backward.cu",
     r"min\(from \+ share, rows\)", "min(from + share + 1, rows)"),
    Mutant("bias over one row less", "weight_gradients/backward.cu", r"k < kSlice; k\+\+", "k < kSlice - 1; k++"),
    Mutant("one split forgotten", "weight_gradients/backward.cu",
     r"int s = 0; s < p\.splits", "int s = 1; s < p.splits"),
    Mutant("group's rows of another modality", "tower/share.cuh", r"b\.m0 \+ row / b\.rows", "row / b.rows"),
    Mutant("step's dropout site", "tower/share.cuh", r"\* p\.sites_a_step", "* 256u"),
    Mutant("readout not rescaled", "tower/forward.cu", r"total\[i\] \* s\.factor\[r\]", "total[i]"),
    Mutant("absent modality read out", "tower/forward.cu",
     r"p\.present\[m \* p\.batch \+ sample\] \? e : -INFINITY", "e"),
    Mutant("label mask ignored", "tower/forward.cu", r"!p\.mask \|\| p\.mask\[row \* p\.labels \+ key\]", "true"),
    Mutant("u short in shared memory", "tower/forward.cu", r"u \* kStride<T, D> \* sizeof\(T\)",
     "(u - 1) * kStride<T, D> * sizeof(T)"),
    Mutant("states read behind their end", "tower/forward.cu", r"f2l\.query, b\.rows\);", "f2l.query);"),
    Mutant("queries of the pair not clipped", "tower/forward.cu", r"kLd, labels\);", "kLd, kAllRows);"),
    Mutant("keys of the pair not clipped", "tower/forward.cu", r"kQ, pair\.key_rows\);", "kQ, kAllRows);"),
    Mutant("label gradients of the pair not clipped", "tower/backward.cu", r"kQ, labels\);", "kQ, kAllRows);"),
    Mutant("node gradients of the pair not clipped", "tower/backward.cu", r"kQ, labels\);", "kQ, kAllRows);", 1),
    Mutant("readout gradient uncentred", "tower/backward.cu", r"\(to_float\(u2\[c\]\) - to_float\(u\[c\]\)\)",
     "to_float(u2[c])"),
    Mutant("delta of one tile forgotten", "tower/backward.cu",
     r"if \(pair\.keys <= kK\) delta =", "if (false) delta ="),
    Mutant("next du not cleared", "tower/backward.cu", r"next\[i\] = 0\.f;", "if (t == p.steps - 1) next[i] = 0.f;"),
    Mutant("dq of the first group only", "tower/backward.cu", r"b\.m0 == 0 \? v : to_float\(kept\[i\]\) \+ v", "v"),
    Mutant("node gradient overwritten", "tower/backward.cu", r"\* D \+ c\] \+= v;", "* D + c] = v;"),
    Mutant("queries committed with the weights", "tower/backward.cu", r"labels\);\s+cp_async_commit\(\);\s+for \(int m",
     "labels); for (int m"),
]  # fmt: skip
