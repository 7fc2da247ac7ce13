"""From text to word vectors: tokens, vector files, and the look-up between them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hhmpn_fast.data.formats.npz import load_npz
from hhmpn_fast.errors import InputError

_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u00b4": "'", "`": "'"})
_WHOLE = {"can't": "can not", "cannot": "can not", "won't": "will not", "shan't": "shall not", "ain't": "is not"}
_TOKEN = re.compile(r"'(?:s|re|ve|ll|d|m)\b|[^\W_]+(?:['-][^\W_]+)*|[^\w\s]")
_CLITIC = re.compile(r"(.+?)(n't|'(?:s|re|ve|ll|d|m))$")


def tokenise(text: str) -> list[str]:
    """Lower-case words and punctuation; "don't" gives "do", "not" and "it's" gives "it", "'s"."""
    tokens: list[str] = []
    for token in _TOKEN.findall(text.lower().translate(_APOSTROPHES)):
        if token in _WHOLE:
            tokens += _WHOLE[token].split()
        elif "'" in token[1:] and (match := _CLITIC.match(token)):
            tokens += [match[1], "not" if match[2] == "n't" else match[2]]
        else:
            tokens.append(token)
    return tokens


@dataclass
class WordVectors:
    """A vocabulary and its vectors, float32 (V, e).

    Attributes:
        unknown: what becomes of a word without a vector: "drop" (left out), "zero" or "mean" (a node of that value).
        missing: how often each word without a vector was looked up.
        looked_up: how many words were looked up in all.
    """

    index: dict[str, int]
    vectors: np.ndarray
    unknown: str = "drop"
    missing: Counter[str] = field(default_factory=Counter)
    looked_up: int = 0

    def __post_init__(self) -> None:
        if self.unknown not in ("drop", "zero", "mean"):
            raise InputError(f"unknown words: found '{self.unknown}'; expected 'drop', 'zero' or 'mean'.")
        filler = np.zeros_like(self.vectors[:1]) if self.unknown == "zero" else self.vectors.mean(0, keepdims=True)
        self.vectors = np.concatenate([self.vectors, filler])

    @property
    def size(self) -> int:
        """e, the width of a vector."""
        return self.vectors.shape[1]

    def rows(self, tokens: Sequence[str]) -> list[int]:
        """Rows of `vectors` for these tokens; a hyphenated word without a vector is looked up part by part."""
        found: list[int] = []
        for token in tokens:
            parts = [token] if token in self.index or "-" not in token else [p for p in token.split("-") if p]
            for part in parts:
                self.looked_up += 1
                row = self.index.get(part)
                if row is None:
                    self.missing[part] += 1
                    if self.unknown == "drop":
                        continue
                    row = len(self.vectors) - 1
                found.append(row)
        return found

    def note(self) -> str:
        """How many words had no vector, in a sentence."""
        lost = sum(self.missing.values())
        common = ", ".join(f"'{w}' {c}" for w, c in self.missing.most_common(5))
        share = 100.0 * lost / max(self.looked_up, 1)
        return f"{lost} of {self.looked_up} words ({share:.1f} %) have no vector ({self.unknown}); most often {common}."


def load_vectors(path: str | Path, unknown: str = "drop") -> WordVectors:
    """Reads word vectors from an .npz of `words` (V,) and `vectors` (V, e), or from a GloVe text file.

    Raises:
        InputError: no such file, keys or widths that do not fit, NaN or inf.
    """
    path = Path(path)
    words, vectors = _from_npz(path) if path.suffix == ".npz" else _from_text(path)
    if not np.isfinite(vectors).all():
        at = int((~np.isfinite(vectors)).any(1).argmax())
        raise InputError(f"word vectors '{path}': the vector of '{words[at]}' has NaN or inf; expected finite numbers.")
    return WordVectors({w: i for i, w in enumerate(words)}, vectors, unknown)


def _from_npz(path: Path) -> tuple[list[str], np.ndarray]:
    arrays = load_npz(path)
    if "words" not in arrays or "vectors" not in arrays:
        raise InputError(f"word vectors '{path}': found keys {', '.join(arrays)}; expected 'words' and 'vectors'.")
    words, vectors = arrays["words"], arrays["vectors"]
    if vectors.ndim != 2 or words.shape != vectors.shape[:1] or not len(words):
        raise InputError(
            f"word vectors '{path}': words {words.shape} and vectors {vectors.shape}; expected (V,) and (V, e)."
        )
    return [str(w) for w in words], vectors.astype(np.float32)


def _from_text(path: Path) -> tuple[list[str], np.ndarray]:
    words, rows, width = [], [], 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                parts = line.rstrip("\n").split(" ")
                if number == 1 and len(parts) == 2:
                    continue
                width = width or len(parts) - 1
                if len(parts) - 1 != width or not width:
                    raise InputError(
                        f"word vectors '{path}' line {number}: {len(parts) - 1} numbers; expected {width or 'some'}."
                    )
                words.append(parts[0])
                rows.append(np.array(parts[1:], dtype=np.float32))
    except InputError:
        raise
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"word vectors '{path}': cannot be read ({error}); expected 'word number ...'.") from None
    if not words:
        raise InputError(f"word vectors '{path}': found no word; expected 'word number ...' on every line.")
    return words, np.stack(rows)
