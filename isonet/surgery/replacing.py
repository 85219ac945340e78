"""What ``isometrize`` replaces in a network that was rewired: its activations and norms, and its weights."""

from __future__ import annotations

import copy
from collections.abc import Collection
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from isonet.convs import Conv, is_7x7_stem, named_convs
from isonet.init import delta_init_, initialised_convs
from isonet.models.layers import SReLU
from isonet.ortho import penalised_convs
from isonet.surgery.health import eight_images
from isonet.surgery.report import IsometrizedReport
from isonet.surgery.rewiring import NORMS, Kinds, exchange
from isonet.surgery.watching import Call, ModelError, Watch, is_activation, run

_NO_ACTIVATION = (nn.MultiheadAttention, nn.Softmax, nn.Softmax2d, nn.LogSoftmax)
_NOT_REACHED = "the example does not reach it"


class Copied(nn.Identity):
    """Replaces a norm whose output the network overwrites: the layer that made the norm's input may need that."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def watch(model: nn.Module, example: Tensor) -> Watch:
    """What the layers of a copy of ``model`` read, in evaluation and in training mode."""
    probe = copy.deepcopy(model)
    seen = Watch(probe.eval())
    run(probe, example, seen)
    with torch.random.fork_rng(_gpus(probe)):
        torch.manual_seed(0)
        with suppress(ModelError):  # some networks want labels in training
            run(probe.train(), eight_images(example), seen)
    return seen


def work_out_of_place(model: nn.Module, left_out: Collection[str]) -> list[Any]:
    """Let no module overwrite its input, which a new SReLU before it may need; returns those that did."""
    modules = [module for name, module in model.named_modules() if name not in left_out]
    acting: list[Any] = [module for module in modules if getattr(module, "inplace", False) is True]
    for module in acting:
        module.inplace = False
    return acting


def replace_activations(
    model: nn.Module,
    seen: Watch,
    kinds: Kinds,
    unread: dict[str, str],
    left_out: Collection[str],
    report: IsometrizedReport,
) -> None:
    """Put an ``SReLU`` for each module of ``kinds`` whose channels are known, except those in ``left_out``.

    unread: modules whose forward ``torch.fx`` cannot read: why.
    """
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if name in left_out:
            continue
        if not isinstance(module, kinds):
            if is_activation(module) and not isinstance(module, _NO_ACTIVATION):
                report.left[name] = f"{type(module).__name__}: not asked for"
            continue
        calls = seen.calls[name]
        where = {(call.shape[dim], dim) for call in calls for dim in [_channel_dim(call, modules)]}
        if len(where) != 1:
            widths = " and ".join(str(channels) for channels, _ in sorted(where))
            why = f"called with {widths} channels; {unread.get(name.rpartition('.')[0], 'the module is shared')}"
            report.left[name] = f"{type(module).__name__}: {why if where else _NOT_REACHED}"
        elif name in seen.written_over:
            report.left[name] = f"{type(module).__name__}: its output, which SReLU would need, is written over"
        else:
            ((channels, dim),) = where
            exchange(model, module, SReLU(channels, dim=dim).to(calls[0].like))
            report.activations[name] = type(module).__name__
    for name, called in seen.functions.items():
        if name in left_out:
            continue
        why = unread.get(name, "not asked for")
        report.left[name] = f"{', '.join(sorted(called))} as a function: {why}"


def _channel_dim(call: Call, modules: dict[str, nn.Module]) -> int:
    """The dimension of the channels: the last behind a linear layer, else the second."""
    return -1 if isinstance(modules.get(call.layer), nn.Linear) and len(call.shape) > 2 else 1


def remove_norms(
    model: nn.Module, seen: Watch, normalisation: bool | None, left_out: Collection[str], report: IsometrizedReport
) -> None:
    """Replace norms of feature maps by the identity; give their convolutions a bias where no SReLU follows."""
    modules = dict(model.named_modules())
    norms = [name for name, module in modules.items() if isinstance(module, NORMS) and name not in left_out]
    for name in norms if normalisation is not True else ():
        if any(len(call.shape) < 3 for call in seen.calls[name]) or not seen.calls[name]:
            why = "reads no feature map" if seen.calls[name] else _NOT_REACHED
            why = "holds other modules" if list(modules[name].children()) else why
            report.left[name] = f"{type(modules[name]).__name__}: {why}"
    for name, why in _kept(norms, seen, report).items() if normalisation is None else ():
        report.left.setdefault(name, f"{type(modules[name]).__name__}: {why}")
    for name in norms if normalisation is not True else ():
        if name in report.left:
            continue
        exchange(model, modules[name], Copied() if name in seen.written_over else nn.Identity())
        report.norms_removed[name] = type(modules[name]).__name__
        source = seen.calls[name][0].source
        conv = modules.get(source)
        shifted = report.activations and seen.readers[name] <= report.activations.keys()
        if isinstance(conv, Conv) and conv.bias is None and not shifted and source not in left_out:
            conv.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels))
            report.biases_added.append(source)


def _kept(norms: list[str], seen: Watch, report: IsometrizedReport) -> dict[str, str]:
    """The norms that stay by default: those that an activation reads which stays, and why."""
    if not report.activations:
        return dict.fromkeys(norms, "no activation becomes SReLU")
    kept = {}
    for name in norms:
        if stays := sorted(seen.readers[name] - report.activations.keys()):
            kept[name] = f"read by {stays[0]}, which is no SReLU"
    if kept:  # a norm before the head goes with the majority only where all norms go
        kept |= {name: "no activation reads it" for name in norms if not seen.readers[name]}
    return kept


def initialise(
    model: nn.Module, seen: Watch, delta: bool | None, left_out: Collection[str], report: IsometrizedReport
) -> None:
    """Write the delta initialisation; enter in ``report`` what it and the penalty include."""

    def skip(name: str, module: nn.Module) -> bool:
        return name in left_out

    norms = {name for name, module in model.named_modules() if isinstance(module, NORMS)}
    for name, conv in initialised_convs(model, skip=skip) if delta is not False else ():
        reader = next(iter(sorted(seen.readers[name] & norms)), "")
        if delta is None and (reader or not seen.calls[name]):
            report.not_initialised[name] = f"read by a norm that stays, {reader}" if reader else _NOT_REACHED
        else:
            delta_init_(conv)
            report.initialised.append(name)
    penalised = dict(penalised_convs(model, skip))
    for name, conv in named_convs(model, skip):
        pictures = "makes 3 channels" if isinstance(conv, nn.modules.conv._ConvTransposeNd) else "reads 3 channels"
        why = "a 7x7 stem" if is_7x7_stem(conv) else pictures
        if name not in report.initialised:
            report.not_initialised.setdefault(name, "not asked for" if delta is False else why)
        if name in penalised:
            report.penalised.append(name)
        else:
            report.not_penalised[name] = why


def _gpus(model: nn.Module) -> list[torch.device]:
    return list({parameter.device for parameter in model.parameters() if parameter.is_cuda})
