"""The devices of a run, and the placement of a network on them."""

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
    """Return the devices that ``--gpus`` names, such as ``"0,1"``, or for None every visible GPU, or else the CPU.

    An id is an index among the GPUs that ``CUDA_VISIBLE_DEVICES`` makes visible. On a machine without a GPU, ids select
    the CPU, with a warning. Raises ``DeviceError`` for an id that does not exist.
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
            " (see CUDA_VISIBLE_DEVICES)"
        )
    return [torch.device("cuda", i) for i in ids]


def place(
    model: nn.Module,
    devices: list[torch.device],
    channels_last: bool = False,
    compiled: bool = False,
    replayed: bool = True,
) -> nn.Module:
    """Move ``model`` to the first device, and return it or a wrapper that compiles it or spreads batches over devices.

    From then on, the activations of an ``ISONet`` overwrite their inputs, which saves memory.
    channels_last: whether to keep 4-d weights in NHWC order.
    compiled: whether to compile the model as one graph with ``torch.compile``, at the first batch of each shape.
    replayed: whether the graph is a CUDA graph on a GPU. Raises ``DeviceError`` if ``compiled`` is set with several
    GPUs in one process, or without the compiler that it needs.
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
            f"RUNTIME.COMPILE works on one GPU per process, and this process has {len(devices)}: name one with --gpus, "
            "or start one process per GPU with torchrun"
        )
    if devices[0].type == "cuda" and not importlib.util.find_spec("triton"):
        raise DeviceError("RUNTIME.COMPILE needs the package triton, which is missing: install it, or set it False")
    if devices[0].type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX") or "g++", "clang++"))):
        raise DeviceError(
            "RUNTIME.COMPILE needs a C++ compiler, and neither g++ nor clang++ exists: install one, or set it False"
        )


@contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Turn torch's errors for a lack of memory into a ``DeviceError`` that says what to do."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error)
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and "allocate memory" not in text and "out of memory" not in text:
            raise
        raise DeviceError(
            f"out of memory ({text.splitlines()[0][:200] if text else type(error).__name__}): lower "
            "SOLVER.TRAIN_BATCH_SIZE, and SOLVER.TEST_BATCH_SIZE if it is larger, or DATASET.IMAGE_SIZE, "
            "or set RUNTIME.CHECKPOINT_ACTIVATIONS True and RUNTIME.COMPILE False"
        ) from None


def describe(devices: list[torch.device], processes: int = 1) -> str:
    """Describe the devices of this process for the log. processes: the number of processes of the run."""
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
    """Choose kernels. deterministic: whether their results must not vary. tf32: whether convolutions may use TF32."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = tf32  # torch allows it by default; matrix products are float32 by default
