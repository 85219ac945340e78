"""What the study was to reach, and how far it came: a line for each goal, computed from results/."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator

from benchmarks.study import sections, speed, very_deep
from benchmarks.study.rows import Row

NOT_RUN = "not run"
Line = tuple[str, str, str]  # goal, measured, whether it is met


def goals() -> Iterator[Line]:
    """Each goal, what was measured, and "met", "missed" or "not run"."""
    plain, resnet = sections.ORTHOGONAL, sections.RES20
    yield _accuracy("R-ISONet-20 level with ResNet-20 in equal epochs", plain, resnet, 0.0)
    yield _accuracy("and ahead of it in no more time", plain, resnet, 0.0, 1.0)
    yield _accuracy(
        "the better recipe: the plain ten epochs' accuracy in half their time", sections.RECIPE5, plain, 0.0, 0.5
    )
    yield _accuracy("and 2 points more in no more time", sections.RECIPE10, plain, 2.0, 1.0)
    yield from _very_deep()
    yield "R-ISONet-56 level with ResNet-56, ISONet-110 within 2 points of ResNet-110", NOT_RUN, NOT_RUN


def _accuracy(goal: str, row: Row, other: Row, points: float, time: float | None = None) -> Line:
    """Whether ``row`` is so many ``points`` ahead of ``other``, in at most ``time`` of its minutes."""
    top1, other_top1 = _mean(row), _mean(other)
    if top1 is None or other_top1 is None:
        return goal, NOT_RUN, NOT_RUN
    ahead = top1 - other_top1
    measured, met = f"{ahead:+.2f} points", ahead >= points
    if time is not None:
        minutes, other_minutes = _minutes(row), _minutes(other)
        if not minutes or not other_minutes:
            return goal, measured, "time not measured"
        measured += f" in {minutes / other_minutes:.2f} of the time"
        met = met and minutes <= 1.005 * time * other_minutes  # a hundredth is within what timings repeat to
    return goal, measured, "met" if met else "missed"


def _mean(row: Row) -> float | None:
    found = [run.top1 for run in row.found()]
    return statistics.mean(found) if found else None


def _minutes(row: Row) -> float | None:
    found = speed.read().get(row.config)
    return found["epoch"] * row.cfg.SOLVER.MAX_EPOCHS / 60 if found else None


def _very_deep() -> Iterator[Line]:
    found = very_deep.read()
    norms = found["norms"]["SReLU, delta"]
    factors = [max(norms[key]) / min(norms[key]) for key in ("forward", "backward")]
    yield (
        "ISONet-1202 at its start: norms within a factor of 10",
        f"{factors[0]:.2f} forward, {factors[1]:.2f} backward",
        "met" if max(factors) <= 10 else "missed",
    )
    goal = "a training step of it at batch 32 within 8 GB"
    if memory := found.get("memory"):
        gigabytes = memory["with"]["peak"] / 1024
        yield goal, f"{gigabytes:.2f} GiB", "met" if gigabytes <= 8 else "missed"
    else:
        yield goal, NOT_RUN, NOT_RUN
    goal = f"its loss falls steadily over {very_deep.STEPS} steps"
    if steps := found.get("steps"):
        means = very_deep.means(steps["cross_entropy"])
        rises = sum(later >= earlier for earlier, later in itertools.pairwise(means))
        measured = f"{means[0]:.3f} to {means[-1]:.3f}, {rises} of {len(means) - 1} means above the one before"
        yield goal, measured, "met" if means[-1] < means[0] and rises <= len(means) // 4 else "missed"
    else:
        yield goal, NOT_RUN, NOT_RUN
