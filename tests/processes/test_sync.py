"""Gradients are reduced in buckets during the backward pass, also with compilation and autocast."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from conftest import TINY
from isonet import build_model, load_cfg
from isonet.training import TrainStep, build_optimizer
from isonet.training.devices import place
from isonet.training.distributed import connected
from isonet.training.optim import Amp
from launch import forked

CPU = torch.device("cpu")
BUCKET_MB = 0.05
CASES = {
    "plain": {},
    "bf16": {"amp": "bf16"},
    "compiled, bf16": {"compiled": "inductor", "amp": "bf16"},
    "compiled, bf16, without generating code": {"compiled": "aot_eager", "amp": "bf16"},
    "three pieces": {"accumulate": 3},
    "channels last": {"channels_last": True},
    "three pieces, recomputed": {"accumulate": 3, "recompute": True},
}


def events(rank, compiled="", amp="off", accumulate=1, channels_last=False, recompute=False):
    """Return the events of three steps: the size of each bucket that is sent, and "stem" when it has its gradient."""
    config = load_cfg(None, [*TINY, "ISON.DEPTH", 8, "RUNTIME.CHECKPOINT_ACTIVATIONS", recompute])
    torch.distributed._DEFAULT_FIRST_BUCKET_BYTES = int(BUCKET_MB * 2**20)  # the default, 1 MiB, exceeds this network
    seen: list[object] = []

    def hook(state, bucket):
        seen.append(bucket.buffer().numel())
        return allreduce_hook(state, bucket)

    with connected(None) as (world, _):
        torch.manual_seed(rank)  # DDP uses the weights of rank 0
        model = build_model(config)
        placed = place(model, [CPU], channels_last, compiled == "inductor")
        if compiled == "aot_eager":
            placed = torch.compile(placed, fullgraph=True, dynamic=False, backend=compiled)
        forward = world.data_parallel(placed, CPU, BUCKET_MB)
        forward.register_comm_hook(None, hook)
        model.stem.conv.weight.register_post_accumulate_grad_hook(lambda _: seen.append("stem"))
        step = TrainStep(
            forward, model, build_optimizer(model, config), 1e-3, amp=Amp(amp, CPU), world=world, accumulate=accumulate
        )
        generator = torch.Generator().manual_seed(1)
        steps = []
        for _ in range(3):
            images = torch.randn(12, 3, 8, 8, generator=generator)
            labels = torch.randint(10, (12,), generator=generator)
            seen.clear()
            step(images[world.share.of(12)], labels[world.share.of(12)], 12)
            steps.append(list(seen))
        return steps, {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("case", [
    pytest.param(case, marks=pytest.mark.torture) if case == "compiled, bf16" else case for case in CASES
])  # fmt: skip
def test_buckets_are_sent_before_the_backward_pass_ends(tmp_path, case):
    options = CASES[case]
    (steps, weights), (other_steps, other_weights) = forked(2, events, tmp_path, *options_of(options))
    size = sum(p.numel() for p in build_model(load_cfg(None, [*TINY, "ISON.DEPTH", 8])).parameters())
    pieces = options.get("accumulate", 1)
    for seen in (*steps[1:], *other_steps[1:]):  # in the first step torch records the order of the gradients
        buckets = [event for event in seen if event != "stem"]
        assert sum(buckets) == size  # each gradient is sent once a step, not once a piece
        assert len(buckets) >= 4
        first, last_stem = seen.index(buckets[0]), len(seen) - 1 - seen[::-1].index("stem")
        assert first < last_stem  # the first is sent before the stem has its gradient
        assert seen.count("stem") == pieces
        assert "stem" not in seen[first:last_stem]
    for name, value in weights.items():
        assert torch.equal(value, other_weights[name])


def options_of(options):
    return [options.get(name, default) for name, default in
            (("compiled", ""), ("amp", "off"), ("accumulate", 1), ("channels_last", False),
             ("recompute", False))]  # fmt: skip
