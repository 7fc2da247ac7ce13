"""Ready recipes for the four real data sets the project is developed on; `root` is the folder that holds theirs."""

from __future__ import annotations

from pathlib import Path

from hhmpn_fast.data.convert import convert
from hhmpn_fast.data.readers.mulan import Group
from hhmpn_fast.data.segments import Context
from hhmpn_fast.errors import InputError

EMOTIONS = ("happy", "sad", "anger", "surprise", "disgust", "fear")


def emotions(root: str | Path, out: str | Path, *, seed: int = 0, overwrite: bool = False) -> Path:
    """593 songs, official 391/202 split, 6 moods: rhythm as one node of 8, timbre as one of 64.

    Standardise both modalities: columns differ by three orders of magnitude. (The 64 are 16 descriptors of 4
    statistics; as a set of 16 tagged nodes, "0-63:16:strided:tag", they did worse on 391 songs.)
    """
    groups = [Group("rhythm", "64-71"), Group("timbre", "0-63")]
    source = _folder(root, "emotions") / "arff"
    files = {"train": "emotions-train.arff", "test": "emotions-test.arff"}
    return convert("mulan", source, out, groups=groups, files=files, seed=seed, overwrite=overwrite)


def mosei_text(
    root: str | Path, out: str | Path, *, context: Context | None = None, timing: bool = True, overwrite: bool = False
) -> Path:
    """MOSEI's 16326/1871/4659 segments: words, neighbouring segments (not the paper's vision or audio) and timing."""
    source = _folder(root, "mosei_text")
    return convert(
        "tsv",
        source,
        out,
        vectors=source / "glove50_subset.npz",
        labels=EMOTIONS,
        context=context or Context("segments", window=4, spread=True),
        timing=timing,
        overwrite=overwrite,
    )


def mosei_video922(root: str | Path, out: str | Path, *, overwrite: bool = False) -> Path:
    """922 videos, official folds 656/86/180: one text, one audio and one vision vector each.

    Audio column 7 is -inf in 653 videos; vision columns 0 and 1 are a face number and a time stamp.
    """
    return convert(
        "npz",
        _folder(root, "mosei_video922") / "mosei_video922.npz",
        out,
        modalities=["text=text_bert_cls", "audio=audio_covarep40", "vision=visual_openface35"],
        labels="emotion_any",
        label_names="emotions",
        ids="video_id",
        folds="official_fold",
        fold_names={"none": "train"},
        drop_columns={"audio": "7", "vision": "0-1"},
        overwrite=overwrite,
    )


def pom(root: str | Path, out: str | Path, *, overwrite: bool = False) -> Path:
    """903 reviews, 600/100/203: audio and video sequences trimmed of their padding, 16 traits present above 4 of 7."""
    return convert(
        "npz",
        _folder(root, "pom") / "pom_av.npz",
        out,
        modalities=["audio=audio_{split}", "video=video_{split}"],
        labels="y_{split}",
        label_names="trait_names",
        threshold=4.0,
        drop_labels=["sentiment"],
        overwrite=overwrite,
    )


RECIPES = {"emotions": emotions, "mosei_text": mosei_text, "mosei_video922": mosei_video922, "pom": pom}


def _folder(root: str | Path, name: str) -> Path:
    folder = Path(root) / name
    if not folder.is_dir():
        raise InputError(f"data folder '{folder}': not there; expected the folder that its README describes.")
    return folder
