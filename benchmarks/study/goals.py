"""The goals of the study and the measured values: one line per goal, computed from results/."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator

from benchmarks.study import sections, speed, very_deep
from benchmarks.study.rows import Row
from benchmarks.study.stored import Stored

NOT_RUN = "not run"
TIMING_ERROR = 0.04  # standard deviation of a ratio over four timings; within this error, a goal is undecided
Line = tuple[str, str, str]  # goal, measured, whether it is met


def goals() -> Iterator[Line]:
    """Yield each goal, the measured value, and whether the goal was met, missed, or not run."""
    non_zero, resnet = sections.ORTHOGONAL, sections.RES20
    yield _accuracy("R-ISONet-20 as published matches ResNet-20 in equal epochs", sections.RISO20, resnet, 0.0)
    yield _accuracy("R-ISONet-20 with non-zero branches matches ResNet-20 in equal epochs", non_zero, resnet, 0.0)
    yield _accuracy("R-ISONet-20 with non-zero branches exceeds ResNet-20 in no more time", non_zero, resnet, 0.0, 1.0)
    yield _accuracy(
        "R-ISONet-20 with the better recipe matches the plain recipe in half the time",
        sections.RECIPE5,
        non_zero,
        0.0,
        0.5,
    )
    yield _accuracy(
        "R-ISONet-20 with the better recipe exceeds the plain recipe by 2 points in no more time",
        sections.RECIPE10,
        non_zero,
        2.0,
        1.0,
    )
    yield _accuracy(
        "R-ISONet-20 matches ResNet-20 in equal epochs, both with the better recipe",
        sections.RECIPE10,
        sections.RES20_RECIPE10,
        0.0,
    )
    yield from _very_deep()
    yield "on GPUs: R-ISONet-56 matches ResNet-56, ISONet-110 is within 2 points of ResNet-110", NOT_RUN, NOT_RUN


def _accuracy(goal: str, row: Row, other: Row, points: float, time: float | None = None) -> Line:
    """Compare ``row`` with ``other``: the goal is ``points`` more, in at most the fraction ``time`` of the minutes."""
    goal = f"{goal} (`{row.config}`, `{other.config}`)"
    runs, others = row.finished(), other.finished()
    if not runs or not others:
        return goal, NOT_RUN, NOT_RUN
    if any(run.diverged for run in runs):
        return goal, "diverged", "missed"
    if any(run.diverged for run in others):
        return goal, "the other row diverged", "met"
    ahead = _mean(runs) - _mean(others)
    measured, met = f"{ahead:+.2f} points, {seeds(len(runs), len(others))}", ahead >= points
    if time is not None:
        ratio = _time_ratio(row, other)
        if ratio is None:
            return goal, measured, "time not measured"
        measured += f", in {ratio:.2f} of the time"
        if met and abs(ratio - time) <= TIMING_ERROR * time:
            return goal, measured, "within the timing error"
        met = met and ratio <= time
    return goal, measured, "met" if met else "missed"


def seeds(one: int, other: int) -> str:
    """Return the numbers of seeds of two means as text."""
    return f"{one} seed{'s' * (one > 1)}" if one == other else f"{one} against {other} seeds"


def _mean(runs: list[Stored]) -> float:
    return statistics.mean(run.top1 for run in runs)


def _time_ratio(row: Row, other: Row) -> float | None:
    """Return the ratio of the times of all epochs, or None if the rows were not timed in one call, under equal load."""
    one, two = (speed.read().get(each.config, {}) for each in (row, other))
    if "call" not in one or one["call"] != two.get("call"):
        return None
    return one["epoch"] * row.cfg.SOLVER.MAX_EPOCHS / (two["epoch"] * other.cfg.SOLVER.MAX_EPOCHS)


def _very_deep() -> Iterator[Line]:
    results = very_deep.read()
    goal = "ISONet-1202 at initialisation: norms within a factor of 10"
    if norms := results.get("norms"):
        factors = [very_deep.spread(norms["SReLU, delta"][key]) for key in ("forward", "backward")]
        measured = f"{factors[0]:.2f} forward, {factors[1]:.2f} backward"
        yield goal, measured, "met" if max(factors) <= 10 else "missed"
    else:
        yield goal, NOT_RUN, NOT_RUN
    goal = "ISONet-1202: a training step at batch 32 fits into 8 GB"
    if memory := results.get("memory"):
        gigabytes = memory["with"]["peak"] / 1024
        yield goal, f"{gigabytes:.2f} GiB", "met" if gigabytes <= 8 else "missed"
    else:
        yield goal, NOT_RUN, NOT_RUN
    goal = f"ISONet-1202: the loss falls steadily over {very_deep.STEPS} steps"
    if steps := results.get("steps"):
        means = very_deep.means(steps["cross_entropy"])
        rises = sum(later >= earlier for earlier, later in itertools.pairwise(means))
        measured = f"{means[0]:.3f} to {means[-1]:.3f}, {rises} of {len(means) - 1} means higher than the previous mean"
        yield goal, measured, "met" if means[-1] < means[0] and rises <= len(means) // 4 else "missed"
    else:
        yield goal, NOT_RUN, NOT_RUN
