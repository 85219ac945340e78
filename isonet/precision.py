"""Float32 matrix products in full precision, regardless of the precision that the process has chosen."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Disable autocast, and TF32 (GPUs) or bfloat16 (CPUs) in float32 matrix products.

    A compiled graph cannot change the precision of products: there, the setting of the process applies.
    """
    no_autocast: AbstractContextManager = nullcontext()  # the meta device has no autocast
    if device.type != "meta":
        no_autocast = torch.autocast(device.type, enabled=False)
    if torch.compiler.is_compiling():
        with no_autocast:
            yield
        return
    backends: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    backend = backends.matmul
    before = backend.fp32_precision
    # If it is exact already, leave it unchanged: once written, it no longer follows the global setting
    if rounds := before not in ("none", "ieee"):
        backend.fp32_precision = "ieee"
    try:
        with no_autocast:
            yield
    finally:
        if rounds:
            backend.fp32_precision = before
