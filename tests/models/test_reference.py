"""Every network compared with reference figures of the published implementation."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conftest import NUMERICS, REFERENCE, REPO, options, reference_batch, reference_model
from isonet import SReLU, build_model, load_cfg, load_weights, ortho_penalty, ortho_penalty_per_conv
from isonet.models import ResMultiplier
from isonet.training import TrainStep, build_optimizer, learning_rate_at, set_learning_rate
from isonet.training.metrics import evaluate

INIT = json.loads((REFERENCE / "init.json").read_text())
FLOAT64 = json.loads((REFERENCE / "float64.json").read_text())
every_network = pytest.mark.parametrize("name", list(NUMERICS))


def plain_float32():
    """Disable oneDNN for convolutions, because its kernels round differently.

    The difference is a float32 rounding error, but in the plain ResNet exactly one ReLU input (of s2.b2.relu, 7e-7 from
    zero) changes sign. Some gradient norms of batch norms then differ by 3e-3. They agree to 1e-5 in float64 (below).
    """
    return torch.backends.mkldnn.flags(enabled=False)


@every_network
def test_published_names_and_shapes_and_delta_kernels(name):
    model = build_model(load_cfg(None, options(NUMERICS[name]["config"])))
    assert [[key, list(value.shape)] for key, value in model.state_dict().items()] == NUMERICS[name]["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == NUMERICS[name]["num_params"]
    parameters = dict(model.named_parameters())
    for key, expected in NUMERICS[name]["dirac_init_sum_sumsq"].items():
        value = parameters[key].detach().double()
        assert [value.sum().item(), value.square().sum().item()] == expected, key


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("name", list(INIT))
def test_a_seed_gives_exactly_the_published_initial_weights(name, seed):
    """Compare every random tensor of the published network, and the next two random numbers after its construction."""
    cfg = load_cfg(None, options(INIT[name]["config"]))
    torch.manual_seed(seed)
    parameters = dict(build_model(cfg).named_parameters())
    assert torch.rand(2).tolist() == INIT[name]["two draws after"][str(seed)]
    for key, expected in INIT[name][f"seed {seed}"].items():
        value = parameters[key].detach()
        assert value.flatten()[:4].tolist() == expected["first4"], key
        # The order of a float64 sum depends on the processor
        assert value.double().sum().item() == pytest.approx(expected["sum"], rel=1e-9, abs=1e-9), key
        assert value.double().square().sum().item() == pytest.approx(expected["sumsq"], rel=1e-12), key


def published_start(state: dict[str, Tensor], seed: int, normal: bool) -> dict[str, Tensor]:
    """Return the published initial weights for the names and shapes of ``state``, from torch's own constructors.

    The constructors run in the order of the names. Then the convolutions are overwritten.
    """
    torch.manual_seed(seed)
    layers: dict[str, nn.Module] = {}
    for name, value in state.items():
        owner, _, leaf = name.rpartition(".")
        if leaf == "weight" and value.ndim == 4:
            out, in_, *kernel = value.shape
            layers[owner] = nn.Conv2d(in_, out, kernel, bias=f"{owner}.bias" in state)
        elif leaf == "weight" and value.ndim == 2:
            layers[owner] = nn.Linear(*reversed(value.shape))
    for layer in layers.values():
        if not isinstance(layer, nn.Conv2d):
            continue
        if normal:
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
            nn.init.normal_(layer.weight, 0, math.sqrt(2 / fan_out))
        elif layer.kernel_size != (7, 7):
            nn.init.dirac_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return {f"{owner}.{leaf}": p for owner, layer in layers.items() for leaf, p in layer.named_parameters()}


PLAIN = ["ISON.HAS_BN", True, "ISON.SReLU", False, "ISON.DIRAC_INIT", False]


@pytest.mark.parametrize(
    ("config", "opts"),
    [
        ("IN1k-ISO34", []),
        ("IN1k-RISO34", []),
        ("IN1k-RISO101", []),
        ("IN1k-RES50", []),
        ("IN1k-ISO18", ["ISON.SReLU", False]),
        ("IN1k-ISO18", ["ISON.SReLU", False, "ISON.DIRAC_INIT", False]),
        ("cifar10_ISO110", []),
        ("cifar10_RISO56", ["ISON.RES_MULTIPLIER", 0.3]),
        ("cifar100_RES56", []),
        ("cifar10_ISO56", PLAIN),
        ("self_ISO29", []),
    ],
)
def test_other_networks_start_as_published_too(config, opts):
    cfg = load_cfg(REPO / "configs" / f"{config}.yaml", opts)
    torch.manual_seed(3)
    model = build_model(cfg)
    expected = published_start(model.state_dict(), 3, normal=not cfg.ISON.DIRAC_INIT)
    parameters = dict(model.named_parameters())
    for name, value in expected.items():
        assert torch.equal(parameters[name], value), name
    owners = dict(model.named_modules())
    for name in parameters.keys() - expected.keys():  # shifts, multipliers, batch norm
        assert isinstance(owners[name.rpartition(".")[0]], SReLU | ResMultiplier | nn.BatchNorm2d), name


@every_network
def test_logits_and_penalty(name):
    record, model = NUMERICS[name], reference_model(name).eval()
    with torch.no_grad():
        logits, per_conv = model(reference_batch(name)[0]), ortho_penalty_per_conv(model)
    expected = torch.tensor(record["logits_first8"])
    assert (logits[:, :8] - expected).norm() <= 1e-5 * expected.norm()
    assert logits.double().norm().item() == pytest.approx(record["logits_norm"], rel=1e-5)
    assert sum(term.double() for term in per_conv.values()).item() == pytest.approx(record["ortho"], rel=1e-5)
    assert list(per_conv) == [conv for conv, _ in record["ortho_per_conv"]]
    for conv, penalty in record["ortho_per_conv"]:
        assert per_conv[conv].item() == pytest.approx(penalty, rel=1e-5), conv


@dataclass
class ThreeSteps:
    """Results of three steps of the reference's recipe.

    The loss terms and gradient norms of the first step, the loss of each step, and the logits after the last step.
    """

    cross_entropy: float
    penalty: float
    norms: dict[str, float]
    losses: list[float]
    logits: Tensor


def three_steps(name: str, dtype: torch.dtype) -> ThreeSteps:
    overrides = ["SOLVER.BASE_LR", 0.01, "SOLVER.WARMUP", True, "SOLVER.WARMUP_EPOCH", 5]
    cfg = load_cfg(None, options(NUMERICS[name]["config"]) + overrides)
    model, coeff = reference_model(name).to(dtype).train(), NUMERICS[name]["ortho_coeff_used"]
    optimizer = build_optimizer(model, cfg)
    images, labels = reference_batch(name)
    images, outputs = images.to(dtype), []
    step = TrainStep(model, model, optimizer, coeff)
    for epoch in (1, 2, 3):
        set_learning_rate(optimizer, learning_rate_at(cfg, epoch))
        outputs.append(step(images, labels))
        if epoch == 1:
            norms = {key: p.grad.double().norm().item() for key, p in model.named_parameters()}
    assert all(out.cross_entropy.dtype == out.penalty.dtype == dtype for out in outputs)
    losses = [(out.cross_entropy + coeff * out.penalty).item() for out in outputs]
    with torch.no_grad():
        logits = model.eval()(images)
    return ThreeSteps(outputs[0].cross_entropy.item(), outputs[0].penalty.item(), norms, losses, logits)


def assert_norms_in_float32(name: str, norms: dict[str, float]) -> None:
    """Skip shifts and multipliers: their gradients are sums that cancel. TestFloat64 compares them to 1e-11."""
    for key, expected in NUMERICS[name]["grad_norms"]:
        if not key.endswith(("srelu_bias", "shared_scalar.scale")):
            assert norms[key] == pytest.approx(expected, rel=1e-4, abs=1e-9), key


@every_network
def test_gradients_and_three_sgd_steps(name):
    """The plain ResNet is only compared in the first step.

    In float32, another of its ReLU inputs changes sign in the third step on some processors (with AVX-512 but not
    with AVX2, with any library for convolutions). This changes its logits by 1.5e-4.
    """
    record = NUMERICS[name]
    with plain_float32():
        run = three_steps(name, torch.float32)
    assert run.cross_entropy == pytest.approx(record["ce_loss"], rel=1e-5)
    assert run.penalty == pytest.approx(record["ortho"], rel=1e-5)
    assert_norms_in_float32(name, run.norms)
    if name == "cifar10_RES20":
        return
    assert run.losses == pytest.approx(record["sgd3_losses"], rel=1e-4)
    assert run.logits.double().norm().item() == pytest.approx(record["sgd3_logits_norm"], rel=1e-4)
    expected = torch.tensor(record["sgd3_logits_first8"])
    assert (run.logits[:, :8] - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("name", ["cifar10_ISO20", "cifar10_RISO20", "cifar10_ISO56", "IN1k_ISO18"])
def test_gradients_as_users_run_them(name):
    """The gradients come from autograd of the whole loss, with oneDNN."""
    model, (images, labels) = reference_model(name).train(), reference_batch(name)
    loss = F.cross_entropy(model(images), labels) + NUMERICS[name]["ortho_coeff_used"] * ortho_penalty(model)
    loss.backward()
    assert_norms_in_float32(name, {key: p.grad.double().norm().item() for key, p in model.named_parameters()})


@pytest.mark.parametrize("name", list(FLOAT64))
class TestFloat64:
    """Compare with the published code in float64, where both agree to 1e-11."""

    def test_logits_and_evaluation(self, name):
        """The loss of a float64 network is not rounded to float32."""
        record, model, (images, labels) = FLOAT64[name], reference_model(name).double().eval(), reference_batch(name)
        with torch.no_grad():
            logits = model(images.double())
        expected = torch.tensor(record["logits_first8"], dtype=torch.double)
        assert (logits[:, :8] - expected).norm() <= 1e-11 * expected.norm()
        assert logits.norm().item() == pytest.approx(record["logits_norm"], rel=1e-11)
        result = evaluate(model, [(images.double(), labels)], images.device)
        assert result.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-14)

    def test_gradients_and_three_sgd_steps(self, name):
        record, run = FLOAT64[name], three_steps(name, torch.float64)
        assert run.cross_entropy == pytest.approx(record["ce_loss"], rel=1e-11)
        assert run.penalty == pytest.approx(record["ortho"], rel=1e-11)
        assert list(run.norms) == [key for key, _ in record["grad_norms"]]
        smallest = 1e-6 * max(norm for _, norm in record["grad_norms"])  # smaller values are rounding errors
        for key, expected in record["grad_norms"]:
            assert run.norms[key] == pytest.approx(expected, abs=1e-11 * max(expected, smallest)), key
        assert run.losses == pytest.approx(record["sgd3_losses"], rel=1e-11)
        expected = torch.tensor(record["sgd3_logits_first8"], dtype=torch.double)
        assert (run.logits[:, :8] - expected).norm() <= 1e-11 * expected.norm()


@pytest.mark.parametrize("name", ["cifar10_ISO20", "cifar10_RISO20"])
def test_published_checkpoints_give_their_logits(name):
    stored = json.loads((REFERENCE / f"{name}.logits.json").read_text())
    model = build_model(load_cfg(None, options(NUMERICS[name]["config"])))
    load_weights(model, REFERENCE / f"{name}.pt")
    seed = int(stored["input"].split("RandomState(")[1].split(")")[0])
    images = torch.from_numpy(np.random.RandomState(seed).standard_normal((8, 3, 32, 32)).astype(np.float32))
    with torch.no_grad():
        logits = model.eval()(images)
    torch.testing.assert_close(logits, torch.tensor(stored["logits"]), rtol=1e-5, atol=1e-5)
