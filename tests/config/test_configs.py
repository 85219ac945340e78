"""Every config builds a network, and the published configs have the published values."""

from __future__ import annotations

import pytest
import torch

from conftest import REPO
from isonet import build_model, load_cfg
from isonet.config import flat, image_size

CONFIGS = sorted((REPO / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_network_of_a_config_runs(path):
    cfg = load_cfg(path)
    model = build_model(cfg).eval()
    size = min(image_size(cfg), 64)  # the networks accept any size
    with torch.no_grad():
        logits = model(torch.randn(2, 3, size, size))
    assert logits.shape == (2, cfg.DATASET.NUM_CLASSES)
    assert logits.isfinite().all()


def test_the_documented_configs_exist():
    imagenet = {f"IN1k-{kind}{depth}" for kind in ("ISO", "RISO") for depth in (18, 34, 50, 101)}
    cifar = {f"cifar{n}_{net}" for n in (10, 100) for net in ("ISO29", "ISO56", "ISO110", "RISO56", "RISO110", "RES56")}
    assert {path.stem for path in CONFIGS} >= imagenet | cifar | {
        "self_ISO29",
        "digits_ISO20",
        "IN1k-RES18",
        "IN1k-RES50",
    }


@pytest.mark.parametrize(
    ("name", "base_lr", "batch_size", "coeff", "dropout"),
    [
        ("ISO18", 0.01, 128, 1e-4, 0.1),
        ("ISO34", 0.01, 128, 1e-4, 0.1),
        ("ISO50", 0.0075, 96, 1e-4, 0.1),
        ("ISO101", 0.005, 64, 3e-4, 0.1),
        ("RISO18", 0.05, 128, 1e-4, 0.4),
        ("RISO34", 0.05, 128, 1e-4, 0.4),
        ("RISO50", 0.025, 64, 1e-4, 0.4),
        ("RISO101", 0.0125, 32, 1e-4, 0.4),
    ],
)
def test_published_imagenet_values(name, base_lr, batch_size, coeff, dropout):
    cfg = flat(load_cfg(REPO / "configs" / f"IN1k-{name}.yaml"))
    expected = {
        "SOLVER.BASE_LR": base_lr, "SOLVER.TRAIN_BATCH_SIZE": batch_size, "ISON.ORTHO_COEFF": coeff,
        "ISON.DROPOUT": True, "ISON.DROPOUT_RATE": dropout, "SOLVER.MAX_EPOCHS": 100,
        "SOLVER.LR_MILESTONES": [30, 60, 90], "SOLVER.WARMUP": True, "SOLVER.WARMUP_EPOCH": 5,
        "SOLVER.WEIGHT_DECAY": 1e-4, "ISON.HAS_ST": name.startswith("R"),
    }  # fmt: skip
    assert {key: cfg[key] for key in expected} == expected


def test_the_authors_advice_for_cifar10_at_depth_110():
    cfg = flat(load_cfg(REPO / "configs" / "cifar10_ISO110.yaml"))
    expected = {
        "SOLVER.BASE_LR": 0.005, "SOLVER.MAX_EPOCHS": 300, "SOLVER.LR_MILESTONES": [120, 240],
        "SOLVER.TRAIN_BATCH_SIZE": 128, "SOLVER.WARMUP_EPOCH": 10, "SOLVER.WARMUP_FACTOR": 0.1,
        "ISON.ORTHO_COEFF": 1e-4,
    }  # fmt: skip
    assert {key: cfg[key] for key in expected} == expected
