"""Non-finite losses and gradients: the next check reports them, and non-finite weights are never saved."""

from __future__ import annotations

import itertools
import os
import re
import signal
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from conftest import TINY
from isonet import build_model, load_cfg
from isonet.data.memory import MemoryLoader
from isonet.errors import NonFiniteError
from isonet.files.checkpoint import read_checkpoint
from isonet.files.run_folder import LATEST
from isonet.training import TrainStep, build_optimizer
from isonet.training.failure import first_non_finite
from isonet.training.optim import Amp
from isonet.training.run import run_training

CPU = torch.device("cpu")
OFF = Amp("off", CPU)

pytestmark = pytest.mark.usefixtures("no_pictures")


def cfg(tmp_path, *opts):
    return load_cfg(None, [*TINY, "OUTPUT_DIR", str(tmp_path), *opts])


def network():
    torch.manual_seed(0)
    return build_model(load_cfg(None, TINY))


def batch(n=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 8, 8, generator=generator), torch.randint(0, 10, (n,), generator=generator)


class InfiniteGradient(torch.autograd.Function):
    """The identity function, with a gradient that is infinite in one place."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        grad.view(-1)[0] = float("inf")
        return grad


@pytest.fixture
def break_images(monkeypatch):
    """``break_images(epoch, step)`` makes a pixel of the images of that step non-finite, whenever they are read."""

    def change(epoch, step, value=float("inf"), batch_size=128):
        real = MemoryLoader.__iter__

        def batches(self):
            for images, labels in real(self):
                first = self.taken - len(labels)
                if self.augment and self.batches.epoch == epoch and first == (step - 1) * batch_size:
                    images[0, 0, 0, 0] = value
                yield images, labels

        monkeypatch.setattr(MemoryLoader, "__iter__", batches)

    return change


@pytest.mark.parametrize("how", ["afresh", "resumed within the epoch"])
def test_the_message_names_epoch_step_rate_place_and_remedy_and_the_last_checkpoint_is_safe(
    tmp_path, break_images, tally, how
):
    opts = ["SOLVER.MAX_EPOCHS", 2, "RUNTIME.LOG_EVERY", 4, "RUNTIME.SAVE_EVERY", 5]
    if how == "afresh":
        break_images(2, 10, float("nan"))
        with pytest.raises(NonFiniteError) as error:
            run_training(cfg(tmp_path, *opts), "run")
        saved = (1, 5)
    else:
        whole = run_training(cfg(tmp_path / "whole", *opts, "RUNTIME.KEEP", 9), "run")
        break_images(2, 10, float("nan"))
        middle = whole.path / "epoch0002-step000005.pt"
        with pytest.raises(NonFiniteError) as error:
            run_training(cfg(tmp_path, *opts), "run", resume=str(middle))
        saved = None
    message = str(error.value)
    assert re.search(r"epoch 2, step 10, .*0\.05, .*the images", message)
    assert "SOLVER.BASE_LR" in message
    if saved:
        latest = tmp_path / "digits/run/latest.pt"
        assert str(latest) in message
        state = read_checkpoint(latest)
        assert (state["epoch"], state["part"]["sums"]["steps"]) == saved
        assert all(value.isfinite().all() for value in state["model"].values())
    tally("survived")


def test_the_message_of_a_diverging_run_names_the_layer(tmp_path, tally):
    with pytest.raises(NonFiniteError) as error:
        run_training(cfg(tmp_path, "SOLVER.BASE_LR", 1e4, "RUNTIME.LOG_EVERY", 5), "run")
    found = re.search(r"epoch 1, step (\d+), .*10000, .*(the [a-z' ]+ of) ([\w.]+)", str(error.value))
    assert found, error.value
    assert 2 <= int(found[1]) <= 5
    names = {name for name, _ in network().named_modules()} | {name for name, _ in network().named_parameters()}
    assert found[3] in names
    assert not list(tmp_path.rglob("*.pt"))
    tally("survived")


@pytest.mark.parametrize("where", ["forward", "gradient", "penalty"])
def test_the_weights_do_not_change_from_the_failed_step_on_and_show_where_it_failed(monkeypatch, where, tally):
    """With a fault in step 4 of 7, the weights after step 7 are bit-identical to the weights after step 3."""
    model, config = network(), load_cfg(None, TINY)
    step = TrainStep(model, model, build_optimizer(model, config), 1e-4)
    conv = model.s2.b1.f.b
    at = SimpleNamespace(step=0)
    if where == "forward":
        conv.register_forward_hook(lambda _m, _i, out: out * (float("inf") if at.step == 4 else 1))
        expected = "the output of s2.b1.f.b (Conv2d)"
    elif where == "gradient":
        conv.register_forward_hook(lambda _m, _i, out: InfiniteGradient.apply(out) if at.step == 4 else out)
        expected = "the gradient of s2.b1.f.b.weight"
    else:
        conv.weight.register_hook(lambda grad: grad * float("nan") if at.step == 4 else grad)
        expected = "the gradient of s2.b1.f.b.weight"
    finite = []
    for number in range(1, 8):
        at.step = number
        finite.append(bool(step(*batch(seed=number)).finite))
        if number == 3:
            before = {name: value.clone() for name, value in model.state_dict().items()}
    assert finite == [True] * 3 + [False] * 4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    at.step = 4
    assert first_non_finite(model, *batch(seed=4), OFF, 1e-4) == expected
    at.step = 0
    assert first_non_finite(model, *batch(seed=4), OFF, 1e-4) == ""
    tally("survived")


def test_a_penalty_that_overflows_is_named(tally):
    model = network()
    with torch.no_grad():
        model.s3.b1.f.a.weight.fill_(1e15)  # the square of its Gram matrix overflows float32
        model.s3.b1.f.a_relu.srelu_bias.fill_(0)
        model.s3.b1.f.b.weight.zero_()
    assert "the penalty of s3.b1.f.a" in first_non_finite(model, *batch(), OFF, 1e-4)
    with torch.no_grad():
        model.stem.conv.weight[0, 0, 0, 0] = float("nan")
    assert first_non_finite(model, *batch(), OFF, 1e-4) == "the weights stem.conv.weight"
    tally("survived", 2)


def test_fp16_may_skip_its_first_step_and_then_starts_from_zero_momentum(tally):
    """The second step starts from a momentum of 0."""
    model = nn.Linear(2000, 50, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, fused=True)
    amp = Amp("fp16", CPU)
    scale = amp.scaler.get_scale()
    former = [torch.full((50, 2000), 7.0) for _ in range(20)]  # so that the allocator returns memory that is not 0
    del former
    model.weight.grad = torch.full((50, 2000), float("inf"))
    amp.scaler.scale(torch.zeros(()))
    amp.step(optimizer)
    assert amp.scaler.get_scale() == scale / 2
    model.weight.grad = torch.full((50, 2000), amp.scaler.get_scale())
    amp.step(optimizer)
    torch.testing.assert_close(model.weight.detach(), torch.full((50, 2000), -0.1))
    tally("survived")


def test_fp16_without_any_finite_scale_is_a_failure_and_not_a_run_that_trains_nothing(tally):
    model = network()
    model.head.fc.weight.register_hook(lambda grad: grad * float("inf"))
    step = TrainStep(model, model, build_optimizer(model, load_cfg(None, TINY)), 1e-4, amp=Amp("fp16", CPU))
    finite = [bool(step(*batch(n=2)).finite) for _ in range(60)]
    assert finite[:40] == [True] * 40  # the search for a scale
    assert not finite[-1]
    tally("survived")


def test_a_non_finite_step_of_another_optimiser_is_detected_too():
    model = network()
    step = TrainStep(model, model, torch.optim.Adam(model.parameters()), 1e-4)
    images, labels = batch()
    assert bool(step(images, labels).finite)
    images[0] = float("nan")
    assert not bool(step(images, labels).finite)


def test_the_check_does_not_change_a_finite_step():
    """The fused step with its check equals torch's plain loop, with momentum and decay, up to rounding."""
    found = []
    for fused in (True, False):
        model, config = network(), load_cfg(None, [*TINY, "SOLVER.WEIGHT_DECAY", 0.01])
        optimizer = build_optimizer(model, config)
        if not fused:
            groups = [{**group, "fused": None} for group in optimizer.param_groups]
            optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, foreach=False)
        step = TrainStep(model, model, optimizer, 1e-4)
        assert step.update.can_skip == fused
        for seed in range(5):
            step(*batch(seed=seed))
        found.append(model.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("how", ["SAVE_EVERY", "SIGTERM"])
def test_non_finite_weights_are_not_saved_within_an_epoch_either(tmp_path, monkeypatch, break_images, tally, how):
    """SAVE_EVERY, or a signal, saves long before LOG_EVERY checks, so saving has its own check."""
    break_images(1, 3)
    if how == "SIGTERM":
        steps = itertools.count(1)

        def step(self, *args, real=TrainStep.__call__, **kwargs):
            if next(steps) == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(self, *args, **kwargs)

        monkeypatch.setattr(TrainStep, "__call__", step)
    opts = ["RUNTIME.LOG_EVERY", 1000, "RUNTIME.SAVE_EVERY", 5 if how == "SAVE_EVERY" else 0]
    with pytest.raises(NonFiniteError, match=r"epoch 1, step 3, .*the images"):
        run_training(cfg(tmp_path, *opts), "run")
    assert not list(tmp_path.rglob("*.pt"))
    tally("survived")


def test_a_run_that_diverged_resumes_from_its_last_save_with_a_lower_rate(tmp_path, tally):
    run_training(cfg(tmp_path), "run")
    more = ["SOLVER.MAX_EPOCHS", 2]
    with pytest.raises(NonFiniteError):
        run_training(cfg(tmp_path, *more, "SOLVER.BASE_LR", 1e5), "run", resume=LATEST)
    folder = run_training(cfg(tmp_path, *more, "SOLVER.BASE_LR", 0.01), "run", resume=LATEST)
    assert len(folder.metrics.read_text().splitlines()) == 2
    tally("survived")
