"""Every network against the figures of the published implementation."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import NUMERICS, REFERENCE, options, reference_batch, reference_model
from isonet import build_model, load_cfg, load_weights, ortho_penalty, ortho_penalty_per_conv
from isonet.training import TrainStep, build_optimizer, learning_rate_at, set_learning_rate

every_network = pytest.mark.parametrize("name", list(NUMERICS))


def plain_float32():
    """Convolutions without oneDNN, whose kernels round differently.

    The difference is within float32, but in the plain ResNet it carries exactly one ReLU input (of
    s2.b2.relu, 7e-7 from zero) across zero, which moves the gradient norms of some batch norms by 3e-3.
    In float64 they agree to 1e-5 (below).
    """
    return torch.backends.mkldnn.flags(enabled=False)


@every_network
def test_state_dict_has_the_published_names_and_shapes(name):
    model = build_model(load_cfg(None, options(NUMERICS[name]["config"])))
    assert [[key, list(value.shape)] for key, value in model.state_dict().items()] == NUMERICS[name]["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == NUMERICS[name]["num_params"]


@every_network
def test_initialisation(name):
    model = build_model(load_cfg(None, options(NUMERICS[name]["config"])))
    parameters = dict(model.named_parameters())
    for key, expected in NUMERICS[name]["dirac_init_sum_sumsq"].items():
        value = parameters[key].detach().double()
        assert [value.sum().item(), value.square().sum().item()] == expected, key


@every_network
def test_logits(name):
    record, model = NUMERICS[name], reference_model(name).eval()
    with torch.no_grad():
        logits = model(reference_batch(name)[0])
    expected = torch.tensor(record["logits_first8"])
    assert (logits[:, :8] - expected).norm() <= 1e-5 * expected.norm()
    assert logits.double().norm().item() == pytest.approx(record["logits_norm"], rel=1e-5)


@every_network
def test_penalty(name):
    record, model = NUMERICS[name], reference_model(name)
    with torch.no_grad():
        per_conv = ortho_penalty_per_conv(model)
    assert sum(term.double() for term in per_conv.values()).item() == pytest.approx(record["ortho"], rel=1e-5)
    assert list(per_conv) == [conv for conv, _ in record["ortho_per_conv"]]
    for conv, expected in record["ortho_per_conv"]:
        assert per_conv[conv].item() == pytest.approx(expected, rel=1e-5), conv


def gradient_norms(name: str, dtype: torch.dtype) -> tuple[float, dict[str, float]]:
    model = reference_model(name).to(dtype).train()
    images, labels = reference_batch(name)
    cross_entropy = F.cross_entropy(model(images.to(dtype)), labels)
    penalty = ortho_penalty(model)
    assert penalty.item() == pytest.approx(NUMERICS[name]["ortho"], rel=1e-5)
    (cross_entropy + NUMERICS[name]["ortho_coeff_used"] * penalty).backward()
    return cross_entropy.item(), {key: p.grad.double().norm().item() for key, p in model.named_parameters()}


@every_network
def test_loss_and_gradients(name):
    with plain_float32():
        cross_entropy, norms = gradient_norms(name, torch.float32)
    assert cross_entropy == pytest.approx(NUMERICS[name]["ce_loss"], rel=1e-5)
    for key, expected in NUMERICS[name]["grad_norms"]:
        assert norms[key] == pytest.approx(expected, rel=1e-4, abs=1e-9), key


@pytest.mark.parametrize("name", ["cifar10_ISO20", "cifar10_RISO20", "cifar10_ISO56", "IN1k_ISO18"])
def test_gradients_as_users_run_them(name):
    _, norms = gradient_norms(name, torch.float32)
    for key, expected in NUMERICS[name]["grad_norms"]:
        assert norms[key] == pytest.approx(expected, rel=1e-4, abs=1e-9), key


@pytest.mark.parametrize("name", [name for name in NUMERICS if name.startswith("cifar10")])
def test_gradients_in_double_precision(name):
    _, norms = gradient_norms(name, torch.float64)
    for key, expected in NUMERICS[name]["grad_norms"]:
        assert norms[key] == pytest.approx(expected, rel=1e-5, abs=1e-9), key


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [(name, torch.float32, 1e-4) for name in NUMERICS if name != "cifar10_RES20"]
    + [(name, torch.float64, 1e-5) for name in NUMERICS if name.startswith("cifar10")],
)
def test_three_sgd_steps(name, dtype, tolerance):
    """The plain ResNet in float64 alone: in float32 another of its ReLU inputs crosses zero in the third step on
    some processors (with AVX-512 but not with AVX2, whatever computes the convolutions), which moves its
    logits by 1.5e-4."""
    record = NUMERICS[name]
    overrides = ["SOLVER.BASE_LR", 0.01, "SOLVER.WARMUP", True, "SOLVER.WARMUP_EPOCH", 5]
    cfg = load_cfg(None, options(record["config"]) + overrides)
    model = reference_model(name).to(dtype).train()
    optimizer = build_optimizer(model, cfg)
    images, labels = reference_batch(name)
    images = images.to(dtype)
    coeff, losses = record["ortho_coeff_used"], []
    step = TrainStep(model, model, optimizer, coeff)
    with plain_float32():
        for epoch in (1, 2, 3):
            set_learning_rate(optimizer, learning_rate_at(cfg, epoch))
            out = step(images, labels)
            losses.append((out.cross_entropy + coeff * out.penalty).item())
        with torch.no_grad():
            logits = model.eval()(images)
    assert losses == pytest.approx(record["sgd3_losses"], rel=tolerance)
    assert logits.double().norm().item() == pytest.approx(record["sgd3_logits_norm"], rel=tolerance)
    expected = torch.tensor(record["sgd3_logits_first8"])
    assert (logits[:, :8] - expected).norm() <= tolerance * expected.norm()


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
