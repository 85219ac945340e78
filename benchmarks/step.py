"""Measure the time and memory of a training step.

python -m benchmarks.step              the published formulation against this code, in float32 and, if supported, bf16
python -m benchmarks.step --resnet     R-ISONet-50 against torchvision's ResNet-50, and the penalty's share of its step
python -m benchmarks.step --profile    the time by operator, of the published formulation and of this code, and by part
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from benchmarks.cases import (
    DEFAULTS,
    ISO18,
    ON_CPU,
    ON_GPU,
    ORDER_GOALS,
    RESNET_ON_CPU,
    RESNET_ON_GPU,
    Case,
    baseline,
    make,
    ours,
    peak_on_gpu,
    resnet,
)
from benchmarks.common import Row, check_equal, faster, has_16_bit_arithmetic, interleave, make_parser, relative, report
from benchmarks.memory import in_new_process, peak
from isonet.fast_penalty import OrthoPenalty
from isonet.profiling import StepProfile


def compare(cases: Sequence[Case], repeats: int, device: torch.device) -> list[Row]:
    """Time the settings ``cases`` of one network, interleaved with the published formulation."""
    variants = [baseline(cases[0], device), *(ours(case, device) for case in cases)]
    differences = [[0.0, 0.0] for _ in cases]
    for number in range(3):  # the later steps include the updates of the earlier steps
        expected = variants[0]()
        for case, variant, differs in zip(cases, variants[1:], differences, strict=True):
            if number and case.every > 1:
                continue
            found = variant()
            compared = slice(1 if case.every > 1 else 2)  # with ORTHO_EVERY, the penalty is of other weights
            check_equal(case.work, expected[compared], found[compared], 1e-5 if case.amp == "off" else 0.05)
            differs[:] = map(max, differs, relative(expected, found))
    published, *seconds = interleave(variants, repeats, device)
    rows = []
    for case, time, differs in zip(cases, seconds, differences, strict=True):
        note = "cross entropy differs by {:.0e}, penalty by {:.0e}".format(*differs)
        note = f"mean of {case.every} steps, one of them with the penalty" if case.every > 1 else note
        rows.append(faster(case.work, [published, time / case.every], case.goal, note))
    return rows


def memory_order(case: Case, repeats: int, device: torch.device) -> Row:
    """Time the default memory order of ``case`` against NCHW, both by this code."""
    variants = [ours(replace(case, channels_last=False), device), ours(case, device)]
    check_equal(case.work, variants[0](), variants[1](), 1e-5)
    work = f"{case.work}, CHANNELS_LAST False against auto"
    return faster(work, interleave(variants, repeats, device), ORDER_GOALS[case.config])


def _peak(build: Callable[[Case, torch.device], Callable[[], object]], case: Case) -> float:
    """Take two steps, and return the peak memory of this process in MiB, without the memory of the imports."""
    before = peak()
    step = build(case, torch.device("cpu"))
    step()
    step()
    return peak() - before


def peak_memory(case: Case, device: torch.device, processes: int) -> Row:
    """Measure the peak memory of a step.

    On a GPU torch counts it. On the CPU it is the median of several processes, because fragmentation varies.
    """
    if device.type == "cuda":
        before, now = (peak_on_gpu(variant, case, device) for variant in (baseline, ours))
    else:
        runs = [
            [in_new_process(_peak, variant, case, method="spawn") for variant in (baseline, ours)]
            for _ in range(processes)
        ]
        before, now = map(statistics.median, zip(*runs, strict=True))
    return Row(
        f"peak memory, {case.work}", before, now, before / now, 1 / 0.8, "MiB", f"{now / before:.2f} of the baseline"
    )


def against_resnet(case: Case, repeats: int, device: torch.device) -> list[Row]:
    """Time both networks with the same fast settings, and the penalty, which replaces the cost of normalisation."""
    seconds = interleave([resnet(case, device), ours(case, device)], repeats, device)
    module = make(case, device)[0].to(memory_format=torch.channels_last)
    penalty = OrthoPenalty(module)

    def penalty_alone() -> None:
        module.zero_grad()
        penalty().backward()

    (alone,) = interleave([penalty_alone], repeats, device)
    note = f"{100 * alone / seconds[1]:.1f} % of the step" + (", goal 5 %" if device.type == "cuda" else "")
    return [
        faster(f"ResNet-50 (torchvision) and R-ISONet-50, {case.work.partition(' ')[2]}", seconds, case.goal),
        Row(f"penalty of {case.config}, part of this step", None, 1e3 * alone, None, None, "ms", note),
    ]


def profile(cases: Sequence[Case], device: torch.device) -> None:
    for case in cases:
        for name, variant in (("the published formulation", baseline), ("this code", ours)):
            step = variant(case, device)
            with StepProfile(3, device) as steps:
                for _ in range(5):
                    step()
                    steps.step()
            print(f"\n{case.work}, {name}, 3 steps\n{steps.table}")


def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--profile", action="store_true", help="print the time by operator and by part instead")
    parser.add_argument("--resnet", action="store_true", help="compare with torchvision's ResNet-50 instead")
    args = parser.parse_args()
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    if args.profile:
        profile([cases[0] for cases in ON_GPU] if on_gpu else DEFAULTS, device)
        return
    if args.resnet:
        case = RESNET_ON_GPU if on_gpu else RESNET_ON_CPU
        rows = against_resnet(case, args.repeats or case.repeats, device)
        report("R-ISONet-50 and ResNet-50", rows, args.json, overrides="none")
        return
    networks = ON_GPU if on_gpu else ON_CPU
    rows = []
    for every in networks:
        cases = [case for case in every if case.amp == "off" or has_16_bit_arithmetic(device)]
        repeats = args.repeats or (min(cases[0].repeats, 5) if args.quick else cases[0].repeats)
        rows += compare(cases, repeats, device)
        for case in every:
            if case not in cases:
                why = "not run: this CPU has no 16-bit arithmetic"
                rows.append(Row(case.work, None, None, None, case.goal, "", why))
        if not on_gpu:
            rows.append(memory_order(every[0], repeats + 2, device))
        print(f"{every[0].config}: done", file=sys.stderr)
    if not (args.quick and on_gpu):
        rows.append(peak_memory(networks[0][-1] if on_gpu else ISO18, device, 1 if args.quick else 3))
    report("training step", rows, args.json, overrides="as named")


if __name__ == "__main__":
    main()
