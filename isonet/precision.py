"""Float32 arithmetic in full, whatever the process allows elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autocast, and no float32 product in TF32 (GPUs) or bfloat16 (CPUs). Inside a compiled graph: no effect."""
    if torch.compiler.is_compiling():
        yield
        return
    no_autocast: AbstractContextManager = nullcontext()  # the meta device has none
    if device.type != "meta":
        no_autocast = torch.autocast(device.type, enabled=False)
    before = [(backend, backend.fp32_precision) for backend in _rounding_backends()]
    for backend, _ in before:
        backend.fp32_precision = "ieee"
    try:
        with no_autocast:
            yield
    finally:
        for backend, precision in before:
            backend.fp32_precision = precision


def _rounding_backends() -> list[Any]:
    """Where torch keeps what float32 products may be rounded to."""
    gpu, cpu = torch.backends.cudnn, torch.backends.mkldnn
    parts = ((torch.backends.cuda, "matmul"), (gpu, "conv"), (cpu, "matmul"), (cpu, "conv"))
    return [getattr(backend, part) for backend, part in parts]
