"""Which devices a run uses, and how a network is spread over them."""

from __future__ import annotations

import logging
import os
import random

import numpy as np
import torch
from torch import nn

from isonet.errors import DeviceError

log = logging.getLogger("isonet")


def pick_devices(gpus: str | None) -> list[torch.device]:
    """The devices of ``--gpus``, such as ``"0,1"``; ``None``: every visible GPU. Never empty.

    Ids count the GPUs that ``CUDA_VISIBLE_DEVICES`` lets through. Without any GPU it is the CPU, with a
    warning if GPUs were asked for. Raises ``DeviceError`` for an id that does not exist.
    """
    visible = torch.cuda.device_count()
    ids = list(range(visible)) if gpus is None else parse_gpu_ids(gpus)
    if visible == 0:
        if gpus is not None:
            log.warning(
                "no CUDA device is visible: --gpus %s is ignored and the CPU is used as if it were one GPU", gpus
            )
        return [torch.device("cpu")]
    if missing := [i for i in ids if i >= visible]:
        raise DeviceError(
            f"--gpus {gpus}: no GPU {missing[0]}; visible are {', '.join(map(str, range(visible)))}"
            " (CUDA_VISIBLE_DEVICES counts)"
        )
    return [torch.device("cuda", i) for i in ids]


def parse_gpu_ids(text: str) -> list[int]:
    """``"7,1"`` -> [7, 1]; the first is where the weights live."""
    ids = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in ids):
        raise DeviceError(f"--gpus takes ids separated by commas, such as 0,1; got {text!r}")
    if len(set(map(int, ids))) < len(ids):
        raise DeviceError(f"--gpus {text} names a GPU twice")
    return [int(part) for part in ids]


def spread(model: nn.Module, devices: list[torch.device]) -> nn.Module:
    """Move ``model`` to the first device; returns it, or a wrapper that divides each batch over all of them."""
    model.to(devices[0])
    if devices[0].type == "cuda":
        torch.cuda.set_device(devices[0])
    return nn.DataParallel(model, device_ids=devices) if len(devices) > 1 else model


def describe(devices: list[torch.device]) -> str:
    """For the log: how many of what."""
    if devices[0].type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads"
    return ", ".join(f"{device} ({torch.cuda.get_device_name(device)})" for device in devices)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def set_precision(deterministic: bool, tf32: bool) -> None:
    """Choose GPU kernels: with ``deterministic`` none whose result varies, without ``tf32`` full float32."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = tf32  # torch allows it by default; matrix products are float32 by default
