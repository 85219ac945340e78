"""Optional speedups: each computes the same results, up to the difference that its key states, or is refused."""

from __future__ import annotations

import json
import re

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from conftest import REPO, TINY
from isonet import SReLU, build_model, load_cfg, ortho_penalty
from isonet.errors import ConfigError, DeviceError
from isonet.profiling import StepProfile
from isonet.training import TrainStep
from isonet.training.devices import place
from isonet.training.optim import Amp
from isonet.training.run import run_training

CPU = torch.device("cpu")
FAMILIES = ["digits_ISO20", "cifar10_ISO29", "cifar10_RES56", "IN1k-ISO18", "IN1k-RISO50"]

pytestmark = pytest.mark.usefixtures("no_pictures")


def network(*opts):
    torch.manual_seed(0)
    model = build_model(load_cfg(REPO / "configs/digits_ISO20.yaml", ["ISON.DEPTH", 8, *opts]))
    with torch.no_grad():  # away from the ties of the delta initialisation
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return model


def losses(model, steps=4, amp=None, forward=None, images=None):
    """Return the cross entropy and penalty before each of ``steps`` steps on one batch."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(16, 3, 8, 8, generator=generator) if images is None else images
    labels = torch.randint(10, (16,), generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    step = TrainStep(model if forward is None else forward, model, optimizer, 1e-3, amp=amp)
    found = [step(images, labels) for _ in range(steps)]
    return torch.stack([torch.stack([out.cross_entropy, out.penalty]) for out in found])


@pytest.mark.parametrize("config", FAMILIES)
def test_the_whole_network_is_one_graph(config):
    """Trace the network as ``torch.compile`` does, without generating code. Any graph break is an error."""
    torch._dynamo.reset()
    model = build_model(load_cfg(REPO / f"configs/{config}.yaml", ["ISON.DROPOUT", False]))
    size = 64 if config.startswith("IN1k") else 16
    x = torch.randn(2, 3, size, size)
    whole = torch.compile(model, fullgraph=True, backend="eager")
    expected, found = model(x), whole(x)
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(y.square().sum(), list(model.parameters())) for y in (expected, found)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_channels_last_and_compiled_steps_equal_plain_steps():
    expected = losses(network())
    model = network()
    forward = place(model, [CPU], channels_last=True, compiled=True)
    assert model.s1.b1.f.a.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(losses(model, forward=forward), expected, rtol=1e-5, atol=0)


def test_a_compiled_network_in_16_bits_has_the_gradient_of_the_plain_one():
    """The gradient of what SReLU cuts off goes to the shift. With 16-bit outputs and a 32-bit shift it would not.

    Rounding to 16 bits changes each gradient by some percent, so both are compared with the float32 gradient.
    """
    model = network("ISON.HAS_ST", True, "ISON.HAS_RES_MULTIPLIER", True, "ISON.RES_MULTIPLIER", 0.3)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, SReLU):
                module.srelu_bias.uniform_(-0.5, 0.1)  # few of these values are exact in 16 bits
    images, labels, amp = torch.randn(16, 3, 8, 8), torch.arange(16) % 10, Amp("bf16", CPU)
    grads = [torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters()))]
    for forward in (model, place(model, [CPU], compiled=True)):
        with amp.autocast():
            loss = F.cross_entropy(forward(images).float(), labels)
        grads.append(torch.autograd.grad(loss, list(model.parameters())))
    for (name, _), true, plain, compiled in zip(model.named_parameters(), *grads, strict=True):
        assert (compiled - true).norm() < 1.5 * (plain - true).norm() + 0.03 * true.norm(), name


@pytest.mark.parametrize(("kind", "tolerance"), [("bf16", 0.03), ("fp16", 0.01)])
def test_mixed_precision_is_close_and_its_penalty_exact(kind, tolerance):
    expected = losses(network())
    found = losses(network(), amp=Amp(kind, CPU))
    assert found[0, 1] == expected[0, 1]  # the penalty of the same weights
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)


def test_the_gradient_of_the_penalty_is_float32_under_autocast():
    model, twin = network(), network()
    with torch.autocast("cpu", torch.bfloat16):
        ortho_penalty(model).backward()
    ortho_penalty(twin).backward()
    assert torch.equal(model.s2.b1.f.a.weight.grad, twin.s2.b1.f.a.weight.grad)


def test_fp16_skips_a_step_of_overflowing_gradients_and_lowers_the_scale():
    model, amp = network(), Amp("fp16", CPU)
    before = model.head.fc.weight.clone()
    images = torch.randn(16, 3, 8, 8)
    images[0, 0, 0, 0] = float("inf")
    losses(model, steps=1, amp=amp, images=images)
    assert torch.equal(model.head.fc.weight, before)
    assert amp.scaler.get_scale() == 2**15


def test_a_cpu_without_16_bit_arithmetic_gives_a_warning(caplog, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    Amp("bf16", CPU)
    assert "many times slower" in caplog.text


def test_compiling_is_refused_for_several_gpus_and_without_a_compiler(monkeypatch, tmp_path):
    with pytest.raises(DeviceError, match=r"one GPU.*2"):
        place(network(), [CPU, CPU], compiled=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(DeviceError, match=r"C\+\+ compiler"):
        place(network(), [CPU], compiled=True)


def test_a_run_with_fp16_resumes_with_its_scale(tmp_path):
    """The run has 16 images, because a CPU without float16 arithmetic takes a second for 100 images."""
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "mine" / split / name).mkdir(parents=True)
            for i in range(8):
                Image.effect_noise((8, 8), 50).save(tmp_path / "mine" / split / name / f"{i}.png")
    data = ["DATASET.ROOT", str(tmp_path), "DATASET.NAME", "mine", "DATASET.NUM_CLASSES", 2, "DATASET.IMAGE_SIZE", 8]

    def cfg(epochs, name):
        opts = ["RUNTIME.AMP", "fp16", "SOLVER.MAX_EPOCHS", epochs, "OUTPUT_DIR", str(tmp_path / name)]
        return load_cfg(None, ["ISON.DEPTH", 8, "SOLVER.TRAIN_BATCH_SIZE", 4, *data, *opts])

    def figures(folder):
        rows = [json.loads(row) for row in folder.metrics.read_text().splitlines()]
        return [(row["cross_entropy"], row["penalty"], row["val_loss"]) for row in rows]

    whole = run_training(cfg(2, "whole"), "a")
    run_training(cfg(1, "halves"), "a")
    halves = run_training(cfg(2, "halves"), "a", resume="")
    assert figures(whole) == figures(halves)


def test_a_profile_has_the_parts_of_a_step_and_the_operators(tmp_path):
    folder = run_training(load_cfg(None, [*TINY, "OUTPUT_DIR", str(tmp_path), "RUNTIME.PROFILE", 2]), "a")
    text = folder.profile.read_text()
    for part in (
        "convolutions, forward",
        "convolutions, backward",
        "SReLU, forward",
        "penalty and its gradient",
        "update",
    ):
        assert re.search(rf"{part}.* ms +\d", text), part
    assert "aten::" in text
    assert str(folder.profile) in folder.log.read_text()


@pytest.mark.parametrize(("coeff", "asked"), [(0.0, 2), (1e-3, 2), (1e-3, 50)])
def test_the_parts_of_a_profile_add_up_to_its_steps(coeff, asked):
    """A part is the self time of the events within it, so the sum is the time that torch's own profile has in all.

    If the epoch ends before ``asked`` steps, the times are those of a step, too.
    """
    model = network()
    step = TrainStep(model, model, torch.optim.SGD(model.parameters(), 0.02), coeff)
    with StepProfile(asked, CPU) as steps:
        for _ in range(4):
            step(torch.randn(4, 3, 8, 8), torch.arange(4))
            steps.step()
    assert steps.profiled == 2
    total = sum(event.self_cpu_time_total for event in steps.profiler.key_averages()) / 1000 / 2
    assert sum(steps.parts.values()) == pytest.approx(total)
    assert ("penalty and its gradient" in steps.parts) == (coeff > 0)
    convolutions = [e for e in steps.profiler.events() if e.name in ("aten::convolution", "aten::convolution_backward")]
    at_least = sum(event.cpu_time_total for event in convolutions) / 1000 / 2
    found = steps.parts["convolutions, forward"] + steps.parts["convolutions, backward"]
    assert at_least * 0.999 <= found <= total


@pytest.mark.parametrize("count", [1, 2])
def test_an_epoch_that_is_too_short_for_a_profile_gets_a_warning(count, tmp_path, caplog):
    with StepProfile(5, CPU, tmp_path / "profile.txt") as steps:
        for _ in range(count):
            steps.step()
    assert not (tmp_path / "profile.txt").exists()
    assert "RUNTIME.PROFILE" in caplog.text


@pytest.mark.parametrize(("key", "value"), [("AMP", "fp8"), ("INPUT", "disk"), ("DECODER", "gd"), ("PROFILE", -1)])
def test_unknown_values_are_refused(key, value):
    with pytest.raises(ConfigError, match=f"RUNTIME.{key} must be"):
        load_cfg(None, [f"RUNTIME.{key}", value])


def test_off_may_be_written_without_quotes(tmp_path):
    (tmp_path / "a.yaml").write_text("RUNTIME:\n  AMP: off\n")
    assert load_cfg(tmp_path / "a.yaml").RUNTIME.AMP == "off"


def test_large_images_are_not_kept_in_memory():
    with pytest.raises(ConfigError, match=r"RUNTIME.INPUT.*64 pixels.*224"):
        load_cfg(None, ["RUNTIME.INPUT", "memory"])
