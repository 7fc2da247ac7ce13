"""The plots of docs/bench: time against batch, length and fill, and every contestant under the roofline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.race.contestants import CONTESTANTS

Record = dict[str, Any]
SIZE = (6.4, 4.2)


def write_plots(records: Sequence[Record], out: Path) -> list[tuple[str, str]]:
    """Writes what there are records for; returns title and file name of each."""
    import matplotlib

    matplotlib.use("Agg")
    timed = [r for r in records if r["kind"] == "time"]
    written = []
    for table, title, label, x in (
        ("batch", "Training step against batch size, mosei-aligned, fp32", "samples", lambda r: r["batch"]),
        ("length", "Inference against length, one sample, fp32", "nodes of the sample", lambda r: r["nodes"]),
        ("fill", "Training step against fill of the padded batch, fp32", "fill", lambda r: r["fill"]),
    ):
        chosen = sorted((r for r in timed if r["table"] == table), key=x)
        if len(chosen) > 1:
            growth(chosen, x, title, label, out / f"{table}.png", logarithmic=table != "fill")
            written.append((title, f"{table}.png"))
    chosen = [r for r in timed if r["table"] == "main" and r["dtype"] == "fp32" and "bandwidth" in r]
    if chosen:
        roofline(chosen, out / "roofline.png")
        written.append(("Roofline, fp32, B = 64: hollow inference, filled training", "roofline.png"))
    return written


def _colour(name: str) -> str:
    return f"C{list(CONTESTANTS).index(name)}"


def growth(
    records: Sequence[Record], x: Callable[[Record], float], title: str, label: str, file: Path, *, logarithmic: bool
) -> None:
    """Time and floor over one size."""
    from matplotlib.figure import Figure

    figure = Figure(SIZE, layout="constrained")
    axes = figure.subplots()
    for name in CONTESTANTS:
        points = [(x(r), r["results"][name]["median"] * 1e3) for r in records if name in r["results"]]
        if points:
            axes.plot(*zip(*points), "o-", label=name, color=_colour(name), markersize=4)
    axes.plot([x(r) for r in records], [r["useful_flop"] / r["rate"] * 1e3 for r in records], "k--", label="floor")
    if logarithmic:
        axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set(xlabel=label, ylabel="ms", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=110)


def roofline(records: Sequence[Record], file: Path) -> None:
    """Useful GFLOP/s over useful FLOP per compulsory byte, under the measured rate and bandwidth."""
    from matplotlib.figure import Figure

    figure = Figure(SIZE, layout="constrained")
    axes = figure.subplots()
    rate, bandwidth = max(r["rate"] for r in records), max(r["bandwidth"] for r in records)
    ends = [1.0, rate / bandwidth, 2 * max(r["useful_flop"] / r["compulsory_bytes"] for r in records)]
    axes.plot(ends, [min(e * bandwidth, rate) / 1e9 for e in ends], "k-")
    axes.annotate(f"{bandwidth / 1e9:.0f} GB/s", (ends[0] * 1.3, ends[0] * bandwidth / 1e9), fontsize=8)
    axes.annotate(f"{rate / 1e9:.0f} GFLOP/s", (ends[1], rate * 1.06 / 1e9), fontsize=8)
    for name in CONTESTANTS:
        label: str | None = name
        for r in records:
            if name not in r["results"]:
                continue
            at = (r["useful_flop"] / r["compulsory_bytes"], r["useful_flop"] / r["results"][name]["median"] / 1e9)
            face = _colour(name) if r["mode"] == "train" else "none"
            axes.plot(*at, "o", label=label, markeredgecolor=_colour(name), markerfacecolor=face, color=_colour(name))
            label = None
    axes.set(xscale="log", yscale="log", xlabel="useful FLOP a compulsory byte", ylabel="useful GFLOP/s")
    axes.set_title("Roofline, fp32, B = 64: hollow inference, filled training", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower left")
    figure.savefig(file, dpi=110)
