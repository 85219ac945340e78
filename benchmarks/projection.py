"""How long would a run of IN1k-RISO50 take on many GPUs? A projection, not a measurement.

python -m benchmarks.projection                      the tables of docs/scaling.md
python -m benchmarks.projection --measure            with the speed of the GPU at hand in place of the assumed one
python -m benchmarks.projection --node-gbs 100       with your network: --help lists what is assumed

Counted: multiply-accumulates of a step and of each process's share of the penalty, and the bytes of gradients that
torch sends. Measured, on CPU cores: images a core decodes. All else is assumed, and printed with the table.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.common import interleave
from benchmarks.step import Case, ours
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
    """What a cluster is taken to be. The defaults are an H100's, of float32 without TF32 and of bf16."""

    tflops: float = 40.0  # 10^12 FLOPs a second that a GPU sustains in float32, of 67 at its peak
    tflops_bf16: float = 200.0  # likewise in bf16, of 989
    gpus_per_node: int = 8
    nvlink_gbs: float = 200.0  # GB/s between the GPUs of a node
    node_gbs: float = 25.0  # GB/s of a node's network
    latency_us: float = 20.0  # of a message between two nodes
    hidden: float = 0.6  # share of a step's computing under which gradients can travel: the backward pass
    cores_per_gpu: int = 8
    image_kb: float = 110.0  # of a JPEG file


@dataclass(frozen=True)
class Counted:
    """flop_image: of a step, forward and backward, for one image. shares: FLOPs of the penalty's costliest share by
    number of processes. gradient_bytes: that a process sends in a step. core: images a second that a core decodes."""

    batch: int
    epochs: int
    base_lr: float
    flop_image: float
    shares: dict[int, float]
    gradient_bytes: int
    core: float


@dataclass(frozen=True)
class Projection:
    """Milliseconds of a step's parts, and what comes of them. sending: what the backward pass does not hide."""

    gpus: int
    computing: float
    penalty: float
    sending: float
    input: float
    minutes: float
    efficiency: float  # of images a second, against as many times one GPU

    @property
    def step(self) -> float:
        return max(self.computing + self.penalty + self.sending, self.input)


def count(gpus: tuple[int, ...] = GPUS) -> Counted:
    """The parts that need no GPU."""
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
    """Bytes of gradients that torch hands to the network in a step, by a look at every bucket."""
    sent = []

    def look(_, bucket):  # type: ignore[no-untyped-def]  # torch takes no annotations that are text
        sent.append(bucket.buffer().numel() * bucket.buffer().element_size())
        answer: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        answer.set_result(bucket.buffer())
        return answer

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        synchronised = World(launch=Launch(0, 1, 0, 1, "", "", 0)).data_parallel(model, torch.device("cpu"))
        synchronised.register_comm_hook(None, look)  # type: ignore[operator]
        synchronised(torch.randn(1, 3, 64, 64)).sum().backward()
    finally:
        dist.destroy_process_group()
    return sum(sent)


def project(gpus: int, counted: Counted, assumed: Assumed, bf16: bool = False) -> Projection:
    """The time of a step and of a run. The penalty is float32 in either case."""
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
    """Milliseconds of summing up the gradients: within nodes, and between them, where each node sends as one."""
    local = min(gpus, assumed.gpus_per_node)
    nodes = -(-gpus // assumed.gpus_per_node)
    within = 2 * (local - 1) / local * counted.gradient_bytes / (assumed.nvlink_gbs * 1e6)
    between = 2 * (nodes - 1) / nodes * counted.gradient_bytes / (assumed.node_gbs * 1e6)
    return within + between + 2 * (nodes - 1).bit_length() * assumed.latency_us / 1e3


def table(counted: Counted, assumed: Assumed, gpus: tuple[int, ...] = GPUS) -> str:
    head = ("GPUs", "global batch", "rate", "computing", "penalty", "all-reduce left", "input", "step", "efficiency")
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
        ("network, forward and backward", f"{counted.flop_image / 1e9:.1f} GFLOP an image", "counted"),
        ("penalty, with gradient", f"{counted.shares[1] / 1e9:.1f} GFLOP a step", "counted"),
        *((f"its costliest share of {n}", f"{share / 1e9:.2f} GFLOP", "counted")
          for n, share in counted.shares.items() if n > 1),
        ("gradients that a process sends", f"{counted.gradient_bytes / 1e6:.1f} MB", "measured at torch's buckets"),
        ("decoding and augmenting", f"{counted.core:.0f} images/s a core", "measured: results/cpu-input.json"),
        ("float32 on a GPU", f"{assumed.tflops:g} TFLOP/s", f"assumed: {rate:,.0f} images/s"),
        ("bf16 on a GPU", f"{assumed.tflops_bf16:g} TFLOP/s", "assumed"),
        (f"between the {assumed.gpus_per_node} GPUs of a node", f"{assumed.nvlink_gbs:g} GB/s", "assumed"),
        ("between nodes", f"{assumed.node_gbs:g} GB/s a node, {assumed.latency_us:g} us a message", "assumed"),
        ("computing that hides the all-reduce", f"{100 * assumed.hidden:g} %", "assumed: the backward pass"),
        ("cores that decode", f"{assumed.cores_per_gpu} a GPU", "assumed"),
        ("bytes read", f"{read:.1f} MB a GPU and step", f"assumed: {assumed.image_kb:g} kB an image"),
    ]  # fmt: skip
    return "\n".join(["| part | | from |", "|---|---:|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def measured(amp: str, batch: int) -> float:
    """10^12 FLOPs a second of a step of the network and its penalty on the device at hand."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    step = ours(Case("IN1k-RISO50", batch, 224, amp, device.type == "cuda", None, 5), device)
    (seconds,) = interleave([step], 5, device)
    flops = count_flops(load_cfg(CONFIG, ["SOLVER.TRAIN_BATCH_SIZE", batch]))
    return 2 * (flops.network_step_macs + flops.penalty_step_macs) / seconds / 1e12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Assumed):
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=type(field.default), default=field.default, help=f"(default: {field.default})")
    parser.add_argument("--measure", action="store_true", help="time a step here for the two speeds")
    args = vars(parser.parse_args())
    if args.pop("measure"):
        batch = 64 if torch.cuda.is_available() else 8
        args |= {"tflops": measured("off", batch), "tflops_bf16": measured("bf16", batch)}
    counted, assumed = count(), Assumed(**args)
    print(parts(counted, assumed), table(counted, assumed), sep="\n\n")


if __name__ == "__main__":
    main()
