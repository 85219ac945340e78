"""The processes of a run: how many there are, which one this is, and what they tell each other.

Started by hand a run is one process. Started by ``torchrun`` it is as many as that starts, which is known
from the environment alone. Tensors of a GPU travel by NCCL; numbers that steer the run, and everything of
a run on CPUs, by gloo.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from isonet.errors import DeviceError, UserError
from isonet.shares import Share
from isonet.training.devices import pick_devices
from isonet.training.meeting import meet

T = TypeVar("T")

_BUCKET_MB = 25.0  # of gradients that travel together while the backward pass goes on: torch's own choice


class LaunchError(UserError):
    """Processes that do not find each other."""


class Answer(Protocol):
    """Numbers that are on their way."""

    def __call__(self) -> list[int]: ...


@dataclass(frozen=True)
class World:
    """The processes of a run; as it stands, the only one."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of this machine
    local_size: int = 1
    launched: bool = False  # by torchrun, be it as the only one

    @property
    def leads(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """What this process does of work that is dealt out."""
        return Share(self.rank, self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors, in place."""
        if self.launched:
            dist.all_reduce(tensor)
        return tensor

    def lowest(self, tensor: Tensor) -> Tensor:
        """The least of all processes' numbers, in place."""
        if self.launched:
            dist.all_reduce(tensor, dist.ReduceOp.MIN)
        return tensor

    def count(self, numbers: Callable[[], Sequence[int]]) -> Answer:
        """Begin to sum up ``numbers`` over the processes; the answer, when called, waits for the sums.

        A process by itself is asked for its numbers only then.
        """
        if not self.launched:
            return lambda: list(numbers())
        tensor = torch.tensor(numbers(), dtype=torch.int64)
        work = dist.all_reduce(tensor, async_op=True)

        def answer() -> list[int]:
            work.wait()
            return tensor.tolist()

        return answer

    def from_leader(self, make: Callable[[], T]) -> T:
        """What ``make`` gives on the leading process, which alone calls it."""
        if not self.launched:
            return make()
        box = [make() if self.leads else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]

    def gather(self, item: T) -> list[T]:
        """The items of all processes, by rank."""
        if not self.launched:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def copy_from_leader(self, tensors: Iterable[Tensor]) -> None:
        """Fill tensors with the leading process's."""
        if self.launched:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def synchronised(self, model: nn.Module, device: torch.device, bucket_mb: float = _BUCKET_MB) -> nn.Module:
        """``model`` with gradients averaged over processes, a bucket at a time while the backward pass goes on.

        Weights become the leading process's. Batch norm takes the mean and variance of each process's images.
        """
        if not self.launched:
            return model
        ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, bucket_cap_mb=bucket_mb, gradient_as_bucket_view=True)


ALONE = World()


def world_of_environment() -> World:
    """The process that the launcher's environment describes. Raises ``LaunchError`` where it contradicts itself."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return ALONE
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in names if not os.environ.get(name)]:
        raise LaunchError(
            f"RANK and WORLD_SIZE are set as by torchrun, but {', '.join(missing)} is not: start the script with "
            "torchrun, or unset them"
        )
    try:
        rank, size, local_rank, local_size, _, _ = (
            int(os.environ[name]) if name != "MASTER_ADDR" else 0 for name in names
        )
    except ValueError as error:
        raise LaunchError(f"RANK, WORLD_SIZE and their like are set, but not to numbers ({error})") from None
    return World(rank, size, local_rank, local_size, launched=True)


@contextmanager
def joined(world: World, gpus: str | None) -> Iterator[list[torch.device]]:
    """Connect this process with the others of ``world``, which a launcher has started; gives its devices."""
    devices = devices_of(world, gpus)
    on_gpu = devices[0].type == "cuda"
    if on_gpu:
        torch.cuda.set_device(devices[0])
    try:
        store = meet(world.rank, world.size)
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size)
    except (RuntimeError, ValueError, TimeoutError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise LaunchError(f"the {world.size} processes do not find each other at {address} ({error})") from None
    yield devices
    dist.destroy_process_group()  # not after an error: it would wait for processes that are gone


def devices_of(world: World, gpus: str | None) -> list[torch.device]:
    """The devices of this process: all that ``gpus`` names (see ``pick_devices``), or of a launched one its own."""
    devices = pick_devices(gpus)
    if not world.launched or devices[0].type == "cpu":
        return devices
    if len(devices) < world.local_size or (gpus is not None and len(devices) > world.local_size):
        named = f"--gpus {gpus} names" if gpus is not None else "visible are"
        raise DeviceError(
            f"{world.local_size} processes on this machine take a GPU each, and {named} {len(devices)}: "
            f"start torchrun with --nproc-per-node {len(devices)}"
        )
    return [devices[world.local_rank]]
