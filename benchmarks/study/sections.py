"""The sections of RESULTS.md and their rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.study.rows import Row

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Section:
    """name: of its tables' markers in RESULTS.md."""

    name: str
    rows: Sequence[Row]


ISO20 = Row("ISO20", "ISONet-20 as published", rates=(0.005, 0.01, 0.02), seeds=SEEDS)

SECTIONS = [
    Section(
        "depth20",
        [
            ISO20,
            Row("RISO20", "R-ISONet-20 as published", rates=(0.02, 0.05, 0.1), seeds=SEEDS),
            Row("RISO20-orthogonal", "R-ISONet-20, started at work", rates=(0.05, 0.1, 0.15), seeds=SEEDS),
            Row("RES20", "ResNet-20, batch norm", rates=(0.05, 0.1, 0.2), seeds=SEEDS),
        ],
    ),
    Section(
        "ablation",
        [
            ISO20,
            Row("ISO20-relu", "without SReLU (ReLU, biases)"),
            Row("ISO20-normal", "without the delta initialisation (normal)"),
            Row("ISO20-no-penalty", "without the penalty"),
            Row("ISO20-delta-orthogonal", "delta-orthogonal in place of delta"),
        ],
    ),
]

ROWS = list({row.config: row for section in SECTIONS for row in section.rows}.values())
