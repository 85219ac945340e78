"""The sections of RESULTS.md and their rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.study.rows import Row

SEEDS = (0, 1, 2)
PARTS_RATES = (0.01, 0.02)  # for ISONet-20 without one of its parts, so that none runs at another network's best rate


@dataclass(frozen=True)
class Section:
    """A section of RESULTS.md. ``name`` is the name of its markers."""

    name: str
    rows: Sequence[Row]


ISO20 = Row("ISO20", "ISONet-20 as published", rates=(0.005, 0.01, 0.02, 0.05))
RISO20 = Row("RISO20", "R-ISONet-20 as published", rates=(0.02, 0.05, 0.1, 0.2, 0.4))
ORTHOGONAL = Row("RISO20-orthogonal", "R-ISONet-20, non-zero branches", rates=(0.05, 0.1, 0.15), seeds=SEEDS)
RES20 = Row("RES20", "ResNet-20, batch norm", rates=(0.05, 0.1, 0.2, 0.4, 0.8), seeds=SEEDS)
RECIPE5 = Row("RISO20-recipe5", "R-ISONet-20, the better recipe, half the epochs", seeds=SEEDS)
RECIPE10 = Row("RISO20-recipe10", "R-ISONet-20, the better recipe")
RES20_RECIPE10 = Row("RES20-recipe10", "ResNet-20, the better recipe", rates=(0.1, 0.2))

SECTIONS = [
    Section(
        "depth20",
        [
            ISO20,
            Row("ISO20-orthogonal", "ISONet-20, orthogonal convolutions, strong stem"),
            RISO20,
            ORTHOGONAL,
            RES20,
        ],
    ),
    Section(
        "ablation",
        [
            ISO20,
            Row("ISO20-relu", "without SReLU (ReLU and biases)", rates=PARTS_RATES),
            Row("ISO20-normal", "without the delta initialisation (normal)", rates=PARTS_RATES),
            Row("ISO20-no-penalty", "without the penalty", rates=PARTS_RATES),
            Row("ISO20-delta-orthogonal", "delta-orthogonal instead of delta", rates=PARTS_RATES),
        ],
    ),
    Section(
        "deeper",
        [
            Row("ISO56", "ISONet-56 as published"),
            Row("ISO56-relu", "without SReLU (ReLU and biases)"),
            Row("ISO56-normal", "without the delta initialisation (normal)"),
            Row("ISO56-no-penalty", "without the penalty"),
        ],
    ),
    Section(
        "precision",
        [
            ORTHOGONAL,
            Row("RISO20-orthogonal-float32", "the same in float32"),
            Row("RISO20-float32", "R-ISONet-20 as published, in float32 at 0.05"),
        ],
    ),
    Section(
        "start",
        [
            ORTHOGONAL,
            Row("RISO20-orthogonal-delta", "the identity instead of orthogonal convolutions"),
            Row("RISO20-orthogonal-stem1", "`STEM_GAIN` 1"),
            Row("RISO20-orthogonal-multiplier0", "`RES_MULTIPLIER` 0"),
            RISO20,
        ],
    ),
    Section(
        "recipe",
        [
            RECIPE5,
            RECIPE10,
            RES20_RECIPE10,
            Row("ISO20-recipe10", "ISONet-20, the better recipe"),
        ],
    ),
    Section(
        "recipe-ablation",
        [
            RECIPE5,
            Row("RISO20-recipe5-steps", "steps instead of the linear rise and fall"),
            Row("RISO20-recipe5-batch128", "batch 128 instead of 64"),
            Row("RISO20-recipe5-momentum", "plain momentum instead of Nesterov's"),
            Row("RISO20-recipe5-padding4", "crops from 40 pixels instead of 36"),
        ],
    ),
]

# Rows in the figure of accuracy against epochs and minutes
DRAWN = [row for section in SECTIONS if section.name in ("depth20", "recipe") for row in section.rows]
ROWS = list({row.config: row for section in SECTIONS for row in section.rows}.values())
