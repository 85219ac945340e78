"""Somebody else's network, rewired: a module for every call of an activation, a scale on every residual branch.

A module may call one ``nn.ReLU`` several times, or ``F.relu``: there is no place for parameters of each call. Its own
``forward`` is read by ``torch.fx``, its children as black boxes, and where calls have to be told apart the module
is exchanged for a ``GraphModule`` that does the same with more children. All other modules stay the objects that they
are, and the names of parameters stay.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from isonet.models.layers import ResMultiplier
from isonet.surgery.branches import function_of, no_residual_branch, sums_of_convs

Kinds = tuple[type[nn.Module], ...]

NORMS: Kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm,
                nn.LocalResponseNorm)  # fmt: skip
CALLED: dict[type[nn.Module], tuple[Callable[..., Any], ...]] = {  # the functions that do what a module does
    nn.ReLU: (F.relu, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_),
    nn.ReLU6: (F.relu6,),
    nn.LeakyReLU: (F.leaky_relu,),
    nn.ELU: (F.elu,),
    nn.SiLU: (F.silu,),
    nn.GELU: (F.gelu,),
    nn.Hardswish: (F.hardswish,),
}


class UntraceableError(Exception):
    """A forward that ``torch.fx`` cannot read; the message says why."""


@dataclass
class Rewiring:
    """What was exchanged, by name, and what could not be read or was left, with the reason."""

    exchanged: list[str] = field(default_factory=list)
    multipliers: list[str] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)
    other_sums: dict[str, str] = field(default_factory=dict)


def rewire(model: nn.Module, kinds: Kinds, scaled: bool, skipped: Collection[str] = ()) -> tuple[nn.Module, Rewiring]:
    """Change ``model`` in place; returns it, or the module that replaces it, and what was done.

    kinds: each call of one of these activations becomes a child of its own: the first keeps its name ``relu``, the next
    are ``relu_2``, ``relu_3``. None of them works in place.
    scaled: put a ``ResMultiplier`` of 1, ``multiplier``, on each residual branch.
    skipped: names of modules that stay as they are.
    """
    names = [name for name, _ in model.named_modules() if name not in skipped]
    _prepare(model, kinds, skipped)
    found = Rewiring()
    for name in names[::-1]:  # children first
        owner = model.get_submodule(name)
        if type(owner).__module__.startswith("torch.nn.") and not isinstance(owner, nn.Sequential):
            continue
        try:
            changed = _rewire_one(name, owner, kinds, scaled, skipped, found)
        except UntraceableError as error:
            found.unread[name] = str(error)
            continue
        if changed is not owner:
            found.exchanged.insert(0, name)
            model = exchange(model, owner, changed)
    return model, found


def exchange(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put ``new`` wherever ``old`` is in ``model``; returns the model, which is ``new`` if it was ``old``."""
    new.training = old.training
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
    return new if model is old else model


def own_graph(owner: nn.Module) -> fx.Graph:
    """The calls of ``owner``'s own forward, its children as black boxes. Raises ``UntraceableError``."""
    if owner._forward_hooks or owner._forward_pre_hooks:
        raise UntraceableError("it has hooks")
    before, graphs = owner.training, []
    try:
        for owner.training in (True, False):
            graphs.append(_OwnForward().trace(owner))
    except Exception as error:  # other people's code, fed with proxies, raises whatever it likes
        raise UntraceableError(f"torch.fx cannot read its forward ({first_line(error)})") from None
    finally:
        owner.training = before
    if graphs[0].python_code("self").src != graphs[1].python_code("self").src:
        raise UntraceableError("its forward is another in training than in evaluation")
    return graphs[1]


def first_line(error: Exception) -> str:
    """What went wrong, shortly."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]:.100}"


class _OwnForward(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _prepare(model: nn.Module, kinds: Kinds, skipped: Collection[str]) -> None:
    """Make an activation that has several names one module for each."""
    for parent_name, parent in list(model.named_modules()):
        for name, child in parent._modules.items():
            if isinstance(child, kinds) and _join(parent_name, name) not in skipped:
                parent._modules[name] = copy.deepcopy(child)


def _join(owner: str, name: str) -> str:
    return f"{owner}.{name}" if owner else name


def _rewire_one(
    name: str, owner: nn.Module, kinds: Kinds, scaled: bool, skipped: Collection[str], found: Rewiring
) -> nn.Module:
    """``owner``, or the ``GraphModule`` that takes its place."""
    graph, additions = own_graph(owner), dict[str, nn.Module]()
    children = {key for key, _ in owner.named_modules() if _join(name, key) not in skipped}
    _separate(owner, graph, kinds, children, additions)
    sums = [(node, branch, no_residual_branch(owner, node, branch)) for node, branch in sums_of_convs(owner, graph)]
    for node, branch, fault in sums if scaled else ():
        if not fault:
            child = _add(owner, "multiplier", ResMultiplier(1.0), additions)
            with graph.inserting_before(node):
                node.replace_input_with(branch, graph.call_module(child, (branch,)))
    changed = _with_graph(owner, graph, additions) if additions else owner
    if scaled:
        others = {_join(name, node.name): fault for node, _, fault in sums if fault}
        found.other_sums = {**others, **found.other_sums}
        found.multipliers[:0] = [_join(name, key) for key, new in additions.items() if isinstance(new, ResMultiplier)]
    return changed


class Rewired(fx.GraphModule):
    """A ``GraphModule`` that keeps plain attributes in copies and pickles, because other code may read them."""

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.GraphModule:
        new = super().__deepcopy__(memo)
        vars(new).update(copy.deepcopy(_missing(new, self), memo))
        return new

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _unpickled, (type(self).__name__, *super().__reduce__())


def _unpickled(class_name: str, build: Callable[..., fx.GraphModule], arguments: tuple[Any, ...]) -> Rewired:
    """What ``build``, torch's own way to unpickle a ``GraphModule``, makes, as ``Rewired``."""
    plain = build(*arguments)
    new = Rewired(plain, plain.graph, class_name=class_name)
    vars(new).update(_missing(new, plain))
    return new


def _missing(new: nn.Module, old: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(old).items() if key not in vars(new)}


def _with_graph(owner: nn.Module, graph: fx.Graph, additions: dict[str, nn.Module]) -> fx.GraphModule:
    """A module that computes ``graph`` with the children of ``owner``, of which ``additions`` are new."""
    changed = Rewired(owner, graph, class_name=type(owner).__name__)
    if lost := [name for name in owner.state_dict() if name not in changed.state_dict()]:
        for name in additions:
            delattr(owner, name)
        raise UntraceableError(f"its forward does not use {lost[0]}")
    vars(changed).update(_missing(changed, owner))
    return changed


def _separate(
    owner: nn.Module, graph: fx.Graph, kinds: Kinds, children: Collection[str], additions: dict[str, nn.Module]
) -> None:
    """Let each call of an activation in ``graph`` be one of a module; the new ones are entered in ``additions``.

    Modules of ``owner`` that are not among ``children`` stay as they are.
    """
    called: set[str] = set()
    for node in list(graph.nodes):
        if node.op == "call_module" and isinstance(module := owner.get_submodule(node.target), kinds):
            if node.target in called and node.target in children:
                node.target = _add(owner, node.target.replace(".", "_"), copy.deepcopy(module), additions)
            called.add(node.target)
        elif kind := kind_of(function_of(node), kinds):
            given = {key: value for key, value in node.kwargs.items() if key != "input"}
            if any(isinstance(value, fx.Node) for value in (*node.args[1:], *given.values())):
                continue  # computed at each call, which a module cannot take
            own: Any = kind(*node.args[1:], **given)  # named and ordered as the function's
            own.inplace = False
            child = _add(owner, kind.__name__.lower(), own, additions)
            with graph.inserting_before(node):
                call = graph.call_module(child, (node.args[0] if node.args else node.kwargs["input"],))
            node.replace_all_uses_with(call)
            graph.erase_node(node)


def kind_of(function: object, kinds: Sequence[type[nn.Module]]) -> type[nn.Module] | None:
    """Of ``kinds`` the one whose work ``function`` does."""
    return next((kind for kind in kinds if any(function is each for each in CALLED.get(kind, ()))), None)


def _add(owner: nn.Module, wanted: str, module: nn.Module, additions: dict[str, nn.Module]) -> str:
    """Make ``module`` a child of ``owner`` under a free name, ``wanted`` or one like it, which it returns."""
    name, number = wanted, 1
    while hasattr(owner, name):
        number += 1
        name = f"{wanted}_{number}"
    owner.add_module(name, module)
    additions[name] = module
    return name
