"""The ranks of a run: how they connect, and what they sum, broadcast and gather.

Without a launcher, a run is one process. Under ``torchrun``, it has as many ranks as ``torchrun`` starts. Tensors on a
GPU are exchanged with NCCL. Everything else, and everything in a run on CPUs, is exchanged with gloo.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from isonet.agreement import SAME_COMMAND, Facts, raise_reported, report
from isonet.data import Loader
from isonet.errors import DeviceError, UserError
from isonet.launch import Launch, launch
from isonet.rendezvous import rendezvous
from isonet.shares import Share
from isonet.signals import STOP_SIGNALS, StopRequested, StopSignals
from isonet.training.devices import pick_devices

T = TypeVar("T")

_BUCKET_MB = 25.0  # size of the buckets in which gradients are averaged: torch's default


@dataclass(frozen=True)
class World:
    """A rank of a run, and its operations with the others. The default is a run of one process.

    store: a key-value store that all ranks can reach, even after one of them has failed, or None without a launcher.
    """

    rank: int = 0
    size: int = 1
    launch: Launch | None = None
    store: dist.Store | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints and writes."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """This rank's share of work that is divided among the ranks."""
        return Share(self.rank, self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """Replace ``tensor`` by its sum over the ranks (all-reduce)."""
        if self.launch:
            dist.all_reduce(tensor)
        return tensor

    def minimum(self, tensor: Tensor) -> Tensor:
        """Replace ``tensor`` by its minimum over the ranks (all-reduce)."""
        if self.launch:
            dist.all_reduce(tensor, dist.ReduceOp.MIN)
        return tensor

    def start_maximum(self, number: Callable[[], int]) -> Callable[[], int]:
        """Start an all-reduce, and return a function that waits for it and returns the maximum over the ranks.

        A run of one process evaluates ``number`` only when that function is called.
        """
        if not self.launch:
            return number
        tensor = torch.tensor(number())
        work = dist.all_reduce(tensor, dist.ReduceOp.MAX, async_op=True)

        def result() -> int:
            work.wait()
            return int(tensor)

        return result

    def from_main(self, make: Callable[[], T]) -> T:
        """Call ``make`` on rank 0 only, and return its result on all ranks. If it fails, all ranks raise an error."""
        with self.agreed():
            made = make() if self.is_main else None
        return self._broadcast(made)  # type: ignore[return-value]

    def _broadcast(self, item: T) -> T:
        box = [item]
        if self.launch:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    @contextmanager
    def agreed(self, remedy: str = SAME_COMMAND) -> Iterator[Facts]:
        """Run the block on all ranks. If it fails on one rank, or the facts differ, all ranks raise an error.

        Yields a dictionary, to which the block adds facts that must be equal on all ranks. The block must not
        communicate, because the ranks exchange their reports at its end, and a rank that fails skips the rest of the
        block. remedy: what the user can do about a difference. See ``raise_reported``.
        """
        facts: Facts = {}
        error: Exception | None = None
        try:
            yield facts
        except Exception as caught:
            if not self.launch:
                raise
            error = caught
        if self.launch:
            reference, where_0 = self._broadcast((facts, self.launch.where))
            own = report(error, facts, self.launch.where, reference, where_0, remedy)
            reports = self.gather(own)
            try:
                raise_reported(reports, self.launch, error)
            except UserError as ended:
                ended.on_all_ranks = True
                raise

    def gather(self, item: T) -> list[T]:
        """Return the items of all ranks, in the order of ranks."""
        if not self.launch:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with the values on rank 0."""
        if self.launch:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def data_parallel(self, model: nn.Module, device: torch.device, bucket_mb: float = _BUCKET_MB) -> nn.Module:
        """Return ``model`` with gradients averaged over the ranks, in buckets while the backward pass runs.

        All ranks receive the weights of rank 0. Batch norm uses the mean and variance of each rank's own images.
        """
        if not self.launch:
            return model
        ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, bucket_cap_mb=bucket_mb, gradient_as_bucket_view=True)


ALONE = World()


def lockstep(
    loader: Loader, world: World = ALONE, stop: StopSignals | None = None
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Iterate over batches in lockstep: all ranks start and stop at the same batch.

    Yields the images (N, 3, H, W) and labels (N,) of this rank, and the number of images of the batch on all ranks.
    Raises ``StopRequested`` on every rank after one of them has received a signal. The ranks exchange signals one batch
    ahead, so that the exchange overlaps with the step and no rank waits for it.
    """

    def signal_number() -> int:
        return stop.received or 0 if stop else 0

    def raise_if_asked(maximum: Callable[[], int]) -> None:
        if number := maximum():
            raise StopRequested(next(s.name for s in STOP_SIGNALS if s == number))

    taken, ahead = loader.taken, None
    for images, labels in loader:
        batch = images, labels, loader.taken - taken
        taken = loader.taken
        ahead, ready = (batch, world.start_maximum(signal_number)), ahead
        if ready:
            raise_if_asked(ready[1])
            yield ready[0]
    if ahead:
        raise_if_asked(ahead[1])
        yield ahead[0]
    raise_if_asked(world.start_maximum(signal_number))


@contextmanager
def connected(gpus: str | None) -> Iterator[tuple[World, list[torch.device]]]:
    """Connect the ranks of a run while the ``with`` block runs, and yield this rank and its devices.

    gpus: see ``pick_devices``; a launched rank uses one of them. Raises ``UserError`` if the ranks cannot connect.
    """
    process = launch()
    if process is None:
        yield ALONE, pick_devices(gpus)
        return
    if not hasattr(os, "fork"):
        raise UserError("several ranks need Linux or macOS: on Windows, start the script without torchrun")
    devices: list[torch.device] = []
    error: Exception | None = None
    try:
        devices = [_own_device(process, gpus)]
    except Exception as caught:  # ``rendezvous`` reports it to the other ranks
        error = caught
    try:
        store = rendezvous(process, devices[0].type if devices else "", error)
        on_gpu = devices[0].type == "cuda"
        if on_gpu:
            torch.cuda.set_device(devices[0])
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, store=store, rank=process.rank, world_size=process.size)
    except UserError:
        raise
    except (RuntimeError, ValueError, TimeoutError) as lost:
        raise UserError(f"the {process.size} ranks cannot connect at {process.address} ({lost})") from None
    try:
        yield World(process.rank, process.size, process, store), devices
    except UserError as ended:
        if ended.on_all_ranks:  # otherwise a running thread of gloo may abort the process at exit
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()  # not after another error: it would wait for ranks that have ended


def _own_device(process: Launch, gpus: str | None) -> torch.device:
    devices, here = pick_devices(gpus), process.local_size
    if devices[0].type == "cpu":
        return devices[0]
    if len(devices) < here or (gpus is not None and len(devices) > here):
        named = f"--gpus {gpus} names" if gpus is not None else "the number of visible GPUs is"
        raise DeviceError(
            f"{here} ranks on this machine need a GPU each, but {named} {len(devices)}: start torchrun with "
            f"--nproc-per-node {len(devices)}"
        )
    return devices[process.local_rank]
