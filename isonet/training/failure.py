"""Explanations of failures: why a rank was lost, and which number became non-finite first."""

import contextlib
import time
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from isonet.data.processes import explain_dead_workers
from isonet.errors import EXIT_STOPPED, EXIT_USER_ERROR, RankError, Stopped, UserError, printable
from isonet.fast_penalty import ortho_penalty_per_conv
from isonet.hooks import hooked
from isonet.launch import is_main
from isonet.ortho import PUBLISHED
from isonet.rendezvous import read_store
from isonet.signals import StopSignals
from isonet.training.devices import explain_out_of_memory
from isonet.training.distributed import World, connected
from isonet.training.optim import Amp
from isonet.training.step import full_type

_FIRST = "isonet/failure"  # key in the store: the first rank that failed, and why
_MAIN = "isonet/failure of rank 0"
_GRACE_SECONDS = 5.0  # torchrun reports the ranks that failed before it ends the others: give it time
_SAME_MISTAKE_SECONDS = 2.0  # for rank 0 to report the same mistake as this rank

# Words in the messages of gloo; torch.distributed also raises its own kinds of exceptions
_GLOO = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket Timeout")


@contextlib.contextmanager
def ranks(gpus: str | None) -> Iterator[tuple[World, list[torch.device]]]:
    """Connect the ranks as ``connected`` does, and report a failure once.

    A rank that fails writes its reason for the others. If all ranks would print the same, only rank 0 prints it.
    """
    try:
        with connected(gpus) as (world, devices):
            try:
                with _explain_lost_ranks(world, None):
                    yield world, devices
            except (Stopped, RankError):
                raise
            except Exception as error:
                _leave_reason(world, error)
                if world.launch and not isinstance(error, UserError):
                    _record(error)
                raise
    except (Stopped, RankError) as error:
        if is_main() or (isinstance(error, RankError) and error.printed_here):
            raise
        raise SystemExit(EXIT_STOPPED if isinstance(error, Stopped) else EXIT_USER_ERROR) from None


def _record(error: Exception) -> None:
    """Write a bug's traceback, with torch's ``record``, to the file that torchrun's report uses."""
    from torch.distributed.elastic.multiprocessing.errors import record

    @record
    def fail() -> None:
        raise error

    fail()


@contextlib.contextmanager
def explained(world: World, stop: StopSignals | None = None) -> Iterator[None]:
    """Turn torch's errors for lost ranks, dead workers and a lack of memory into errors that say what to do."""
    with _explain_lost_ranks(world, stop), explain_dead_workers(), explain_out_of_memory():
        yield


@contextlib.contextmanager
def _explain_lost_ranks(world: World, stop: StopSignals | None) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or any(words in str(error) for words in _GLOO)
        if world.store is None or not lost:
            raise
        reason = _read(world, _FIRST) or (
            "the connection to another rank is lost; that rank was probably killed, see torchrun's report"
        )
        end = time.monotonic() + _GRACE_SECONDS
        while time.monotonic() < end and not (stop and stop.received):
            time.sleep(0.05)
        raise RankError(reason) from error


def _leave_reason(world: World, error: Exception) -> None:
    """Write the reason to the store, unless rank 0 made the same mistake and prints it."""
    if world.store is None or world.launch is None:
        return
    text = f"{'' if isinstance(error, UserError) else type(error).__name__ + ': '}{printable(error)}"
    with contextlib.suppress(RuntimeError):
        if world.is_main:
            world.store.set(_MAIN, text)
        elif isinstance(error, UserError):
            if _read(world, _MAIN, _SAME_MISTAKE_SECONDS) == text:
                raise SystemExit(EXIT_USER_ERROR)
            error.where = f"{world.launch.where}: "
        world.store.set(_FIRST, f"{world.launch.where} failed: {text}")


def _read(world: World, key: str, seconds: float = 0.2) -> str | None:
    with contextlib.suppress(RuntimeError):
        return read_store(world.store, key, seconds) if world.store else None
    return None


class _NonFiniteOutput(Exception):  # noqa: N818 - ends a forward pass
    pass


def first_non_finite(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    amp: Amp,
    ortho_coeff: float,
    chunks: int = 1,
    strided: str = PUBLISHED,
) -> str:
    """Repeat a step and return the name of the first computed value that is non-finite, or "" if none is.

    model: the bare network, with the weights of that step.
    images, labels: (N, 3, H, W) and (N,), on the model's device. chunks: the number of pieces to compute them in.
    """
    if bad := next((name for name, value in model.state_dict().items() if not value.isfinite().all()), ""):
        return f"the weights {bad}"
    if not images.isfinite().all():
        return "the images"
    model.zero_grad()
    for part, targets in zip(images.chunk(chunks), labels.chunk(chunks), strict=True):
        try:
            with amp.autocast(), _raise_at_non_finite(model):
                logits = model(part)
        except _NonFiniteOutput as output:
            return f"the output of {output}"
        F.cross_entropy(full_type(logits), targets).backward()
    if bad := _non_finite_gradient(model):
        return f"the gradient of {bad}"
    return _in_penalty(model, ortho_coeff, strided) if ortho_coeff > 0 else ""


def _non_finite_gradient(model: nn.Module) -> str:
    """Return the last parameter with a non-finite gradient, which makes the gradients of earlier layers non-finite."""
    names = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    return names[-1] if names else ""


def _raise_at_non_finite(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    def check(name: str, kind: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            if not output.detach().isfinite().all():  # detached: recomputing activations must not save this
                raise _NonFiniteOutput(f"{name} ({kind})")

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    return hooked(module.register_forward_hook(check(name, type(module).__name__)) for name, module in leaves)


def _in_penalty(model: nn.Module, ortho_coeff: float, strided: str) -> str:
    penalties = ortho_penalty_per_conv(model, strided=strided)
    if bad := next((name for name, penalty in penalties.items() if not penalty.isfinite()), ""):
        return f"the penalty of {bad}"
    model.zero_grad()
    (ortho_coeff * torch.stack(list(penalties.values())).sum()).backward()
    bad = _non_finite_gradient(model)
    return f"the penalty's gradient of {bad}" if bad else ""
