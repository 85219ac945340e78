"""The networks of the reference figures: weights and inputs drawn from NumPy's generators, with the published results.

The figures are in tests/reference/numerics.json. The tests and the comparison of a GPU with the CPU use these networks.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isonet import build_model, load_cfg

NUMERICS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "tests" / "reference" / "numerics.json").read_text(encoding="utf-8")
)


def options(config: dict[str, object]) -> list[object]:
    """Return a record's config as KEY VALUE pairs."""
    return [item for pair in config.items() for item in pair]


def reference_model(name: str) -> nn.Module:
    """Return a record's network, with the weights used to make the record."""
    torch.manual_seed(0)
    model = build_model(load_cfg(None, options(NUMERICS[name]["config"])))
    fill(model)
    return model


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Overwrite every parameter according to the rules of the reference figures."""
    for j, (name, parameter) in enumerate(model.named_parameters()):
        shape = tuple(parameter.shape)
        z = np.random.RandomState(1000 + j).standard_normal(shape)
        if "srelu" in name:
            z = -1 + 0.1 * z
        elif "shared" in name:
            z = 0.5 + 0.1 * z
        elif len(shape) == 4:
            z = z / math.sqrt(math.prod(shape[1:]))
        elif name.endswith("fc.weight"):
            z = z / math.sqrt(shape[1])
        elif len(shape) == 1 and "bn" in name and name.endswith("weight"):
            z = 1 + 0.1 * z
        else:
            z = 0.1 * z
        parameter.copy_(torch.from_numpy(z.astype(np.float32)))


def reference_batch(name: str) -> tuple[Tensor, Tensor]:
    """Return images (4, 3, H, W) and labels (4,)."""
    record = NUMERICS[name]
    images = np.random.RandomState(1000 + 9001).standard_normal(record["input_shape"]).astype(np.float32)
    labels = np.random.RandomState(1000 + 9002).randint(0, record["num_classes"], 4)
    return torch.from_numpy(images), torch.from_numpy(labels)
