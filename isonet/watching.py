"""What happens inside somebody else's network when it is run on an example."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from isonet.errors import UserError
from isonet.rewiring import CALLED, first_line, kind_of


class ModelError(UserError, ValueError):
    """A network that cannot be made isometric as asked."""


@dataclass(frozen=True)
class Call:
    """One call of a module: its input, and the module that made that ("": none that is known)."""

    shape: tuple[int, ...]
    source: str
    like: Tensor  # (0,), of the input's type and device


class Watch(TorchFunctionMode):
    """While active: what each module without children is given, and which activations are called as functions."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.calls: dict[str, list[Call]] = defaultdict(list)
        self.functions: dict[str, set[str]] = defaultdict(set)  # module -> names of activations
        self._made_by: dict[int, tuple[str, Tensor]] = {}  # by id, which keeping the tensor keeps its own
        self._stack: list[tuple[str, nn.Module]] = []

    def __enter__(self) -> Watch:
        self._hooks = []
        for name, module in self.model.named_modules():
            self._hooks.append(
                module.register_forward_pre_hook(lambda m, inputs, name=name: self._enter(name, m, inputs))
            )
            self._hooks.append(module.register_forward_hook(lambda m, inputs, output, name=name: self._leave(output)))
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        for hook in self._hooks:
            hook.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind, (name, module) = kind_of(func, list(CALLED)), self._stack[-1] if self._stack else ("", self.model)
        if kind and not isinstance(module, kind):
            self.functions[name].add(kind.__name__)
        return func(*args, **(kwargs or {}))

    def _enter(self, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._stack.append((name, module))
        if inputs and isinstance(x := inputs[0], Tensor) and not list(module.children()):
            source = self._made_by.get(id(x), ("", x))[0]
            self.calls[name].append(Call(tuple(x.shape), source, x.new_empty(0)))

    def _leave(self, output: Any) -> None:
        name, module = self._stack.pop()
        if isinstance(output, Tensor) and not list(module.children()):
            self._made_by[id(output)] = name, output


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
    """Whether two results, tensors or containers of them, are equal."""
    try:
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    except AssertionError:
        return False
    return True
