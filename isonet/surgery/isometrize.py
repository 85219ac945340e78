"""SReLU, the delta initialisation and the penalty for a ConvNet of another library."""

import copy
import functools
import warnings
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from isonet.convs import Skip, named_convs, skipped
from isonet.init import initialised_convs
from isonet.models.layers import shift_names
from isonet.surgery.replacing import Replacing
from isonet.surgery.report import DeadNetworkWarning, IsometrizedReport, UnchangedNetworkWarning, measure_health
from isonet.surgery.rewiring import rewire
from isonet.surgery.running import ModelError, run, same
from isonet.surgery.watching import FUNCTIONS, RELUS, Kinds, watch


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
    """Return a copy of ``model`` that keeps the length of its signals, and a report of the changes.

    example: a batch of at least one image for the network. A copy of the network runs on it a few times, to record the
    inputs of each layer.
    normalisation: which norms to remove. None removes the norms that only SReLUs use, and keeps the norms that another
    activation (SiLU, GELU, attention) uses; if no activation becomes SReLU, nothing changes, and an
    ``UnchangedNetworkWarning`` is given. True keeps all norms. False removes all norms of feature maps.
    srelu: whether to replace every call of a ReLU or ReLU6, module or function, by a separate ``SReLU``.
    also: further kinds of activations to replace, such as ``(nn.SiLU, nn.GELU)``.
    delta: which convolutions to initialise like ``delta_init_``, which overwrites trained weights. None initialises all
    except the convolutions that a remaining norm uses, because a norm divides by the deviation of each channel, and
    delta leaves channels empty. True initialises all, False none.
    multiplier: the initial value of a learned scalar on each residual branch; None adds no scalars.
    skip: modules to leave unchanged, with all modules below them: names, or a predicate of name and module.
    check: whether to measure if the result can learn (``report.health``, see ``isonet.surgery.report``). If it cannot,
    other arguments are tried. The first that help are in a ``DeadNetworkWarning`` and in ``report.advised``.

    SReLU's shift replaces the bias of a removed norm. A convolution without a bias receives a bias of 0 only where no
    SReLU follows. If any activation or norm is replaced, no module of the copy works in place.

    Raises ``ModelError`` if the network does not run on ``example`` or, with ``check``, cannot learn with any
    arguments. Raises ``ValueError`` for layers that the method does not define (``named_convs``) or that an
    initialisation cannot write to (``initialised_convs``).
    """
    names = skip if callable(skip) else (skip,) if isinstance(skip, str) else tuple(skip)
    asked = _Arguments(normalisation, srelu, tuple(also), delta, multiplier, names)
    with torch.no_grad():
        new, report = _change(model, example, asked)
        own: Any = getattr(model, "no_weight_decay", set)
        vars(new)["no_weight_decay"] = functools.partial(set, {*own(), *shift_names(new)})
        report.not_measured = "" if check else "check=False"
        advice = _examine(model, new, example, asked, report) if check else ""
    if advice:
        warnings.warn(advice, DeadNetworkWarning, stacklevel=2)
    elif report.unchanged:
        warnings.warn(report.unchanged, UnchangedNetworkWarning, stacklevel=2)
    return new, report


@dataclass(frozen=True)
class _Arguments:
    """The arguments of ``isometrize`` that decide what changes."""

    normalisation: bool | None = None
    srelu: bool = True
    also: Kinds = ()
    delta: bool | None = None
    multiplier: float | None = 0.0
    skip: Skip = ()

    def given(self) -> dict[str, Any]:
        """The arguments that differ from the defaults."""
        return {key.name: getattr(self, key.name) for key in fields(self) if getattr(self, key.name) != key.default}

    def __str__(self) -> str:
        """The call of ``isometrize`` with these arguments, as Python code."""
        given = self.given()
        if self.also:
            kinds = [f"{'nn.' * (getattr(nn, kind.__name__, 0) is kind)}{kind.__name__}" for kind in self.also]
            given["also"] = f"({', '.join(kinds)}{',' * (len(kinds) == 1)})"
        if callable(self.skip):
            given["skip"] = "skip"
        return f"isometrize({', '.join(['model', 'example', *(f'{key}={value}' for key, value in given.items())])})"


def _change(model: nn.Module, example: Tensor, asked: _Arguments) -> tuple[nn.Module, IsometrizedReport]:
    skips, named = skipped(model, asked.skip), model.named_modules(remove_duplicate=False)
    left_out = frozenset(name for name, module in named if skips(name, module))
    list((named_convs if asked.delta is False else initialised_convs)(model, skip=left_out))  # raise before any work
    report, new = IsometrizedReport(), copy.deepcopy(model)
    modes = {module: module.training for module in new.modules()}
    expected = run(new.eval(), example)
    kinds = (*RELUS, *asked.also) if asked.srelu else ()
    if kinds or asked.normalisation is False:  # a new SReLU may need the input that the next module overwrites
        module: Any
        for name, module in new.named_modules():
            if name not in left_out and getattr(module, "inplace", False) is True:
                module.inplace = False
    new, unread = rewire(new, kinds, asked.multiplier is not None, left_out, report)
    if not same(expected, run(new, example)):
        raise ModelError(
            "the network returns something else once torch.fx separates its calls and nothing works in place, or it "
            "returns something else at each run; srelu=False with multiplier=None leaves its calls unchanged"
        )
    for name in sorted(left_out):
        if not name or name.rpartition(".")[0] not in left_out:  # modules below a skipped module are not listed
            report.leave(name, new.get_submodule(name), "skipped")
    seen = watch(new, example)
    replacing = Replacing(new, seen, left_out, report)
    replacing.activations(kinds, unread)
    if not report.activations and asked.normalisation is None and not asked.delta:
        replacing.model = copy.deepcopy(model)
        report.unchanged, report.multipliers, report.rewired = _why_unchanged(model, asked), [], []
        asked = replace(asked, multiplier=None, delta=False)
    replacing.norms(asked.normalisation)
    if asked.multiplier is not None:
        for name in report.multipliers:
            new.get_parameter(f"{name}.scale").fill_(asked.multiplier)
        for name, why in unread.items():
            if any(named_convs(new.get_submodule(name))):
                report.left.setdefault(name, f"residual branches were not searched: {why}")
    replacing.weights(asked.delta)
    for module in new.modules():
        module.training = modes.get(module, model.training)
    return replacing.model, report


def _why_unchanged(model: nn.Module, asked: _Arguments) -> str:
    other = replace(asked, srelu=True, also=(*asked.also, *_other_kinds(model)))
    hint = "also=(...) names kinds to replace" if other == asked else f"{other} replaces the activations that it has"
    return (
        f"isometrize changed nothing, because no activation of the network becomes SReLU: {hint}; "
        "normalisation=False and delta=True have an effect without SReLU"
    )


def _examine(model: nn.Module, new: nn.Module, example: Tensor, asked: _Arguments, report: IsometrizedReport) -> str:
    """Record the health of ``new`` in ``report``. Return advice if it is dead, and raise if no arguments help."""
    try:
        report.health = measure_health(new, example)
    except ModelError as error:
        report.not_measured = str(error)
        return ""
    if report.health.alive:
        return ""
    for other in _alternatives(new, asked):
        with suppress(ModelError):
            if measure_health(_change(model, example, other)[0], example).alive:
                report.advised = other.given()
                return f"{asked} gives a network that cannot learn: {report.health.reason}. {other} gives one that can"
    raise ModelError(
        f"{asked} gives a network that cannot learn, and so do other arguments: {report.health.reason}; "
        "check=False returns it nevertheless, and measure_health reports whether the original network can learn"
    )


def _alternatives(new: nn.Module, asked: _Arguments) -> list[_Arguments]:
    """Return arguments to advise, from the smallest difference to the arguments that keep most of the original."""
    others = (
        replace(asked, normalisation=None, delta=None),
        replace(asked, normalisation=None, delta=None, also=(*asked.also, *_other_kinds(new))),
        replace(asked, normalisation=True, delta=False, multiplier=None),
        replace(asked, delta=False),
        replace(asked, delta=True),
    )
    return [other for other in dict.fromkeys(others) if other != asked]


def _other_kinds(model: nn.Module) -> Kinds:
    """Return the kinds of activations in ``model`` that ``also`` could replace."""
    kinds = {type(module) for module in model.modules()}
    return tuple(kind for kind in FUNCTIONS if kind not in RELUS and kind in kinds)
