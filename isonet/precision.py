"""Float32 matrix products in full, whatever the process allows elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autocast, and no float32 matrix product in TF32 (GPUs) or bfloat16 (CPUs).

    A compiled graph cannot change the latter: there the setting of the process holds.
    """
    no_autocast: AbstractContextManager = nullcontext()  # the meta device has none
    if device.type != "meta":
        no_autocast = torch.autocast(device.type, enabled=False)
    if torch.compiler.is_compiling():
        with no_autocast:
            yield
        return
    backends: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    backend = backends.matmul
    before = backend.fp32_precision
    if rounds := before not in ("none", "ieee"):  # else leave it: what is written no longer follows the global setting
        backend.fp32_precision = "ieee"
    try:
        with no_autocast:
            yield
    finally:
        if rounds:
            backend.fp32_precision = before
