"""Which devices a run uses, and how a network is spread over them."""

import importlib.util
import logging
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from torch import nn

from isonet.errors import DeviceError
from isonet.launch import parse_gpu_ids
from isonet.models import ISONet
from isonet.models.layers import work_in_place_

log = logging.getLogger("isonet")


def pick_devices(gpus: str | None) -> list[torch.device]:
    """The devices that ``--gpus`` names, such as ``"0,1"``; None: every visible GPU, or the CPU if there is none.

    Ids count the GPUs that ``CUDA_VISIBLE_DEVICES`` makes visible. On a machine without a GPU, ids give the CPU and a
    warning. Raises ``DeviceError`` for an id that does not exist.
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


def place(
    model: nn.Module,
    devices: list[torch.device],
    channels_last: bool = False,
    compiled: bool = False,
    replayed: bool = True,
) -> nn.Module:
    """Move ``model`` to the first device; returns it, or a wrapper that compiles it or spreads batches over devices.

    From here on the activations of an ``ISONet`` overwrite their inputs, which saves memory.
    channels_last: keep 4-d weights in NHWC order.
    compiled: run it through ``torch.compile`` as one graph, compiled at the first batch of each shape. replayed: as a
    CUDA graph if it is on a GPU. Raises ``DeviceError`` for several GPUs in one process, and without the compiler it
    needs.
    """
    model.to(devices[0])
    if isinstance(model, ISONet):
        work_in_place_(model)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    on_gpu = devices[0].type == "cuda"
    if on_gpu:
        torch.cuda.set_device(devices[0])
    if compiled:
        _check_compiler(devices)
        mode = "reduce-overhead" if on_gpu and replayed else "default"
        return cast(nn.Module, torch.compile(model, fullgraph=True, dynamic=False, mode=mode))
    return nn.DataParallel(model, device_ids=devices) if len(devices) > 1 else model


def _check_compiler(devices: list[torch.device]) -> None:
    if len(devices) > 1:
        raise DeviceError(
            f"RUNTIME.COMPILE works on one GPU a process, and this one has {len(devices)}: name one by --gpus, "
            "or start a process for each by torchrun"
        )
    if devices[0].type == "cuda" and not importlib.util.find_spec("triton"):
        raise DeviceError("RUNTIME.COMPILE needs the package triton, which is missing: install it, or set it False")
    if devices[0].type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX") or "g++", "clang++"))):
        raise DeviceError(
            "RUNTIME.COMPILE needs a C++ compiler, and finds neither g++ nor clang++: install one, or set it False"
        )


@contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Turn what torch raises for a lack of memory into a ``DeviceError`` that says what to do."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error)
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and "allocate memory" not in text and "out of memory" not in text:
            raise
        raise DeviceError(
            f"out of memory ({text.splitlines()[0][:200] if text else type(error).__name__}): lower "
            "SOLVER.TRAIN_BATCH_SIZE, and SOLVER.TEST_BATCH_SIZE where it is larger, or DATASET.IMAGE_SIZE, "
            "or set RUNTIME.CHECKPOINT_ACTIVATIONS True and RUNTIME.COMPILE False"
        ) from None


def describe(devices: list[torch.device], processes: int = 1) -> str:
    """The devices in words, for the log. processes: of the whole run; the devices are those of this one."""
    if devices[0].type == "cpu":
        here = f"CPU, {torch.get_num_threads()} threads"
    else:
        here = ", ".join(f"{device} ({torch.cuda.get_device_name(device)})" for device in devices)
    return here if processes == 1 else f"{processes} ranks; rank 0: {here}"


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def set_precision(deterministic: bool, tf32: bool) -> None:
    """Choose kernels: with ``deterministic`` only those whose result does not vary, without ``tf32`` full float32."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = tf32  # torch allows it by default; matrix products are float32 by default
