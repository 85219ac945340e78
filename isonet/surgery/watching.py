"""The classes of activations and norms, and a record of the inputs and users of each layer while a network runs."""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from isonet.convs import Conv
from isonet.hooks import hooked
from isonet.surgery.running import ModelError, eight_images, run, tensors

Kinds = tuple[type[nn.Module], ...]

BATCH_STATISTICS: Kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
                           nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)  # fmt: skip
NORMS: Kinds = (*BATCH_STATISTICS, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)
DROPOUTS: Kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
RELUS: Kinds = (nn.ReLU, nn.ReLU6)  # replaced by default: below the cap of 6 both are max(x, 0)
GATES: Kinds = (nn.Sigmoid, nn.Hardsigmoid)  # their output multiplies a signal that bypasses them
NOT_POINTWISE: Kinds = (nn.MultiheadAttention, nn.Softmax, nn.Softmax2d, nn.LogSoftmax)

ATTENTION = (F.softmax, torch.softmax, Tensor.softmax, F.scaled_dot_product_attention)
FUNCTIONS: dict[type[nn.Module], tuple[Callable[..., Any], ...]] = {  # functions with the module's result
    nn.ReLU: (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_),
    nn.ReLU6: (F.relu6,),
    nn.LeakyReLU: (F.leaky_relu,),
    nn.ELU: (F.elu,),
    nn.SiLU: (F.silu,),
    nn.GELU: (F.gelu,),
    nn.Hardswish: (F.hardswish,),
}
_PASSES_ON = (*NORMS, *DROPOUTS, nn.Identity)  # the output has the channels of the input


def is_activation(module: nn.Module) -> bool:
    """Whether ``module`` is one of torch's activations, gates and attention included."""
    return type(module).__module__ == "torch.nn.modules.activation"


def kind_of(function: object, kinds: Iterable[type[nn.Module]] = FUNCTIONS) -> type[nn.Module] | None:
    """Return the first of ``kinds`` that computes what ``function`` computes, or None if there is none."""
    return next((kind for kind in kinds if any(function is each for each in FUNCTIONS.get(kind, ()))), None)


@dataclass(frozen=True)
class Call:
    """One call of a module.

    shape: the shape of the input. dim: the dimension of its channels: the last after a linear layer, else the second.
    source: the module that computed the input, "" if unknown. like: a tensor (0,) of the input's type and device.
    """

    shape: tuple[int, ...]
    dim: int
    source: str
    like: Tensor


@dataclass
class Seen:
    """What ``watch`` records, by the names of modules.

    calls: the calls of modules without children. functions: the kinds of activations that a module calls as functions.
    readers: for a norm, the activations that its output reaches before any other activation, whatever layers are in
    between; for a convolution, the norms or activations that its output reaches first. A function is listed as
    ``owner.function()``.
    written_over: modules whose output, or a view of it, is changed in place after the call.
    """

    calls: dict[str, list[Call]] = field(default_factory=lambda: defaultdict(list))
    functions: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    readers: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    written_over: set[str] = field(default_factory=set)


def watch(model: nn.Module, example: Tensor) -> Seen:
    """Run a copy of ``model`` in evaluation mode on ``example`` and in training mode on eight images."""
    probe, seen = copy.deepcopy(model), Seen()
    run(_Watch(probe.eval(), seen), example)
    with torch.random.fork_rng(list({parameter.device for parameter in probe.parameters() if parameter.is_cuda})):
        torch.manual_seed(0)
        with suppress(ModelError):  # some networks need labels in training
            run(_Watch(probe.train(), seen), eight_images(example))
    return seen


class _Watch(TorchFunctionMode):
    """Calls ``model`` once, and records the inputs and users of its layers in ``seen``."""

    def __init__(self, model: nn.Module, seen: Seen) -> None:
        super().__init__()
        self.model, self.seen = model, seen
        self.modules = dict(model.named_modules())
        self.stack: list[tuple[str, nn.Module]] = [("", model)]  # modules that are being called, the innermost last
        self.made_by: dict[int, tuple[str, str]] = {}  # id of a tensor -> module, and the module of its channels
        self.unread: dict[int, frozenset[str]] = {}  # id of a tensor -> convolutions and norms that await a reader
        self.outputs: list[tuple[str, Tensor, int]] = []  # module, its output, in-place changes of it so far
        self.kept: list[Tensor] = []  # an id belongs to a tensor only as long as the tensor exists

    def __call__(self, example: Tensor) -> Any:
        layers = self.modules.items()
        try:
            with (
                hooked(module.register_forward_pre_hook(partial(self._enter, name)) for name, module in layers),
                hooked(module.register_forward_hook(self._leave) for _, module in layers),
                self,
            ):
                return self.model(example)
        finally:
            self.seen.written_over |= {name for name, x, changes in self.outputs if _in_place_changes(x) != changes}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, module = self.stack[-1]
        kind, unread = kind_of(func), self._unread_in((args, kwargs))
        outside = kind and not isinstance(module, kind)  # the call is not inside a module of this kind
        if kind and outside:
            self.seen.functions[name].add(kind.__name__)
        if outside or any(func is each for each in ATTENTION):
            unread = self._read(unread, f"{name}.{func.__name__}()".lstrip("."))
        result = func(*args, **kwargs)
        self._note(result, unread)
        return result

    def _enter(self, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.stack.append((name, module))
        if inputs and isinstance(x := inputs[0], Tensor) and not list(module.children()):
            source, layer = self.made_by.get(id(x), ("", ""))
            dim = -1 if isinstance(self.modules[layer], nn.Linear) and x.ndim > 2 else 1
            self.seen.calls[name].append(Call(tuple(x.shape), dim, source, x.new_empty(0)))
        elif isinstance(module, NORMS):  # a norm that contains an activation also uses the convolution
            self._read(self._unread_in(inputs), name)

    def _leave(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        name, _ = self.stack.pop()
        unread, is_leaf = self._unread_in(inputs), not list(module.children())
        if is_activation(module) and not isinstance(module, GATES):
            self._note(output, self._read(unread, name))
        elif isinstance(module, NORMS):
            norms = frozenset(each for each in unread if isinstance(self.modules[each], NORMS))
            self._read(unread - norms, name)
            self._note(output, norms | {name} if is_leaf else self._unread_in(output))
        elif isinstance(module, Conv):
            self._note(output, unread | {name})
        if isinstance(output, Tensor) and is_leaf:
            passes_on = isinstance(module, _PASSES_ON) and inputs
            self.made_by[id(output)] = name, self.made_by.get(id(inputs[0]), ("", ""))[1] if passes_on else name
            self.outputs.append((name, output, _in_place_changes(output)))

    def _unread_in(self, values: Any) -> frozenset[str]:
        return frozenset[str]().union(*(self.unread.get(id(x), ()) for x in tensors(values)))

    def _note(self, values: Any, unread: frozenset[str]) -> None:
        for x in tensors(values):
            self.unread[id(x)] = unread
            self.kept.append(x)

    def _read(self, unread: Iterable[str], reader: str) -> frozenset[str]:
        """Record ``reader`` for all of ``unread``, and return the empty set, because nothing remains unread."""
        for name in unread:
            self.seen.readers[name].add(reader)
        return frozenset()


def _in_place_changes(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version
