"""Each update is momentum SGD in closed form, independent of the source of the gradient.

On a CPU, ``torch.optim.SGD(fused=True)`` assumes that a gradient has the memory format of its parameter. A contiguous
gradient of a channels_last parameter gives wrong weights, without an error (torch 2.11 to 2.15). Therefore every code
path must pass gradients and momentum in the parameter's memory format.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from conftest import TINY
from isonet import OrthoPenalty, build_model, load_cfg
from isonet.files.run_folder import LATEST
from isonet.training import TrainStep, build_optimizer
from isonet.training.run import run_training
from launch import forked

NHWC = ["RUNTIME.CHANNELS_LAST", True, "SOLVER.WEIGHT_DECAY", 0.01]

pytestmark = pytest.mark.usefixtures("no_pictures")


class Checked:
    """Recomputes the update of every parameter in every step, and counts the updates."""

    def __init__(self) -> None:
        self.channels_last = self.others = 0

    def before(self, optimizer, *_):
        self.states = [
            (p, p.detach().clone(), p.grad.clone(), self._momentum(optimizer, p), dict(group))
            for group in optimizer.param_groups
            for p in group["params"]
        ]

    def after(self, optimizer, *_):
        for p, weight, grad, momentum, group in self.states:
            step = grad + group["weight_decay"] * weight
            if momentum is not None:
                step += group["momentum"] * momentum
            torch.testing.assert_close(p.detach(), weight - group["lr"] * step, rtol=1e-5, atol=1e-7)
            spread = p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
            self.channels_last += spread
            self.others += not spread

    @staticmethod
    def _momentum(optimizer, p: Tensor) -> Tensor | None:
        buffer = optimizer.state.get(p, {}).get("momentum_buffer")
        return None if buffer is None else buffer.clone()


@contextlib.contextmanager
def checked_updates():
    checked = Checked()
    hooks = [register_optimizer_step_pre_hook(checked.before), register_optimizer_step_post_hook(checked.after)]
    try:
        yield checked
    finally:
        for hook in hooks:
            hook.remove()
    assert checked.channels_last > 20
    assert checked.others > 20


def cfg(tmp_path, *opts):
    return load_cfg(None, [*TINY, *NHWC, "SOLVER.TRAIN_BATCH_SIZE", 200, "OUTPUT_DIR", str(tmp_path), *opts])


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_the_check_detects_a_gradient_in_another_memory_format(memory):
    """Show that the tests below can fail."""
    weight = nn.Parameter(torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last))
    weight.grad = torch.randn(4, 3, 2, 2).contiguous(memory_format=memory)
    optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9, fused=True)
    checked = Checked()
    checked.before(optimizer)
    optimizer.step()
    if memory is torch.contiguous_format:
        with pytest.raises(AssertionError, match="not close"):
            checked.after(optimizer)
    else:
        checked.after(optimizer)


@pytest.mark.parametrize(
    "opts",
    [
        [],
        ["SOLVER.ACCUMULATE", 2],
        ["RUNTIME.AMP", "bf16"],
        ["ISON.HAS_ST", True, "ISON.HAS_RES_MULTIPLIER", True, "ISON.RES_MULTIPLIER", 0.5],
        ["ISON.ORTHO_STRIDED", "operator"],
        ["RUNTIME.CHECKPOINT_ACTIVATIONS", True],
        ["MODEL.FREEZE", ["s1"]],
    ],
    ids=lambda opts: opts[0] if opts else "plain",
)
def test_updates_of_a_run(tmp_path, opts):
    with checked_updates():
        run_training(cfg(tmp_path, *opts), "run")


@pytest.mark.parametrize("before", [False, True])
def test_updates_after_a_resume(tmp_path, before):
    """The weights and momentum in the checkpoint have the other memory format, or the same one."""
    run_training(cfg(tmp_path, "RUNTIME.CHANNELS_LAST", before), "run")
    with checked_updates():
        run_training(cfg(tmp_path, "SOLVER.MAX_EPOCHS", 2), "run", resume=LATEST)


def train_checked(_rank, config):
    with checked_updates():
        run_training(config, "run")
    return True


def test_updates_of_two_processes(tmp_path):
    """DDP's buckets provide the gradients, and each process computes the penalty of only some layers."""
    assert forked(2, train_checked, tmp_path, cfg(tmp_path, "SOLVER.TRAIN_BATCH_SIZE", 100)) == [True, True]


@pytest.mark.parametrize("assigned", ["contiguous", "channels_last"])
def test_updates_after_weights_were_assigned(assigned):
    """``load_state_dict(assign=True)`` replaces parameters by tensors of any memory format."""
    torch.manual_seed(0)
    config = load_cfg(None, TINY)
    model, source = build_model(config), build_model(config)
    model.to(memory_format=torch.channels_last)
    memory = torch.channels_last if assigned == "channels_last" else torch.contiguous_format
    state = {k: v.contiguous(memory_format=memory) if v.ndim == 4 else v for k, v in source.state_dict().items()}
    model.load_state_dict(state, assign=True)
    optimizer = build_optimizer(model, config)
    images, labels = torch.randn(8, 3, 8, 8).contiguous(memory_format=torch.channels_last), torch.arange(8)
    step, checked = TrainStep(model, model, optimizer, 1e-2), Checked()
    optimizer.register_step_pre_hook(checked.before)
    optimizer.register_step_post_hook(checked.after)
    for _ in range(3):
        step(images, labels)
    assert bool(checked.channels_last) == (assigned == "channels_last")


@pytest.mark.parametrize("create_graph", [False, True])
def test_the_penaltys_gradient_has_the_memory_format_of_its_weight(create_graph):
    """This also holds without accumulation, which copies a gradient to the weight's memory format."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3, groups=4))
    net.to(memory_format=torch.channels_last)
    weights = [conv.weight for conv in net]
    for strided in ("published", "operator"):
        gradients = torch.autograd.grad(OrthoPenalty(net, strided=strided)(), weights, create_graph=create_graph)
        assert all(g.stride() == w.stride() for g, w in zip(gradients, weights, strict=True))


def test_the_definitions_accumulated_gradient_has_the_memory_format_of_its_weight():
    conv = nn.Conv2d(2, 12, 2, stride=2).to(
        memory_format=torch.channels_last
    )  # the fast form does not support its columns
    OrthoPenalty(conv, strided="operator")().backward()
    assert conv.weight.grad.stride() == conv.weight.stride()
