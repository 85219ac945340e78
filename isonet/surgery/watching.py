"""What happens inside somebody else's network when it is run on an example."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from isonet.convs import Conv
from isonet.errors import UserError
from isonet.surgery.rewiring import CALLED, NORMS, first_line, kind_of

_PASSES_ON = (*NORMS, nn.modules.dropout._DropoutNd, nn.Identity)  # the output has the channels of the input
_GATES = (nn.Sigmoid, nn.Hardsigmoid)  # they weigh a signal, and the signal itself bypasses them
_ATTENTION = (F.softmax, torch.softmax, Tensor.softmax, F.scaled_dot_product_attention)


class ModelError(UserError, ValueError):
    """A network that cannot be made isometric as asked."""


@dataclass(frozen=True)
class Call:
    """One call of a module: its input, and the module that made that ("": none that is known).

    layer: the module that made the channels, which norms, dropout and identities only pass on.
    """

    shape: tuple[int, ...]
    source: str
    layer: str
    like: Tensor  # (0,), of the input's type and device


def is_activation(module: nn.Module) -> bool:
    """Whether ``module`` is one of torch's activations, gates and attention included."""
    return type(module).__module__ == "torch.nn.modules.activation"


class Watch(TorchFunctionMode):
    """While active: records what each module without children reads, and which activations are called as functions.

    ``readers[name]``: for a norm the activations that its output reaches before any other activation, whatever layers
    lie between; for a convolution the norms or activations that its output reaches first. A function is listed as
    ``owner.function()``. Several runs add up.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.calls: dict[str, list[Call]] = defaultdict(list)
        self.functions: dict[str, set[str]] = defaultdict(set)  # module -> names of activations
        self.readers: dict[str, set[str]] = defaultdict(set)
        self.written_over: set[str] = set()  # modules whose output, or a view of it, is changed in place after the call
        self._clear()

    def _clear(self) -> None:
        self._made_by: dict[int, tuple[str, str]] = {}  # id of a tensor -> module, layer
        self._unread: dict[int, frozenset[str]] = {}  # id of a tensor -> convs and norms that await a reader
        self._made: list[tuple[str, Tensor, int]] = []  # module, output, how often that had been written to
        self._kept: list[Tensor] = []  # an id is a tensor's only as long as the tensor exists
        self._stack: list[tuple[str, nn.Module]] = []

    def __enter__(self) -> Watch:
        self._hooks = []
        for name, module in self.model.named_modules():
            self._hooks.append(
                module.register_forward_pre_hook(lambda m, inputs, name=name: self._enter(name, m, inputs))
            )
            self._hooks.append(module.register_forward_hook(lambda m, inputs, output: self._leave(inputs, output)))
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        for hook in self._hooks:
            hook.remove()
        self.written_over |= {name for name, output, writes in self._made if _writes(output) != writes}
        self._clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind, (name, module) = kind_of(func, list(CALLED)), self._stack[-1] if self._stack else ("", self.model)
        unread = self._unread_in((args, kwargs))
        if kind and not isinstance(module, kind):
            self.functions[name].add(kind.__name__)
        if (kind and not isinstance(module, kind)) or any(func is each for each in _ATTENTION):
            unread = self._read(unread, f"{name}.{func.__name__}()".lstrip("."))
        result = func(*args, **kwargs)
        self._note(result, unread)
        return result

    def _enter(self, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._stack.append((name, module))
        if inputs and isinstance(x := inputs[0], Tensor) and not list(module.children()):
            self.calls[name].append(Call(tuple(x.shape), *self._made_by.get(id(x), ("", "")), x.new_empty(0)))
        elif isinstance(module, NORMS):  # one with an activation inside, which reads the convolution, too
            self._read(self._unread_in(inputs), name)

    def _leave(self, inputs: tuple[Any, ...], output: Any) -> None:
        name, module = self._stack.pop()
        unread = self._unread_in(inputs)
        if is_activation(module) and not isinstance(module, _GATES):
            self._note(output, self._read(unread, name))
        elif isinstance(module, NORMS):
            convs = {each for each in unread if not isinstance(self.model.get_submodule(each), NORMS)}
            self._read(convs, name)
            self._note(output, self._unread_in((output,)) if list(module.children()) else (unread - convs) | {name})
        elif isinstance(module, Conv):
            self._note(output, unread | {name})
        if isinstance(output, Tensor) and not list(module.children()):
            passed_on = isinstance(module, _PASSES_ON) and inputs
            layer = self._made_by.get(id(inputs[0]), ("", ""))[1] if passed_on else name
            self._made_by[id(output)] = name, layer
            self._made.append((name, output, _writes(output)))

    def _unread_in(self, values: Any) -> frozenset[str]:
        return frozenset[str]().union(*(self._unread.get(id(x), ()) for x in tensors(values)))

    def _note(self, values: Any, unread: frozenset[str]) -> None:
        for x in tensors(values):
            self._unread[id(x)] = unread
            self._kept.append(x)

    def _read(self, unread: Iterable[str], reader: str) -> frozenset[str]:
        """Enter ``reader`` for all of ``unread``; returns what is unread then: nothing."""
        for name in unread:
            self.readers[name].add(reader)
        return frozenset()


def _writes(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def run(model: nn.Module, example: Tensor, watch: Watch | None = None) -> Any:
    """What ``model`` makes of ``example``, which stays as it is. Raises ``ModelError`` where it cannot take it."""
    try:
        if watch is None:
            return model(example.clone())
        with watch:
            return model(example.clone())
    except Exception as error:  # other people's code, which raises whatever it likes
        shape = tuple(example.shape)
        raise ModelError(f"the network does not run on an example of shape {shape} ({first_line(error)})") from error


def same(one: Any, other: Any) -> bool:
    """Whether two results are equal: tensors, anything else, containers of them."""
    parts, others = _parts(one), _parts(other)
    if parts is not None and others is not None:
        return parts.keys() == others.keys() and all(same(part, others[key]) for key, part in parts.items())
    try:
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    except AssertionError:
        return False
    except TypeError:  # of what are no numbers
        return bool(one == other)
    return True


def tensors(result: Any) -> Iterator[Tensor]:
    """Those in a result."""
    if isinstance(result, Tensor):
        yield result
    for part in (_parts(result) or {}).values():
        yield from tensors(part)


def _parts(result: Any) -> dict[Any, Any] | None:
    """What a container holds; None: ``result`` is none."""
    if isinstance(result, Mapping):
        return dict(result)
    if isinstance(result, Sequence) and not isinstance(result, str | bytes):
        return dict(enumerate(result))
    return vars(result) if is_dataclass(result) and hasattr(result, "__dict__") else None
