"""SReLU, the delta initialisation and the penalty for somebody else's ConvNet."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from isonet.convs import Conv, is_7x7_stem, named_convs
from isonet.init import delta_init_, initialised_convs
from isonet.models.layers import SReLU
from isonet.ortho import penalised_convs
from isonet.rewiring import NORMS, Kinds, exchange, rewire
from isonet.watching import Call, ModelError, Watch, run, same, tensors

_REPLACED: Kinds = (nn.ReLU, nn.ReLU6)  # without being asked: below their cap both are max(x, 0)
_NO_ACTIVATION = (nn.MultiheadAttention, nn.Softmax, nn.Softmax2d, nn.LogSoftmax)
_NOT_REACHED = "the example does not reach it"
_SHOWN = 4  # names listed of each kind


class Copied(nn.Identity):
    """In the place of a norm whose output the network writes over: what made the norm's input may need that."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


@dataclass
class IsometrizedReport:
    """What ``isometrize`` did to a network, by the names that the modules have in it."""

    activations: dict[str, str] = field(default_factory=dict)  # now SReLU: what it was
    norms_removed: dict[str, str] = field(default_factory=dict)  # now the identity: what it was
    biases_added: list[str] = field(default_factory=list)  # convolutions
    multipliers: list[str] = field(default_factory=list)  # ResMultiplier, each on a residual branch
    rewired: list[str] = field(default_factory=list)  # modules that became a torch.fx.GraphModule to hold the new ones
    initialised: list[str] = field(default_factory=list)  # convolutions
    not_initialised: dict[str, str] = field(default_factory=dict)  # convolutions: why
    penalised: list[str] = field(default_factory=list)  # convolutions
    not_penalised: dict[str, str] = field(default_factory=dict)  # convolutions: why
    left: dict[str, str] = field(default_factory=dict)  # activations, norms, sums that stay: why

    def __str__(self) -> str:
        lines = [
            _line("activations are SReLU now", self.activations),
            _line("norms removed", self.norms_removed),
            _line("convolutions got a bias", self.biases_added),
            _line("residual branches got a multiplier", self.multipliers),
            _line("modules rewired by torch.fx, their parameters' names kept", self.rewired),
            _line("convolutions start as the identity", self.initialised),
            _line("convolutions keep their weights", self.not_initialised),
            _line("convolutions count in the penalty", self.penalised),
            _line("convolutions do not count in the penalty", self.not_penalised),
            _line("left as it was", self.left),
        ]
        return "\n".join(lines)


@torch.no_grad()
def isometrize(
    model: nn.Module,
    example: Tensor,
    *,
    normalisation: bool = False,
    srelu: bool = True,
    also: Kinds = (),
    delta: bool = True,
    multiplier: float | None = 0.0,
) -> tuple[nn.Module, IsometrizedReport]:
    """A copy of ``model`` that keeps the length of its signals, and the report of what differs; ``model`` stays.

    example: a batch, of one image at least, that the network takes; it is run a few times, in evaluation mode, to see
    what each layer is given.
    normalisation: keep norms. False: those that read a feature map become the identity.
    srelu: put an ``SReLU`` for every call of a ReLU or ReLU6, be it of a module or of a function.
    also: kinds of activations to be replaced likewise, such as ``(nn.SiLU, nn.GELU)``.
    delta: initialise as ``delta_init_`` does, weights that were trained included.
    multiplier: start of a learned scalar on each residual branch; None: no scalars.

    SReLU's shift does the work of the bias that a removed norm had. A convolution without one gets a bias, of 0, only
    where no SReLU follows: with ``srelu`` off, and before an activation that stays. Raises ``ModelError`` for a network
    that does not run on ``example``, and ``ValueError`` for layers that the method does not define (``named_convs``)
    or, with ``delta``, cannot write to (``initialised_convs``).
    """
    list(initialised_convs(model) if delta else named_convs(model))
    new = copy.deepcopy(model)
    modes = {module: module.training for module in new.modules()}
    new.eval()
    expected = run(new, example)
    kinds = (*_REPLACED, *also) if srelu else ()
    new, wiring = rewire(new, kinds, scaled=multiplier is not None)
    _check_same(expected, run(new, example))
    report = IsometrizedReport(multipliers=wiring.multipliers, rewired=wiring.exchanged, left=dict(wiring.other_sums))
    seen = Watch(new)
    with _nothing_inplace(new):
        run(new, example, seen)
    if not normalisation:
        _remove_norms(new, seen, kinds, report)
    _replace_activations(new, seen, kinds, wiring.unread, report)
    _settle_inplace(new, example)
    for name in report.multipliers:
        new.get_parameter(f"{name}.scale").fill_(multiplier or 0.0)
    for name, why in wiring.unread.items() if multiplier is not None else ():
        if any(named_convs(new.get_submodule(name))):
            report.left.setdefault(name, f"residual branches were not looked for: {why}")
    _initialise(new, delta, report)
    for module in new.modules():
        module.training = modes.get(module, model.training)
    return new, report


def _remove_norms(model: nn.Module, seen: Watch, kinds: Kinds, report: IsometrizedReport) -> None:
    """Let norms of feature maps be the identity, and give their convolutions a bias where nothing does its work."""
    modules = dict(model.named_modules())
    read_by_others = {  # norms that an activation which stays reads
        call.source for name, calls in seen.calls.items() if _stays(modules[name], kinds) for call in calls
    }
    written_over = seen.written_over()
    for name, norm in modules.items():
        if not isinstance(norm, NORMS):
            continue
        if any(len(call.shape) < 3 for call in seen.calls[name]) or not seen.calls[name]:
            why = "reads no feature map" if seen.calls[name] else _NOT_REACHED
            report.left[name] = f"{type(norm).__name__}: {why}"
            continue
        exchange(model, norm, Copied() if name in written_over else nn.Identity())
        report.norms_removed[name] = type(norm).__name__
        conv = modules.get(seen.calls[name][0].source)
        if isinstance(conv, Conv) and conv.bias is None and (not kinds or name in read_by_others):
            conv.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels))
            report.biases_added.append(seen.calls[name][0].source)


def _stays(module: nn.Module, kinds: Kinds) -> bool:
    """Whether ``module`` is an activation, and none that SReLU replaces."""
    known = type(module).__module__ == "torch.nn.modules.activation" and not isinstance(module, _NO_ACTIVATION)
    return known and not isinstance(module, kinds)


def _replace_activations(
    model: nn.Module, seen: Watch, kinds: Kinds, unread: dict[str, str], report: IsometrizedReport
) -> None:
    modules, written_over = dict(model.named_modules()), seen.written_over()
    for name, module in modules.items():
        calls = seen.calls[name]
        if _stays(module, kinds):
            report.left[name] = f"{type(module).__name__}: not asked for"
        elif isinstance(module, kinds):
            where = {(call.shape[dim], dim) for call in calls for dim in [_channel_dim(call, modules)]}
            if len(where) != 1:
                widths = " and ".join(str(channels) for channels, *_ in sorted(where))
                why = f"called with {widths} channels; {unread.get(name.rpartition('.')[0], 'the module is shared')}"
                report.left[name] = f"{type(module).__name__}: {why if where else _NOT_REACHED}"
                continue
            if name in written_over:
                report.left[name] = f"{type(module).__name__}: its output, which SReLU would need, is written over"
                continue
            ((channels, dim),) = where
            act = SReLU(channels, dim=dim)
            exchange(model, module, act.to(calls[0].like))
            report.activations[name] = type(module).__name__
    for name, called in seen.functions.items():
        why = unread.get(name, "not asked for")
        report.left[name] = f"{', '.join(sorted(called))} as a function: {why}"


def _channel_dim(call: Call, modules: dict[str, nn.Module]) -> int:
    """Where channels lie: at the end behind a linear layer, else in the second place."""
    return -1 if isinstance(modules.get(call.layer), nn.Linear) and len(call.shape) > 2 else 1


def _settle_inplace(model: nn.Module, example: Tensor) -> None:
    """Let nothing work in place where that changes the result or prevents training: a norm that is gone made a copy."""
    found = run(model, example)
    with _nothing_inplace(model) as acting:
        if not same(found, run(model, example)):
            acting.clear()
    if acting and not _trains(model, example):
        for module in acting:
            module.inplace = False


@contextmanager
def _nothing_inplace(model: nn.Module) -> Iterator[list[Any]]:
    """Yields the modules that worked in place, and of which those that are still listed at the end go on with it."""
    acting: list[Any] = [module for module in model.modules() if getattr(module, "inplace", False) is True]
    for module in acting:
        module.inplace = False
    try:
        yield acting
    finally:
        for module in acting:
            module.inplace = True


def _trains(model: nn.Module, example: Tensor) -> bool:
    """Whether a backward pass finds all that it needs."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        with torch.enable_grad():
            ends = [x for x in tensors(run(model, example)) if x.requires_grad]
            if ends:
                torch.autograd.grad(ends, parameters, [torch.ones_like(x) for x in ends], allow_unused=True)
    except (ModelError, RuntimeError):
        return False
    return True


def _initialise(model: nn.Module, delta: bool, report: IsometrizedReport) -> None:
    if delta:
        delta_init_(model)
    penalised = dict(penalised_convs(model))
    for name, conv in named_convs(model):
        why = "a 7x7 stem" if is_7x7_stem(conv) else "reads 3 channels"
        if not delta or is_7x7_stem(conv):
            report.not_initialised[name] = why if delta else "not asked for"
        else:
            report.initialised.append(name)
        if name in penalised:
            report.penalised.append(name)
        else:
            report.not_penalised[name] = why


def _check_same(before: Any, after: Any) -> None:
    if not same(before, after):
        raise ModelError(
            "the network gives other results when its calls are told apart by torch.fx, or another at each run: "
            "it cannot be changed without changing what it computes; srelu=False with multiplier=None leaves its calls"
        )


def _line(what: str, found: Iterable[str]) -> str:
    reasons = found if isinstance(found, dict) else dict.fromkeys(found, "")
    listed = [f"{name or 'the network itself'}{f' ({why})' if why else ''}" for name, why in reasons.items()]
    shown = ", ".join(listed[:_SHOWN]) + (", ..." if len(listed) > _SHOWN else "")
    return f"{len(listed):4} {what}{': ' if listed else ''}{shown}"
