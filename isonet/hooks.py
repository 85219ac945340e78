"""A context manager for hooks on modules."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch.utils.hooks import RemovableHandle


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Keep hooks registered while the ``with`` block runs, and remove them even if it raises an error.

    handles: the return values of ``register_forward_hook`` and similar methods, for example
    ``hooked(module.register_forward_hook(hook) for module in modules)``.
    """
    registered: list[RemovableHandle] = []
    try:
        registered.extend(handles)
        yield
    finally:
        for handle in registered:
            handle.remove()
