"""What happens inside somebody else's network when it is run on an example."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from isonet.errors import UserError
from isonet.rewiring import CALLED, NORMS, first_line, kind_of

_PASSES_ON = (*NORMS, nn.modules.dropout._DropoutNd, nn.Identity)  # the channels of their input


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


class Watch(TorchFunctionMode):
    """While active: what each module without children is given, and which activations are called as functions."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.calls: dict[str, list[Call]] = defaultdict(list)
        self.functions: dict[str, set[str]] = defaultdict(set)  # module -> names of activations
        self._made_by: dict[int, tuple[str, str]] = {}  # by id, kept by keeping the tensor: module, layer
        self._made: list[tuple[str, Tensor, int]] = []  # module, output, how often that had been written to
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

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind, (name, module) = kind_of(func, list(CALLED)), self._stack[-1] if self._stack else ("", self.model)
        if kind and not isinstance(module, kind):
            self.functions[name].add(kind.__name__)
        return func(*args, **(kwargs or {}))

    def _enter(self, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._stack.append((name, module))
        if inputs and isinstance(x := inputs[0], Tensor) and not list(module.children()):
            self.calls[name].append(Call(tuple(x.shape), *self._made_by.get(id(x), ("", "")), x.new_empty(0)))

    def _leave(self, inputs: tuple[Any, ...], output: Any) -> None:
        name, module = self._stack.pop()
        if isinstance(output, Tensor) and not list(module.children()):
            passed_on = isinstance(module, _PASSES_ON) and inputs
            layer = self._made_by.get(id(inputs[0]), ("", ""))[1] if passed_on else name
            self._made_by[id(output)] = name, layer
            self._made.append((name, output, _writes(output)))

    def written_over(self) -> set[str]:
        """Modules whose output, or a view of it, was changed in place after they had made it."""
        return {name for name, output, writes in self._made if _writes(output) != writes}


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
