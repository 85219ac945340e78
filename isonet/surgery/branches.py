"""Which sums in a module's graph close a residual block."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch import fx, nn

from isonet.convs import named_convs

_SUMS = (operator.add, operator.iadd, torch.add, torch.Tensor.add, torch.Tensor.add_)
_PRODUCTS = (operator.mul, torch.mul, torch.Tensor.mul)


def function_of(node: fx.Node) -> object:
    """The function or method of ``torch.Tensor`` that ``node`` calls; None if it calls none."""
    if node.op == "call_method":
        return getattr(torch.Tensor, str(node.target), None)
    return node.target if node.op == "call_function" else None


def sums_of_convs(owner: nn.Module, graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Each sum of two different results, and the one of the two that passes through more convolutions."""
    for node in list(graph.nodes):
        terms = node.all_input_nodes
        if function_of(node) in _SUMS and len(terms) == 2:
            convs = [_convs(owner, _ancestors(term)) for term in terms]
            if any(convs):
                yield node, terms[convs.index(max(convs))]


def no_residual_branch(owner: nn.Module, node: fx.Node, branch: fx.Node) -> str:
    """Why ``branch`` is not a residual branch of the sum ``node``; empty if it is one.

    The other term of the sum must be the input of the branch, or a projection of that input.
    """
    (shortcut,) = [term for term in node.all_input_nodes if term is not branch]
    through, past = _ancestors(branch), _ancestors(shortcut)
    own, projection = _convs(owner, through - past), _convs(owner, past - through)
    projects = past & through and projection <= 1 < own and not _convs(owner, past & through)
    if not own or not (past <= through or projects):
        return "a sum that is no residual block's"
    for scale in (other for other in through - past if other.op == "get_attr"):
        if any(function_of(user) in _PRODUCTS for user in scale.users):
            return f"a residual branch that has a scale, {scale.target}"
    return ""


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """``node`` and everything that it is computed from."""
    found: set[fx.Node] = set()
    pending = [node]
    while pending:
        if (each := pending.pop()) not in found:
            found.add(each)
            pending += each.all_input_nodes
    return found


def _convs(owner: nn.Module, nodes: set[fx.Node]) -> int:
    """The number of convolutions that ``nodes`` call."""
    called = [owner.get_submodule(str(node.target)) for node in nodes if node.op == "call_module"]
    return sum(len(list(named_convs(module))) for module in called)
