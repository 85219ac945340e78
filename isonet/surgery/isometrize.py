"""SReLU, the delta initialisation and the penalty for somebody else's ConvNet."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from isonet.convs import Skip, named_convs, skipped
from isonet.init import initialised_convs
from isonet.surgery.health import DeadNetworkWarning, Health, measure_health
from isonet.surgery.replacing import initialise, remove_norms, replace_activations, watch, work_out_of_place
from isonet.surgery.report import IsometrizedReport
from isonet.surgery.rewiring import CALLED, Kinds, rewire
from isonet.surgery.watching import ModelError, Watch, run, same

_REPLACED: Kinds = (nn.ReLU, nn.ReLU6)  # by default: below the cap of 6 both are max(x, 0)


class UnchangedNetworkWarning(UserWarning):
    """A network without an activation that becomes SReLU, which ``isometrize`` returns as it is."""


@dataclass(frozen=True)
class _Arguments:
    """Those of ``isometrize`` that decide what it changes."""

    normalisation: bool | None = None
    srelu: bool = True
    also: Kinds = ()
    delta: bool | None = None
    multiplier: float | None = 0.0
    skip: Skip = ()

    def given(self) -> dict[str, Any]:
        """Those that are not the defaults."""
        return {key.name: getattr(self, key.name) for key in fields(self) if getattr(self, key.name) != key.default}

    def __str__(self) -> str:
        """The call, as the user would write it."""
        given = self.given()
        if self.also:
            kinds = [_spelled(kind) for kind in self.also]
            given["also"] = f"({', '.join(kinds)})" if len(kinds) > 1 else f"({kinds[0]},)"
        if callable(self.skip):
            given["skip"] = "skip"
        return f"isometrize({', '.join(['model', 'example', *(f'{key}={value}' for key, value in given.items())])})"


def _spelled(kind: type[nn.Module]) -> str:
    return f"nn.{kind.__name__}" if getattr(nn, kind.__name__, None) is kind else kind.__name__


def isometrize(
    model: nn.Module,
    example: Tensor,
    *,
    normalisation: bool | None = None,
    srelu: bool = True,
    also: Kinds = (),
    delta: bool | None = None,
    multiplier: float | None = 0.0,
    skip: Skip = (),
    check: bool = True,
) -> tuple[nn.Module, IsometrizedReport]:
    """A copy of ``model`` that keeps the length of its signals, and the report of what differs; ``model`` stays.

    example: a batch, of one image at least, that the network takes. ``isometrize`` runs a copy on it a few times to see
    what each layer reads.
    normalisation: None: remove the norms that only SReLUs read, and keep those that another activation (SiLU, GELU,
    attention) reads; if no activation becomes SReLU, change nothing at all, with an ``UnchangedNetworkWarning``. True:
    keep all norms. False: remove all norms of feature maps.
    srelu: put an ``SReLU`` for every call of a ReLU or ReLU6, be it of a module or of a function.
    also: further kinds of activations to replace, such as ``(nn.SiLU, nn.GELU)``.
    delta: initialise convolutions as ``delta_init_`` does, trained weights included. None: all but those that a
    remaining norm reads, because a norm divides by the deviation of each channel and delta leaves channels empty. True:
    all. False: none.
    multiplier: initial value of a learned scalar on each residual branch; None: no scalars.
    skip: modules to leave as they are, each with all modules below it: names, or a predicate of name and module.
    check: measure whether the result can learn (``report.health``, see ``isonet.health``). If it cannot, and
    other arguments give a network that can, a ``DeadNetworkWarning`` and ``report.advised`` name them; if none do,
    ``ModelError`` is raised.

    SReLU's shift replaces the bias of a removed norm. A convolution without a bias gets one, of 0, only where no SReLU
    follows. If any activation or norm is replaced, no module of the copy works in place. Raises ``ModelError`` for a
    network that does not run on ``example``, and ``ValueError`` for layers that the method does not define
    (``named_convs``) or that an initialisation cannot write to (``initialised_convs``).
    """
    names = skip if callable(skip) else (skip,) if isinstance(skip, str) else tuple(skip)
    asked = _Arguments(normalisation, srelu, tuple(also), delta, multiplier, names)
    with torch.no_grad():
        new, report = _change(model, example, asked)
        vars(new)["no_weight_decay"] = functools.partial(set, _without_decay(model, report))
        advice = _examine(model, new, example, asked, report) if check else ""
    if not check:
        report.not_measured = "check=False"
    if advice:
        warnings.warn(advice, DeadNetworkWarning, stacklevel=2)
    elif report.unchanged:
        warnings.warn(report.unchanged, UnchangedNetworkWarning, stacklevel=2)
    return new, report


def _change(model: nn.Module, example: Tensor, asked: _Arguments) -> tuple[nn.Module, IsometrizedReport]:
    left_out = _left_out(model, asked.skip)
    list((named_convs if asked.delta is False else initialised_convs)(model, skip=left_out))  # raise before any work
    new = copy.deepcopy(model)
    modes = {module: module.training for module in new.modules()}
    expected = run(new.eval(), example)
    kinds = (*_REPLACED, *asked.also) if asked.srelu else ()
    in_place = work_out_of_place(new, left_out) if kinds or asked.normalisation is False else []
    new, wiring = rewire(new, kinds, asked.multiplier is not None, left_out)
    _check_same(expected, run(new, example))
    report = IsometrizedReport(multipliers=wiring.multipliers, rewired=wiring.exchanged, left=dict(wiring.other_sums))
    _report_skipped(new, left_out, report)
    seen = watch(new, example)
    replace_activations(new, seen, kinds, wiring.unread, left_out, report)
    if not report.activations and asked.normalisation is None and not asked.delta:
        return _unchanged(model, seen, left_out, report)
    remove_norms(new, seen, asked.normalisation, left_out, report)
    for module in () if report.activations or report.norms_removed else in_place:
        module.inplace = True
    for name in report.multipliers:
        new.get_parameter(f"{name}.scale").fill_(asked.multiplier or 0.0)
    for name, why in wiring.unread.items() if asked.multiplier is not None else ():
        if any(named_convs(new.get_submodule(name))):
            report.left.setdefault(name, f"residual branches were not looked for: {why}")
    initialise(new, seen, asked.delta, left_out, report)
    for module in new.modules():
        module.training = modes.get(module, model.training)
    return new, report


def _unchanged(
    model: nn.Module, seen: Watch, left_out: frozenset[str], report: IsometrizedReport
) -> tuple[nn.Module, IsometrizedReport]:
    """A copy of ``model`` as it is, and a report that says so."""
    new = copy.deepcopy(model)
    report.multipliers, report.rewired = [], []
    remove_norms(new, seen, None, left_out, report)
    initialise(new, seen, False, left_out, report)
    report.not_initialised = dict.fromkeys(report.not_initialised, "no activation becomes SReLU")
    kinds = sorted({why.removesuffix(": not asked for") for why in report.left.values() if "not asked for" in why})
    kinds = [f"nn.{kind}" for kind in kinds if kind.isidentifier()]
    also = f"also=({', '.join(kinds)},) replaces those that it has" if kinds else "also= names kinds to replace"
    report.unchanged = (
        f"isometrize changed nothing, because no activation of the network becomes SReLU: {also}; "
        "normalisation=False and delta=True act all the same"
    )
    return new, report


def _left_out(model: nn.Module, skip: Skip) -> frozenset[str]:
    """All names of the modules in ``skip`` and of the modules below them."""
    asked = skipped(model, skip)
    named = list(model.named_modules(remove_duplicate=False))
    modules = {below for name, module in named if asked(name, module) for below in module.modules()}
    return frozenset(name for name, module in named if module in modules)


def _report_skipped(model: nn.Module, left_out: frozenset[str], report: IsometrizedReport) -> None:
    for name in sorted(left_out):
        if not name or name.rpartition(".")[0] not in left_out:  # the topmost stand for those below them
            report.left[name] = f"{type(model.get_submodule(name)).__name__}: skipped"


def _without_decay(model: nn.Module, report: IsometrizedReport) -> frozenset[str]:
    """Names of the parameters without weight decay: the shifts, and those that ``model`` lists itself."""
    own: Any = getattr(model, "no_weight_decay", tuple)
    return frozenset(own()) | {f"{name}.srelu_bias" if name else "srelu_bias" for name in report.activations}


def _check_same(before: Any, after: Any) -> None:
    if not same(before, after):
        raise ModelError(
            "the network gives other results when its calls are told apart by torch.fx or nothing works in place, or "
            "another at each run: it cannot be changed without changing what it computes; "
            "srelu=False with multiplier=None leaves its calls"
        )


def _examine(model: nn.Module, new: nn.Module, example: Tensor, asked: _Arguments, report: IsometrizedReport) -> str:
    """Enter the health of ``new`` in ``report``; returns a warning if it is dead, or raises if no arguments help."""
    try:
        report.health = measure_health(new, example)
    except ModelError as error:
        report.not_measured = str(error)
        return ""
    if report.health.alive:
        return ""
    for other in _alternatives(new, asked):
        if (health := _health_of(model, example, other)) and health.alive:
            report.advised = other.given()
            return f"{asked} gives a network that cannot learn: {report.health.reason}. {other} gives one that can"
    original = _health_of_original(model, example)
    raise ModelError(
        f"{asked} gives a network that cannot learn, and so do other arguments: {report.health.reason}{original}; "
        "check=False returns it all the same"
    )


def _alternatives(new: nn.Module, asked: _Arguments) -> Iterator[_Arguments]:
    """Arguments to advise, from what differs least to what keeps the most of the original."""
    stays = tuple(kind for kind in CALLED if any(type(module) is kind for module in new.modules()))
    tried = {asked}
    for other in (
        replace(asked, normalisation=None, delta=None),
        replace(asked, normalisation=None, delta=None, also=(*asked.also, *stays)),
        replace(asked, normalisation=True, delta=False, multiplier=None),
        replace(asked, delta=False),
        replace(asked, delta=True),
    ):
        if other not in tried:
            tried.add(other)
            yield other


def _health_of(model: nn.Module, example: Tensor, asked: _Arguments) -> Health | None:
    try:
        return measure_health(_change(model, example, asked)[0], example)
    except ModelError:
        return None


def _health_of_original(model: nn.Module, example: Tensor) -> str:
    try:
        original = measure_health(model, example)
    except ModelError:
        return ""
    return "" if original.alive else "; the original network cannot learn either"
