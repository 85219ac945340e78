"""Hooks on modules for the length of a ``with`` block."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch.utils.hooks import RemovableHandle


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Keep hooks registered while the block runs, and remove them however it ends.

    handles: what ``register_forward_hook`` and its like return, for example
    ``hooked(module.register_forward_hook(hook) for module in modules)``.
    """
    registered: list[RemovableHandle] = []
    try:
        registered.extend(handles)
        yield
    finally:
        for handle in registered:
            handle.remove()
