"""Turns the cells' JSON files into docs/bench: results.json, README.md with the tables, and the plots."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from bench.race.contestants import CONTESTANTS
from bench.race.plots import write_plots

ROOT = Path(__file__).parents[2]
Record = dict[str, Any]


def machine() -> dict[str, Any]:
    """Where and on what this was measured."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    fields = {k.strip(): v.strip() for k, v in fields.items()}
    flags = fields.get("flags", "").split()
    isa = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags]
    return {
        "cpu": fields.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "isa": isa,
        "torch": torch.__version__,
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain", "-uno") else ""),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def _git(*arguments: str) -> str:
    found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else "unknown"


def load(work: Path) -> list[Record]:
    """All cells; probes of one cell, a file a contestant, become one record."""
    cells: dict[str, Record] = {}
    for file in sorted(work.glob("*.json")):
        record = json.loads(file.read_text())
        known = cells.setdefault(record["name"], record)
        known["results"] |= record["results"]
        known["skipped"] |= record["skipped"]
    return list(cells.values())


def write_report(work: Path, out: Path) -> None:
    """Writes everything there is a record for."""
    records = load(work)
    out.mkdir(parents=True, exist_ok=True)
    about = machine()
    (out / "results.json").write_text(json.dumps({"machine": about, "cells": records}, indent=1, sort_keys=True) + "\n")
    plots = write_plots(records, out)
    (out / "README.md").write_text(page(about, records, plots))


def page(about: dict[str, Any], records: Sequence[Record], plots: Sequence[tuple[str, str]]) -> str:
    """The Markdown page."""
    rates = {d: [r["rate"] / 1e9 for r in records if r.get("rate") and r["dtype"] == d] for d in ("fp32", "bf16")}
    seen = "; ".join(f"{d} {min(r):.0f} to {max(r):.0f} GFLOP/s" for d, r in rates.items() if r)
    text = [
        "# Measured",
        f"{about['cpu']}, {about['cores']} cores ({', '.join(about['isa'])}), 2 threads, torch {about['torch']}, "
        f"commit {about['commit']}, {about['date']}. Matrix rate over the cells: {seen}. "
        "Written by `python -m bench.race.run`; what the words mean stands in [benchmarks.md](../benchmarks.md).",
        "Medians of interleaved rounds in milliseconds, ± the median absolute deviation, then the multiple of the "
        "floor (useful FLOP over the matrix rate of the same run). All contestants passed the float64 gate in the same "
        "process.",
    ]
    for dtype in ("fp32", "bf16"):
        for mode, title in (("train", "Training step"), ("infer", "Inference")):
            text += _section(
                f"{title}, {dtype}, B = 64", records, times, table="main", mode=mode, dtype=dtype, kind="time"
            )
    for dtype in ("fp32", "bf16"):
        text += _section(f"Latency: inference, {dtype}, B = 1", records, times, table="latency", dtype=dtype)
    text += _section("Training step, 20 % of the modalities missing, fp32", records, times, table="missing")
    text += _section("Training step with dropout 0.2, fp32", records, times, table="dropout")
    memory = {"table": "main", "kind": "memory"}
    text += _section("Memory a training step adds, MiB, fp32, B = 64", records, plain("mib", "{:.0f}"), **memory)
    first = {"table": "main", "kind": "first"}
    text += _section(
        "First call in a fresh process, seconds, mosei-aligned", records, plain("first", "{:.2f}"), **first
    )
    text += _section("Time against batch: training step, fp32", records, times, table="batch")
    text += _section("Time against length: inference, fp32, one sample", records, times, table="length", kind="time")
    memory = {"table": "length", "kind": "memory"}
    text += _section("Memory against length: a training step, MiB", records, plain("mib", "{:.0f}"), **memory)
    text += _section("Time against fill: training step, fp32", records, times, table="fill")
    text += [f"![{title}]({file})" for title, file in plots]
    disturbed = [r for r in records if r.get("cores_busy_elsewhere", 0) > 0.1 or r.get("sections_cut_short")]
    if disturbed:
        names = "\n".join(f"- {r['name']}: {r['cores_busy_elsewhere']:.1f} cores" for r in disturbed)
        text += ["## Disturbed", f"Other processes worked beside these cells; do not trust their times.\n\n{names}"]
    reasons = sorted({f"- {n}: {why}" for r in records for n, why in r["skipped"].items()})
    if reasons:
        text += ["## What could not run", "\n".join(reasons)]
    return "\n\n".join(text) + "\n"


Formatter = Callable[[Record, str], str]


def _section(title: str, records: Sequence[Record], show: Formatter, **where: str) -> list[str]:
    """A heading and a table, contestants down and cells across; nothing when no record fits."""
    chosen = [r for r in records if all(r[k] == v for k, v in where.items())]
    if not chosen:
        return []
    chosen.sort(key=lambda r: (_order(r["workload"]), r["batch"], r["mode"]))
    heads = [_head(r, chosen) for r in chosen]
    names = [n for n in CONTESTANTS if any(n in r["results"] or n in r["skipped"] for r in chosen)]
    rows = [["", *heads], ["---"] * (len(heads) + 1)]
    rows += [[n, *(show(r, n) if n in r["results"] else "-" for r in chosen)] for n in names]
    if show is times:
        rows.append(["floor", *(f"{floor(r) * 1e3:.3g}" for r in chosen)])
    return [f"## {title}", "\n".join(f"| {' | '.join(row)} |" for row in rows)]


def _order(workload: str) -> tuple[str, int]:
    head, _, tail = workload.rpartition("-")
    return (head, int(tail)) if tail.isdigit() else (workload, 0)


def _head(record: Record, among: Sequence[Record]) -> str:
    if len({r["batch"] for r in among}) > 1:
        return f"B = {record['batch']}"
    if len({r["workload"] for r in among}) == 1 and len({r["mode"] for r in among}) > 1:
        return record["mode"]
    if record["table"] == "fill":
        return f"{record['fill']:.0%} full"
    return record["workload"].removeprefix("length-").removesuffix("-missing")


def floor(record: Record) -> float:
    """Seconds."""
    return record["useful_flop"] / record["rate"]


def times(record: Record, name: str) -> str:
    """ "44.2 ± 0.3 (1.05x)"."""
    found = record["results"][name]
    return f"{three(found['median'] * 1e3)} ± {found['mad'] * 1e3:.1f} ({three(found['median'] / floor(record))}x)"


def three(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def plain(key: str, form: str) -> Formatter:
    """A formatter of one value."""
    return lambda record, name: form.format(record["results"][name][key])
