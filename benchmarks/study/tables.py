"""The tables of RESULTS.md, computed from results/ and written between the markers of the page."""

from __future__ import annotations

import functools
import math
import re
import statistics
from collections.abc import Callable, Iterator, Sequence

from benchmarks.study import goals, pictures, speed, stored, very_deep
from benchmarks.study.rows import Row
from benchmarks.study.sections import DRAWN, SECTIONS
from benchmarks.study.stored import REPO, RESULTS, Stored
from isonet.errors import UserError
from isonet.published import ZOO

PAGE = REPO / "RESULTS.md"
NOT_MEASURED = "not measured yet"
_TABLE = re.compile(r"(<!-- table (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def write() -> None:
    """Write every table of RESULTS.md, its figures, and the figure of README.md."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    if norms := very_deep.read().get("norms"):
        picture = pictures.norms_picture({name: norms[name] for name in very_deep.VARIANTS})
        (RESULTS / "very-deep.png").write_bytes(picture)
        deeper = next(section.rows for section in SECTIONS if section.name == "deeper")
        top1 = {row.title.partition(" (")[0]: [epoch["top1"] for epoch in row.finished()[0].metrics] for row in deeper}
        shown = {"SReLU, delta": "SReLU, delta initialisation", "SReLU, Kaiming": "SReLU, Kaiming initialisation",
                 "ReLU, Kaiming": "ReLU, Kaiming initialisation"}  # fmt: skip
        picture = pictures.vanilla_picture(top1, {title: norms[name]["backward"] for name, title in shown.items()})
        (REPO / "docs" / "vanilla.png").write_bytes(picture)
    times, curves = speed.read(), {}
    for row in DRAWN:
        runs = row.finished()
        if runs and row.config in times:
            curves[row] = [mean_top1(runs, epoch + 1) for epoch in range(min(len(run.metrics) for run in runs))]
    if curves:
        named = {row.title: top1 for row, top1 in curves.items()}
        picture = pictures.curves_picture(named, {row.title: times[row.config]["epoch"] for row in curves})
        (RESULTS / "depth20.png").write_bytes(picture)


def filled(page: str) -> str:
    """Return ``page`` with the current table between each pair of markers. Raise ``UserError`` for an unknown name."""
    if unknown := {marker["name"] for marker in _TABLE.finditer(page)} - TABLES.keys():
        raise UserError(f"{PAGE.name} names unknown tables: {', '.join(sorted(unknown))}; remove their markers")
    return _TABLE.sub(lambda marker: f"{marker[1]}{TABLES[marker['name']]()}\n{marker[3]}", page)


def accuracy_table(rows: Sequence[Row]) -> str:
    """Return a table with one line per row: top-1 after the first, middle and last epoch, number of seeds, minutes."""
    seconds = speed.read()
    lines = [[row.title, f"`{row.config}`", *_accuracy(row, seconds.get(row.config, {}).get("epoch"))] for row in rows]
    head = ["network", "config", "base rate", "epochs", "after 1", "after half", "top-1 (seeds)", "minutes"]
    return markdown(head, lines, left=2)


def _accuracy(row: Row, seconds: float | None) -> list[str]:
    """Return the cells of ``row``. seconds: the time of one epoch, or None if it was not measured."""
    runs, epochs = row.finished(), row.cfg.SOLVER.MAX_EPOCHS
    if not runs:
        return ["not run"] * 6
    head, minutes = [f"{row.rate:g}", str(epochs)], f"{epochs * seconds / 60:.1f}" if seconds else ""
    if diverged := [run for run in runs if run.diverged]:
        return [*head, "", "", f"diverged in epoch {len(diverged[0].metrics) + 1} ({len(diverged)})", ""]
    on_the_way = [mean_top1(runs, epoch) for epoch in (1, (epochs + 1) // 2)]
    return [*head, *(f"{top1:.1f}" for top1 in on_the_way), result(runs), minutes]


def rate_table(rows: Sequence[Row]) -> str:
    """Return a table with one line per row: the top-1 of each learning rate, with the best top-1 in bold."""
    lines = []
    for row in rows:
        runs = {run.rate: stored.read(run.name) for run in row.searched()}
        best = max((run.top1 for run in runs.values() if run and not run.diverged), default=None)
        cells = []
        for rate, run in runs.items():
            top1 = "not run" if run is None else "diverged" if run.diverged else f"{run.top1:.2f}"
            cells.append(f"{rate:g}: **{top1}**" if run and run.top1 == best else f"{rate:g}: {top1}")
        lines.append([row.title, f"`{row.config}`", ", ".join(cells)])
    return markdown(["network", "config", "base rate: top-1 after the last epoch, seed 0"], lines, left=3)


def paper_table() -> str:
    """Return the accuracies that the authors report for their ImageNet networks."""
    accuracies = {(entry.residual, entry.dropout, entry.depth): entry.top1 for entry in ZOO.values()}
    depths = sorted({depth for _, _, depth in accuracies})
    lines = [
        [f"{'R-ISONet' if residual else 'ISONet'}{', dropout' if dropout else ''}",
         *(f"{accuracies[residual, dropout, depth]:.2f}" for depth in depths)]
        for residual in (False, True) for dropout in (False, True)
    ]  # fmt: skip
    return markdown(["ImageNet top-1 of the paper", *(f"depth {depth}" for depth in depths)], lines, left=1)


def norms_table() -> str:
    """Return the largest norm of any activation divided by the smallest norm, at initialisation."""
    norms = very_deep.read().get("norms")
    if not norms:
        return NOT_MEASURED
    lines = []
    for name in very_deep.VARIANTS:
        ratios = [very_deep.spread(norms[name][key]) for key in ("forward", "backward")]
        lines.append([name, *("infinite" if math.isinf(ratio) else f"{ratio:,.3g}" for ratio in ratios)])
    return markdown(["largest norm / smallest", "signal, forward", "gradient, backward"], lines, left=1)


def memory_table() -> str:
    """Return memory and time of a training step at batch 32."""
    memory = very_deep.read().get("memory")
    if not memory:
        return NOT_MEASURED
    lines = []
    for how, title in (("without", "kept"), ("with", "recomputed (`RUNTIME.CHECKPOINT_ACTIVATIONS`)")):
        before, peak, seconds = (memory[how][key] for key in ("before", "peak", "seconds"))
        lines.append([title, f"{before:,.0f}", f"{peak:,.0f}", f"{seconds:.2f}"])
    return markdown(["activations", "MiB before the step", "peak MiB", "seconds per step"], lines, left=1)


def steps_table() -> str:
    """Return means of the losses of the first training steps."""
    losses, size = very_deep.read().get("steps"), very_deep.SHOWN
    if not losses:
        return NOT_MEASURED
    rows = zip(very_deep.means(losses["cross_entropy"]), very_deep.means(losses["penalty"]), strict=True)
    lines = [
        [f"{number * size + 1} to {(number + 1) * size}", f"{loss:.4f}", f"{penalty:.3g}"]
        for number, (loss, penalty) in enumerate(rows)
    ]
    return markdown(["steps", "cross entropy", "penalty"], lines, left=1)


def goals_table() -> str:
    """Return the table of all goals of the study."""
    return markdown(["goal", "measured", ""], [list(line) for line in goals.goals()], left=3)


def mean_top1(runs: Sequence[Stored], epoch: int) -> float:
    return statistics.mean(run.metrics[epoch - 1]["top1"] for run in runs)


def result(runs: Sequence[Stored]) -> str:
    """Return mean and standard deviation over the seeds after the last epoch as text."""
    top1 = [run.top1 for run in runs]
    spread = f" ± {statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
    return f"{statistics.mean(top1):.2f}{spread} ({len(top1)})"


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    """Return a Markdown table. The first ``left`` columns are aligned to the left, the others to the right."""
    rule = ["---" if column < left else "---:" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *lines])


def _tables() -> Iterator[tuple[str, Callable[[], str]]]:
    shown: set[str] = set()  # rates are shown once, in the first section that has the row
    for section in SECTIONS:
        yield section.name, functools.partial(accuracy_table, section.rows)
        searched = [row for row in section.rows if row.rates]
        if new := {row.config for row in searched} - shown:
            yield f"{section.name}-rates", functools.partial(rate_table, searched)
            shown |= new

    yield "goals", goals_table
    yield "paper", paper_table
    yield "very-deep-norms", norms_table
    yield "very-deep-memory", memory_table
    yield "very-deep-steps", steps_table


TABLES = dict(_tables())
