"""Measure the time and memory of a training step.

python -m benchmarks.step              the published formulation against this code, in float32 and, if supported, bf16
python -m benchmarks.step --resnet     R-ISONet-50 against torchvision's ResNet-50, and the penalty's share of its step
python -m benchmarks.step --profile    the time by operator, of the published formulation and of this code
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision

from benchmarks.baseline import baseline_step, published_form_
from benchmarks.common import Row, check_equal, faster, has_16_bit_arithmetic, interleave, make_parser, report
from isonet import build_model, load_cfg
from isonet.fast_penalty import OrthoPenalty
from isonet.training import TrainStep, build_optimizer
from isonet.training.devices import place
from isonet.training.optim import Amp
from isonet.training.report import StepProfile

CONFIGS = Path(__file__).parent.parent / "configs"


@dataclass(frozen=True)
class Case:
    config: str
    batch: int
    size: int
    amp: str
    compiled: bool
    goal: float | None
    repeats: int

    @property
    def work(self) -> str:
        kind = "float32" if self.amp == "off" else self.amp
        return f"{self.config} batch {self.batch}, {kind}{', compiled' if self.compiled else ''}"


ON_CPU = [
    Case("IN1k-ISO18", 16, 224, "off", False, 2.0, 3),
    Case("IN1k-ISO18", 16, 224, "bf16", False, 3.0, 3),
    Case("cifar10_ISO56", 128, 32, "off", False, 1.3, 9),
    Case("cifar10_ISO56", 128, 32, "off", True, 1.3, 9),
    Case("cifar10_ISO56", 128, 32, "bf16", False, 1.6, 9),
]
ON_GPU = [Case("IN1k-RISO50", 64, 224, "bf16", True, 3.0, 20), Case("cifar10_ISO56", 128, 32, "bf16", True, 5.0, 50)]
RESNET_ON_CPU = Case("IN1k-RISO50", 16, 224, "off", False, None, 3)
RESNET_ON_GPU = Case("IN1k-RISO50", 64, 224, "bf16", True, 1.0, 20)


def baseline(case: Case, device: torch.device) -> Callable[[], tuple[float, ...]]:
    """Return a function that takes a published step on a fixed batch and returns cross entropy and penalty."""
    model, optimizer, (images, labels), coeff = make(case, device)
    published_form_(model)
    return lambda: baseline_step(model, optimizer, images, labels, coeff)[:2]


def ours(case: Case, device: torch.device) -> Callable[[], tuple[float, ...]]:
    model, optimizer, (images, labels), coeff = make(case, device)
    forward = place(model, [device], channels_last=True, compiled=case.compiled)
    step = TrainStep(forward, model, optimizer, coeff, amp=Amp(case.amp, device))
    images = images.contiguous(memory_format=torch.channels_last)

    def run() -> tuple[float, ...]:
        out = step(images, labels)
        return out.cross_entropy.item(), out.penalty.item()

    return run


def make(case: Case, device: torch.device) -> tuple:
    """Return network, optimizer, batch and coefficient of the penalty. Both variants use the same ones."""
    torch.manual_seed(0)
    cfg = load_cfg(CONFIGS / f"{case.config}.yaml", ["ISON.DROPOUT", False])
    model = build_model(cfg).to(device).train()
    images = torch.randn(case.batch, 3, case.size, case.size, device=device)
    labels = torch.randint(cfg.DATASET.NUM_CLASSES, (case.batch,), device=device)
    return model, build_optimizer(model, cfg), (images, labels), cfg.ISON.ORTHO_COEFF


def compare(case: Case, repeats: int, device: torch.device) -> Row:
    variants = [baseline(case, device), ours(case, device)]
    differences = [0.0, 0.0]
    for _ in range(3):  # the later steps include the updates of the earlier steps
        losses = variants[0](), variants[1]()
        check_equal(case.work, *losses, 1e-5 if case.amp == "off" else 0.05)
        now = (abs(a - b) / max(abs(a), 1e-3) for a, b in zip(*losses, strict=True))
        differences = list(map(max, differences, now))
    note = "cross entropy differs by {:.0e}, penalty by {:.0e}".format(*differences)
    return faster(case.work, interleave(variants, repeats, device), case.goal, note)


def _peak(variant: str, case: Case, pipe: multiprocessing.connection.Connection) -> None:
    """Take two steps, and send the peak memory of this process in MiB, without the memory of the imports."""
    device = torch.device("cpu")
    before = _high_water()
    step = {"baseline": baseline, "ours": ours}[variant](case, device)
    step()
    step()
    pipe.send(_high_water() - before)


def _high_water() -> float:
    """Return the peak resident memory of this process in MiB, as reported by Linux."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _peak_of_process(variant: str, case: Case) -> float:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_peak, args=(variant, case, sender))
    process.start()
    sender.close()  # so that recv() raises if the process fails
    peak = receiver.recv()
    process.join()
    return peak


def _peak_on_gpu(variant: str, case: Case, device: torch.device) -> float:
    step = {"baseline": baseline, "ours": ours}[variant](case, device)
    step()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_allocated(device) / 2**20


def peak_memory(case: Case, device: torch.device) -> Row:
    """Measure the peak memory of a step.

    On a GPU torch counts it. On the CPU it is the median of three processes, because fragmentation varies.
    """
    if device.type == "cuda":
        before, now = (_peak_on_gpu(variant, case, device) for variant in ("baseline", "ours"))
    else:
        runs = [[_peak_of_process(variant, case) for variant in ("baseline", "ours")] for _ in range(3)]
        before, now = map(statistics.median, zip(*runs, strict=True))
    return Row(
        f"peak memory, {case.work}", before, now, before / now, 1 / 0.8, "MiB", f"{now / before:.2f} of the baseline"
    )


def resnet(case: Case, device: torch.device) -> Callable[[], float]:
    """Return a function that takes a step of torchvision's ResNet-50, set up as ``case``, and returns the loss."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50().train()
    forward = place(model, [device], channels_last=True, compiled=case.compiled)
    optimizer = torch.optim.SGD(model.parameters(), 0.025, momentum=0.9, weight_decay=1e-4, fused=True)
    step = TrainStep(forward, model, optimizer, 0.0, amp=Amp(case.amp, device))
    images = torch.randn(case.batch, 3, case.size, case.size, device=device).contiguous(
        memory_format=torch.channels_last
    )
    labels = torch.randint(1000, (case.batch,), device=device)
    return lambda: step(images, labels).cross_entropy.item()


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


def profile(cases: list[Case], device: torch.device) -> None:
    for case in cases:
        for name, variant in (("before", baseline), ("after", ours)):
            step = variant(case, device)
            with StepProfile(3, device) as steps:
                for _ in range(5):
                    step()
                    steps.step()
            print(f"\n{case.work}, {name}, 3 steps\n{steps.table}")


def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--profile", action="store_true", help="print the time by operator instead")
    parser.add_argument("--resnet", action="store_true", help="compare with torchvision's ResNet-50 instead")
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.profile:
        profile(ON_GPU if device.type == "cuda" else [ON_CPU[0], ON_CPU[2]], device)
        return
    if args.resnet:
        case = RESNET_ON_GPU if device.type == "cuda" else RESNET_ON_CPU
        rows = against_resnet(case, args.repeats or case.repeats, device)
        report("R-ISONet-50 and ResNet-50", rows, args.json, overrides="RUNTIME.CHANNELS_LAST True")
        return
    cases = ON_GPU if device.type == "cuda" else ON_CPU
    rows = []
    for case in cases:
        if case.amp != "off" and not has_16_bit_arithmetic(device):
            rows.append(Row(case.work, None, None, None, case.goal, "", "not run: this CPU has no 16-bit arithmetic"))
            continue
        rows.append(compare(case, args.repeats or (min(case.repeats, 5) if args.quick else case.repeats), device))
        print(f"{case.work}: {rows[-1].ratio:.2f}", file=sys.stderr)
    if not args.quick or device.type == "cpu":
        rows.append(peak_memory(cases[0], device))
    report("training step", rows, args.json, overrides="RUNTIME.CHANNELS_LAST True")


if __name__ == "__main__":
    main()
