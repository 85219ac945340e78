"""Makes every call of an activation a separate module, and gives every residual branch a multiplier.

A module may call the same ``nn.ReLU`` several times, or call ``F.relu``. Such a call is not a separate module, so no
module can hold its parameters. ``torch.fx`` traces the module's own ``forward``, with its children as leaf modules. If
the calls need separate modules, a ``GraphModule`` with the same computation and more submodules replaces the module.
All other modules stay the same objects, and the names of parameters do not change.
"""

import copy
import operator
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx, nn

from isonet.convs import named_convs
from isonet.models.layers import ResMultiplier
from isonet.surgery.report import IsometrizedReport
from isonet.surgery.running import first_line
from isonet.surgery.watching import Kinds, kind_of

_SUMS = (operator.add, operator.iadd, torch.add, torch.Tensor.add, torch.Tensor.add_)
_PRODUCTS = (operator.mul, torch.mul, torch.Tensor.mul)


class UntraceableError(Exception):
    """Raised if ``torch.fx`` cannot trace a module's forward. The message gives the reason."""


def rewire(
    model: nn.Module, kinds: Kinds, scaled: bool, left_out: Collection[str], report: IsometrizedReport
) -> tuple[nn.Module, dict[str, str]]:
    """Rewire ``model`` in place. Return the model (or its replacement), and a dictionary from the name of each module
    that cannot be traced to the reason.

    kinds: activation classes; each call of one becomes a separate submodule that is not in place: the first keeps its
    name ``relu``, the next are ``relu_2``, ``relu_3``. scaled: whether to add a ``ResMultiplier`` of 1 to each residual
    branch. left_out: names of modules to leave unchanged. report: the report that receives the rewired modules, the
    multipliers, and the sums that are left.
    """
    names = [name for name, _ in model.named_modules() if name not in left_out]
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, kinds) and name and name not in left_out:  # each name has a separate activation
            model.set_submodule(name, copy.deepcopy(module))
    unread: dict[str, str] = {}
    for name in reversed(names):  # children before their parents
        owner = model.get_submodule(name)
        forward = getattr(type(owner), "forward", None)  # a ScriptModule has none
        if getattr(forward, "__module__", "").startswith("torch.nn."):
            continue  # torch's layers call one function, and a Sequential calls each child once
        children = {key for key, _ in owner.named_modules() if _join(name, key) not in left_out}
        try:
            draft = _Draft(owner)
            draft.separate(kinds, children)
            faults = draft.multiply() if scaled else {}
            changed = draft.finished()
        except UntraceableError as error:
            unread[name] = str(error)
            continue
        report.left = {**{_join(name, key): why for key, why in faults.items()}, **report.left}
        added = draft.additions.items()
        report.multipliers[:0] = [_join(name, key) for key, child in added if isinstance(child, ResMultiplier)]
        if changed is not owner:
            report.rewired.insert(0, name)
            model = exchange(model, owner, changed)
    return model, unread


def exchange(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Replace ``old`` by ``new`` in ``model``. Return the model, which is ``new`` if the model itself was ``old``."""
    new.training = old.training
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module is old and name:
            model.set_submodule(name, new)
    return new if model is old else model


def own_graph(owner: nn.Module) -> fx.Graph:
    """Trace ``owner``'s own forward, with its children as leaf modules. Raises ``UntraceableError``."""
    if owner._forward_hooks or owner._forward_pre_hooks:
        raise UntraceableError("it has hooks")
    before, graphs = owner.training, []
    try:
        for owner.training in (True, False):
            graphs.append(_OwnForward().trace(owner))
    except Exception as error:  # other people's code may raise anything when it is called with proxies
        raise UntraceableError(f"torch.fx cannot trace its forward ({first_line(error)})") from None
    finally:
        owner.training = before
    if graphs[0].python_code("self").src != graphs[1].python_code("self").src:
        raise UntraceableError("its forward differs between training and evaluation")
    return graphs[1]


class _OwnForward(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class _Draft:
    """The graph of ``owner`` while it changes, and the modules to add to ``owner`` for it."""

    def __init__(self, owner: nn.Module) -> None:
        self.owner, self.graph = owner, own_graph(owner)
        self.additions: dict[str, nn.Module] = {}

    def separate(self, kinds: Kinds, children: Collection[str]) -> None:
        """Make each call of an activation a call of a separate module, except for modules outside ``children``."""
        called: set[str] = set()
        for node in list(self.graph.nodes):
            if node.op == "call_module" and isinstance(module := self.owner.get_submodule(node.target), kinds):
                if node.target in called and node.target in children:
                    node.target = self._add(node.target.replace(".", "_"), copy.deepcopy(module))
                called.add(node.target)
            elif kind := kind_of(function_of(node), kinds):
                given = {key: value for key, value in node.kwargs.items() if key != "input"}
                if any(isinstance(value, fx.Node) for value in (*node.args[1:], *given.values())):
                    continue  # a module cannot take an argument that is computed at each call
                own: Any = kind(*node.args[1:], **given)  # its arguments have the function's names and order
                own.inplace = False
                x = node.args[0] if node.args else node.kwargs["input"]
                node.op, node.target = "call_module", self._add(kind.__name__.lower(), own)
                node.args, node.kwargs = (x,), {}

    def multiply(self) -> dict[str, str]:
        """Add a multiplier to each residual branch, and return the other sums of convolutions, with the reason.

        The branch is the term that passes through more convolutions.
        """
        faults: dict[str, str] = {}

        def depth(term: fx.Node) -> int:
            return _convs(self.owner, _ancestors(term))

        for node in [each for each in self.graph.nodes if function_of(each) in _SUMS]:
            if len(node.all_input_nodes) != 2 or not any(map(depth, node.all_input_nodes)):
                continue
            branch, shortcut = sorted(node.all_input_nodes, key=depth, reverse=True)
            if fault := no_residual_branch(self.owner, branch, shortcut):
                faults[node.name] = fault
                continue
            child = self._add("multiplier", ResMultiplier(1.0))
            with self.graph.inserting_before(node):
                node.replace_input_with(branch, self.graph.call_module(child, (branch,)))
        return faults

    def finished(self) -> nn.Module:
        """Return ``owner`` if nothing was added, else the ``GraphModule`` that replaces it."""
        if not self.additions:
            return self.owner
        changed = Rewired(self.owner, self.graph, type(self.owner).__name__)
        if lost := [name for name in self.owner.state_dict() if name not in changed.state_dict()]:
            for name in self.additions:
                delattr(self.owner, name)
            raise UntraceableError(f"its forward does not use {lost[0]}")
        return changed

    def _add(self, wanted: str, module: nn.Module) -> str:
        """Make ``module`` a child of ``owner``, and return its name: ``wanted``, or the next free name like it."""
        name, number = wanted, 1
        while hasattr(self.owner, name):
            number += 1
            name = f"{wanted}_{number}"
        self.owner.add_module(name, module)
        self.additions[name] = module
        return name


class Rewired(fx.GraphModule):
    """A ``GraphModule`` that keeps plain attributes in copies and pickles, because other code may read them."""

    def __init__(self, root: nn.Module, graph: fx.Graph, class_name: str) -> None:
        super().__init__(root, graph, class_name)
        vars(self).update(_missing(self, root))

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.GraphModule:
        new = super().__deepcopy__(memo)
        vars(new).update(copy.deepcopy(_missing(new, self), memo))
        return new

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _unpickled, (type(self).__name__, *super().__reduce__())


def _unpickled(class_name: str, build: Callable[..., fx.GraphModule], arguments: tuple[Any, ...]) -> Rewired:
    """Return, as ``Rewired``, the ``GraphModule`` that torch's own function ``build`` unpickles."""
    plain = build(*arguments)
    return Rewired(plain, plain.graph, class_name)


def _missing(new: nn.Module, old: nn.Module) -> dict[str, Any]:
    """Return the attributes of ``old`` that ``new`` lacks."""
    return {key: value for key, value in vars(old).items() if key not in vars(new)}


def _join(owner: str, name: str) -> str:
    return f"{owner}.{name}" if owner else name


def function_of(node: fx.Node) -> object:
    """Return the function or method of ``torch.Tensor`` that ``node`` calls, or None if it calls none."""
    if node.op == "call_method":
        return getattr(torch.Tensor, str(node.target), None)
    return node.target if node.op == "call_function" else None


def no_residual_branch(owner: nn.Module, branch: fx.Node, shortcut: fx.Node) -> str:
    """Return why ``branch`` is not a residual branch in the sum with ``shortcut``, or an empty string if it is one.

    The shortcut must be the input of the branch, or a projection of that input.
    """
    through, past = _ancestors(branch), _ancestors(shortcut)
    own, projection = _convs(owner, through - past), _convs(owner, past - through)
    projects = past & through and projection <= 1 < own and not _convs(owner, past & through)
    if not own or not (past <= through or projects):
        return "a sum outside of a residual block"
    for scale in (other for other in through - past if other.op == "get_attr"):
        if any(function_of(user) in _PRODUCTS for user in scale.users):
            return f"a residual branch that has a scale, {scale.target}"
    return ""


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """Return ``node`` and all nodes on which it depends."""
    ancestors: set[fx.Node] = set()
    pending = [node]
    while pending:
        if (each := pending.pop()) not in ancestors:
            ancestors.add(each)
            pending += each.all_input_nodes
    return ancestors


def _convs(owner: nn.Module, nodes: set[fx.Node]) -> int:
    """The number of convolutions that ``nodes`` call."""
    called = [owner.get_submodule(str(node.target)) for node in nodes if node.op == "call_module"]
    return sum(len(list(named_convs(module))) for module in called)
