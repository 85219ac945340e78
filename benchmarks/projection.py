"""Project the time of a run of IN1k-RISO50 on many GPUs. This is a projection, not a measurement.

python -m benchmarks.projection                      print the tables of docs/scaling.md
python -m benchmarks.projection --measure            use the speed of this machine's GPU instead of the assumed speed
python -m benchmarks.projection --node-gbs 100       use the bandwidth of your network; --help lists all assumptions

Multiply-accumulates of a step and of each rank's share of the penalty are counted, and so are the bytes of gradients
that torch sends. The images that a CPU core decodes per second are measured. Everything else is assumed, and printed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.cases import Case, ours
from benchmarks.common import interleave
from benchmarks.tables import RESULTS
from isonet import build_model, load_cfg
from isonet.convs import shape_of
from isonet.fast_penalty.gram import Grams
from isonet.fast_penalty.plan import deal_out
from isonet.launch import Launch
from isonet.ortho import penalised_convs
from isonet.tools.flops import count_flops
from isonet.training.distributed import World

CONFIG = Path(__file__).parent.parent / "configs" / "IN1k-RISO50.yaml"
IMAGES, VAL_IMAGES = 1_281_167, 50_000
GPUS = (8, 64, 512)
INPUT_ROW = "ImageNet training images, DECODER torch"


@dataclass(frozen=True)
class Assumed:
    """Assumptions about a cluster. The default speeds are for an H100, in float32 without TF32 and in bf16."""

    tflops: float = 40.0  # 10^12 FLOPs per second that a GPU sustains in float32; its peak is 67
    tflops_bf16: float = 200.0  # 10^12 FLOPs per second in bf16; its peak is 989
    gpus_per_node: int = 8
    nvlink_gbs: float = 200.0  # GB/s between the GPUs of a node
    node_gbs: float = 25.0  # GB/s of the network of a node
    latency_us: float = 20.0  # latency of a message between two nodes
    hidden: float = 0.6  # share of the computation that overlaps with communication: the backward pass
    cores_per_gpu: int = 8
    image_kb: float = 110.0  # size of a JPEG file


@dataclass(frozen=True)
class Counted:
    """Counted and measured quantities.

    ``flop_image`` is the FLOPs of a step per image, forward and backward. ``shares`` maps the number of processes to
    the FLOPs of the costliest share of the penalty. A process sends ``gradient_bytes`` per step, and a CPU core
    decodes ``core`` images per second.
    """

    batch: int
    epochs: int
    base_lr: float
    flop_image: float
    shares: dict[int, float]
    gradient_bytes: int
    core: float


@dataclass(frozen=True)
class Projection:
    """The parts of a step in milliseconds. ``sending`` is the communication that the backward pass does not hide."""

    gpus: int
    computing: float
    penalty: float
    sending: float
    input: float
    minutes: float
    efficiency: float  # images per second of one GPU, relative to a GPU that works alone

    @property
    def step(self) -> float:
        return max(self.computing + self.penalty + self.sending, self.input)


def count(gpus: tuple[int, ...] = GPUS) -> Counted:
    """Count the quantities that need no GPU."""
    cfg = load_cfg(CONFIG)
    model, flops = build_model(cfg), count_flops(cfg)
    convs = list(penalised_convs(model))
    total = sum(Grams(shape_of(conv)).cost() for _, conv in convs)
    shares = {}
    for parts in (1, *gpus):
        costliest = max(sum(Grams(shape_of(conv)).cost() for _, conv in part) for part in deal_out(convs, parts))
        shares[parts] = 2 * flops.penalty_step_macs * costliest / total
    rows = json.loads((RESULTS / "cpu-input.json").read_text(encoding="utf-8"))["rows"]
    return Counted(
        flops.batch_size, cfg.SOLVER.MAX_EPOCHS, cfg.SOLVER.BASE_LR, 2 * flops.network_step_macs / flops.batch_size,
        shares, sent_bytes(model), next(row["value"] for row in rows if row["work"] == INPUT_ROW),
    )  # fmt: skip


def sent_bytes(model: nn.Module) -> int:
    """Return the bytes of gradients that torch all-reduces in a step. A communication hook counts them per bucket."""
    sent = []

    def look(_, bucket):  # type: ignore[no-untyped-def]  # torch rejects annotations that are strings
        sent.append(bucket.buffer().numel() * bucket.buffer().element_size())
        answer: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        answer.set_result(bucket.buffer())
        return answer

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        synchronised = World(launch=Launch(0, 1, 0, 1, "", "")).data_parallel(model, torch.device("cpu"))
        synchronised.register_comm_hook(None, look)  # type: ignore[operator]
        synchronised(torch.randn(1, 3, 64, 64)).sum().backward()
    finally:
        dist.destroy_process_group()
    return sum(sent)


def project(gpus: int, counted: Counted, assumed: Assumed, bf16: bool = False) -> Projection:
    """Project the time of a step and of a run. The penalty is always float32."""
    computing = counted.batch * counted.flop_image / ((assumed.tflops_bf16 if bf16 else assumed.tflops) * 1e9)
    penalty = counted.shares[gpus] / (assumed.tflops * 1e9)
    input_ = 1e3 * counted.batch / (assumed.cores_per_gpu * counted.core)
    sending = max(0.0, _all_reduce(gpus, counted, assumed) - assumed.hidden * computing)
    step = max(computing + penalty + sending, input_)
    alone = max(computing + counted.shares[1] / (assumed.tflops * 1e9), input_)
    steps = IMAGES // (counted.batch * gpus)  # SOLVER.DROP_LAST
    validating = max(VAL_IMAGES / gpus / counted.batch * computing / 3, VAL_IMAGES / gpus / counted.batch * input_)
    minutes = counted.epochs * (steps * step + validating) / 6e4
    return Projection(gpus, computing, penalty, sending, input_, minutes, alone / step)


def _all_reduce(gpus: int, counted: Counted, assumed: Assumed) -> float:
    """Return the milliseconds of the all-reduce of the gradients: within nodes, then between nodes."""
    local = min(gpus, assumed.gpus_per_node)
    nodes = -(-gpus // assumed.gpus_per_node)
    within = 2 * (local - 1) / local * counted.gradient_bytes / (assumed.nvlink_gbs * 1e6)
    between = 2 * (nodes - 1) / nodes * counted.gradient_bytes / (assumed.node_gbs * 1e6)
    return within + between + 2 * (nodes - 1).bit_length() * assumed.latency_us / 1e3


def table(counted: Counted, assumed: Assumed, gpus: tuple[int, ...] = GPUS) -> str:
    head = ("GPUs", "global batch", "rate", "computing", "penalty", "exposed all-reduce", "input", "step", "efficiency")
    lines = [f"| {' | '.join(head)} | {counted.epochs} epochs |", "|---|" + "---:|" * len(head)]
    for bf16 in (False, True):
        for number in gpus:
            p = project(number, counted, assumed, bf16)
            cells = (
                f"{number}, {'bf16' if bf16 else 'float32'}", f"{counted.batch * number:,}",
                f"{counted.base_lr * number:g}", f"{p.computing:.1f} ms", f"{p.penalty:.2f} ms", f"{p.sending:.1f} ms",
                f"{p.input:.1f} ms", f"{p.step:.1f} ms", f"{100 * p.efficiency:.0f} %", f"{p.minutes:,.0f} min",
            )  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parts(counted: Counted, assumed: Assumed) -> str:
    rate = 1e3 / project(8, counted, assumed).computing * counted.batch
    read = counted.batch * assumed.image_kb / 1e3
    rows = [
        ("network, forward and backward", f"{counted.flop_image / 1e9:.1f} GFLOP per image", "counted"),
        ("penalty, with gradient", f"{counted.shares[1] / 1e9:.1f} GFLOP per step", "counted"),
        *((f"costliest share of the penalty, {n} processes", f"{share / 1e9:.2f} GFLOP", "counted")
          for n, share in counted.shares.items() if n > 1),
        ("gradients sent per process", f"{counted.gradient_bytes / 1e6:.1f} MB", "measured in torch's buckets"),
        ("decoding and augmenting", f"{counted.core:.0f} images/s per core", "measured: results/cpu-input.json"),
        ("float32 on a GPU", f"{assumed.tflops:g} TFLOP/s", f"assumed: {rate:,.0f} images/s"),
        ("bf16 on a GPU", f"{assumed.tflops_bf16:g} TFLOP/s", "assumed"),
        (f"between the {assumed.gpus_per_node} GPUs of a node", f"{assumed.nvlink_gbs:g} GB/s", "assumed"),
        ("between nodes", f"{assumed.node_gbs:g} GB/s per node, {assumed.latency_us:g} us per message", "assumed"),
        ("share of computing that overlaps", f"{100 * assumed.hidden:g} %", "assumed: the backward pass"),
        ("cores that decode", f"{assumed.cores_per_gpu} per GPU", "assumed"),
        ("bytes read", f"{read:.1f} MB per GPU and step", f"assumed: {assumed.image_kb:g} kB per image"),
    ]  # fmt: skip
    return "\n".join(["| part | | from |", "|---|---:|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def measured(amp: str, batch: int) -> float:
    """Return 10^12 FLOPs per second of a step of the network and its penalty on this machine's device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    step = ours(Case("IN1k-RISO50", batch, 224, amp, compiled=device.type == "cuda"), device)
    (seconds,) = interleave([step], 5, device)
    flops = count_flops(load_cfg(CONFIG, ["SOLVER.TRAIN_BATCH_SIZE", batch]))
    return 2 * (flops.network_step_macs + flops.penalty_step_macs) / seconds / 1e12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Assumed):
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=type(field.default), default=field.default, help=f"(default: {field.default})")
    parser.add_argument("--measure", action="store_true", help="measure both speeds by timing a step on this machine")
    args = vars(parser.parse_args())
    if args.pop("measure"):
        batch = 64 if torch.cuda.is_available() else 8
        args |= {"tflops": measured("off", batch), "tflops_bf16": measured("bf16", batch)}
    counted, assumed = count(), Assumed(**args)
    print(parts(counted, assumed), table(counted, assumed), sep="\n\n")


if __name__ == "__main__":
    main()
