"""Interleaved timing, tables and JSON files for the benchmarks."""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torchvision


@dataclass(frozen=True)
class Row:
    """One line of a table. ``value`` and ``baseline`` are medians; a ``ratio`` above 1 favours this code."""

    work: str
    baseline: float | None
    value: float | None
    ratio: float | None
    goal: float | None  # None if the row has no goal
    unit: str
    note: str = ""


def make_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="run fewer cases and repetitions, in about a minute")
    parser.add_argument("--repeats", type=int, help="timed runs of each variant (default: depends on the case)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table with machine and settings to FILE")
    return parser


def interleave(variants: Sequence[Callable[[], object]], repeats: int, device: torch.device) -> list[float]:
    """Return the median seconds of each variant.

    The variants run alternately (A B A B ...), after one warm-up run each.
    """
    for variant in variants:
        variant()
    seconds: list[list[float]] = [[] for _ in variants]
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for times, variant in zip(seconds, variants, strict=True):
                wait_for(device)
                start = time.perf_counter()
                variant()
                wait_for(device)
                times.append(time.perf_counter() - start)
    finally:
        gc.enable()
    return [statistics.median(times) for times in seconds]


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def faster(work: str, seconds: Sequence[float], goal: float | None, note: str = "") -> Row:
    """Return a row in milliseconds. ``seconds``: the times of the baseline and of this code."""
    baseline, ours = seconds
    return Row(work, 1e3 * baseline, 1e3 * ours, baseline / ours, goal, "ms", note)


def check_equal(work: str, baseline: Sequence[float], ours: Sequence[float], tolerance: float) -> None:
    """Exit if a result differs from the baseline by more than ``tolerance``, relative to the baseline."""
    if not all(difference <= tolerance for difference in relative(baseline, ours)):  # NaN fails the comparison, too
        raise SystemExit(f"{work}: the results differ by more than {tolerance}: baseline {baseline}, ours {ours}")


def relative(baseline: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Return how much each result differs from the baseline, relative to the baseline."""
    return [abs(a - b) / max(abs(a), 1e-3) for a, b in zip(baseline, ours, strict=True)]


def report(title: str, rows: Sequence[Row], file: Path | None, **settings: object) -> None:
    """Print the table, and write it to ``file`` with the machine and the settings."""
    facts = {**machine(), **settings}
    print(f"\n{title}\n" + ", ".join(f"{key} {value}" for key, value in facts.items()))
    print(table(rows))
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        content = {"title": title, "machine": facts, "rows": [asdict(row) for row in rows]}
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def table(rows: Sequence[Row]) -> str:
    """Format ``rows`` as a Markdown table."""
    lines = ["| work | baseline | ours | unit | ratio | goal | |", "|---|---:|---:|---|---:|---:|---|"]
    for row in rows:
        baseline, value = (format_number(x) for x in (row.baseline, row.value))
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        goal = "" if row.goal is None else f"{row.goal:g}"
        lines.append(f"| {row.work} | {baseline} | {value} | {row.unit} | {ratio} | {goal} | {row.note} |")
    return "\n".join(lines)


def format_number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.0e}" if 0 < abs(value) < 0.01 else f"{value:.2f}"


def machine() -> dict[str, object]:
    return {
        "cpu": _cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def has_16_bit_arithmetic(device: torch.device) -> bool:
    return device.type == "cuda" or torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")
