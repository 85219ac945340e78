"""Step times against the published formulation and torchvision's ResNet-50, and the penalty's share of a step."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from benchmarks.cases import Case, baseline, make, ours, peak_on_gpu, resnet
from benchmarks.common import Row, faster, interleave, relative, wait_for
from benchmarks.gpu.equality import missing_compiler
from benchmarks.gpu.jobs import NOT_RUN, Job, remark
from isonet.fast_penalty import OrthoPenalty
from isonet.training import TrainStep, build_optimizer
from isonet.training.devices import place, set_precision
from isonet.training.optim import Amp

Variant = Callable[[], object]
COMPILE_SECONDS = 75.0  # for the graphs of a network of 50 layers
SHARE_GOAL = 5.0  # percent of a bf16 step
RESNET_GOAL = 0.95


# The published batch sizes. The goal is of the compiled step in bf16 against the published formulation
RISO50 = Case("IN1k-RISO50", 64, 224, goal=3.0)
ISO56 = Case("cifar10_ISO56", 128, 32, goal=5.0)
OTHERS = (Case("IN1k-RISO18", 128, 224), Case("IN1k-ISO18", 128, 224), ISO56)
TOY = Case("study/RISO20", 4, 32)
TOY_DIGITS = Case("digits_ISO20", 4, 8)


def with_setting(case: Case, amp: str, compiled: bool = False, tf32: bool = True) -> Case:
    """Return the case in another setting, with its goal only if it is compiled."""
    return replace(case, amp=amp, compiled=compiled, tf32=tf32, goal=case.goal if compiled else None)


def timed(variants: list[Variant], device: torch.device, until: float, toy: bool) -> list[float]:
    """Return the median seconds of each variant, interleaved, in at most a third of the time that is left.

    The first calls choose algorithms, compile and record graphs, so they are not timed.
    """
    if toy:
        return interleave(variants, 1, device)
    for _ in range(3):
        for variant in variants:
            variant()
    wait_for(device)
    start = time.perf_counter()
    for variant in variants:
        variant()
    wait_for(device)
    once = time.perf_counter() - start
    return interleave(variants, int(min(max((until - time.monotonic()) / 3 / once, 3), 20)), device)


def step_times(case: Case, device: torch.device, until: float, toy: bool) -> Iterator[Row]:
    """Compare a step with the published formulation, whose convolutions use TF32 if ``case.tf32`` is set."""
    if case.compiled and (reason := missing_compiler(device)):
        yield remark(case.work, f"{NOT_RUN} {reason}")
        return
    set_precision(deterministic=False, tf32=case.tf32)
    variants = [baseline(case, device), ours(case, device)]
    differences = [relative(*(variant() for variant in variants)) for _ in range(3)]  # with the updates in between
    largest = torch.tensor(differences).amax(0)  # NaN if a step has it, unlike Python's max
    note = "cross entropy differs by {:.0e}, penalty by {:.0e}".format(*largest.tolist())
    tolerance = 1e-5 if case.amp == "off" and not case.tf32 else 0.05
    if not (largest <= tolerance).all():
        note = f"fail: above the tolerance of {tolerance}; {note}"
    seconds = timed(list(variants), device, until, toy)
    yield faster(case.work, seconds, case.goal, f"{note}; baseline in {'TF32' if case.tf32 else 'float32'}")


def penalty_share(case: Case, device: torch.device, until: float, toy: bool) -> Iterator[Row]:
    """Time a step with and without the penalty, on one network, and the penalty alone."""
    work = f"penalty's share of a step: {case.work}"
    if case.compiled and (reason := missing_compiler(device)):
        yield remark(work, f"{NOT_RUN} {reason}")
        return
    set_precision(deterministic=False, tf32=True)
    model, images, labels = make(case, device)
    cfg, amp = case.cfg(), Amp(case.amp, device)
    forward = place(model, [device], channels_last=True, compiled=case.compiled)
    images, optimizer = images.contiguous(memory_format=torch.channels_last), build_optimizer(model, cfg)
    steps = [TrainStep(forward, model, optimizer, c, amp=amp) for c in (cfg.ISON.ORTHO_COEFF, 0.0)]
    penalty = OrthoPenalty(model)

    def alone() -> None:
        model.zero_grad()
        penalty().backward()

    variants: list[Variant] = [functools.partial(step, images, labels) for step in steps]
    whole, without, single = timed([*variants, alone], device, until, toy)
    share = 100 * (whole - without) / whole
    note = f"{1e3 * whole:.2f} ms, without it {1e3 * without:.2f} ms; alone {1e3 * single:.2f} ms"
    yield Row(work, None, share, None, SHARE_GOAL if case.config == RISO50.config else None, "%", note)


def against_resnet(case: Case, device: torch.device, until: float, toy: bool) -> Iterator[Row]:
    """Compare images per second and the peak memory of a step with torchvision's ResNet-50 in the same setting."""
    setting = case.work.partition(" ")[2]
    if case.compiled and (reason := missing_compiler(device)):
        yield remark(f"ResNet-50 (torchvision) and R-ISONet-50, {setting}", f"{NOT_RUN} {reason}")
        return
    set_precision(deterministic=False, tf32=True)
    variants: list[Variant] = [resnet(case, device), ours(case, device)]
    theirs, mine = (case.batch / seconds for seconds in timed(variants, device, until, toy))
    work = f"ResNet-50 (torchvision) and {case.config}, {setting}"
    yield Row(work, theirs, mine, mine / theirs, RESNET_GOAL, "images/s")


def memory(case: Case, device: torch.device, _until: float) -> Iterator[Row]:
    """Compare the peak memory of a step: the published formulation, and torchvision's ResNet-50 in 16 bits."""
    plain = replace(case, amp="off", tf32=False)
    for other, kind, name in ((baseline, plain, "the published step"), (resnet, case, "ResNet-50")):
        set_precision(deterministic=False, tf32=kind.tf32)
        work = f"peak memory, {name} and {kind.work}"
        if device.type != "cuda":
            yield remark(work, f"{NOT_RUN} torch counts the memory of GPUs only")
            continue
        theirs, mine = (peak_on_gpu(build, kind, device) for build in (other, ours))
        yield Row(work, theirs, mine, theirs / mine, None, "MiB")


def time_jobs(device: torch.device, toy: bool) -> list[Job]:
    """Return the comparisons with the published formulation: the quick settings of all networks come first."""
    settings = [("off", False, False), ("off", False, True), ("bf16", False, True), ("bf16", True, True)]
    return [
        Job(
            f"step: {case.work}",
            functools.partial(step_times, case, device, toy=toy),
            COMPILE_SECONDS if compiled else 5,
        )
        for amp, compiled, tf32 in settings
        for case in (with_setting(case, amp, compiled, tf32) for case in ((TOY_DIGITS,) if toy else (RISO50, ISO56)))
    ]


def share_jobs(device: torch.device, toy: bool) -> list[Job]:
    """Return the measurements of the penalty's share in bf16."""
    networks = (TOY,) if toy else (RISO50, *OTHERS)
    cases = [*(with_setting(case, "bf16") for case in networks), with_setting(networks[0], "bf16", compiled=True)]
    return [
        Job(
            f"penalty's share of a step: {case.work}",
            functools.partial(penalty_share, case, device, toy=toy),
            COMPILE_SECONDS if case.compiled else 5,
        )
        for case in cases
    ]


def resnet_jobs(device: torch.device, toy: bool) -> list[Job]:
    """Return the comparisons with torchvision's ResNet-50 in bf16."""
    quick, compiled = (with_setting(TOY if toy else RISO50, "bf16", compiled) for compiled in (False, True))
    return [
        Job(f"ResNet-50: {quick.work}", functools.partial(against_resnet, quick, device, toy=toy), 5),
        Job(f"peak memory: {quick.work}", functools.partial(memory, quick, device), 5),
        Job(f"ResNet-50: {compiled.work}", functools.partial(against_resnet, compiled, device, toy=toy), 90),
    ]
