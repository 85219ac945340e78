"""Meta kernels without torch.compile's machinery, for scripts that are over before it would be imported."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_NAME = "torch._dynamo"


@contextmanager
def without_compiler() -> Iterator[None]:
    """Keep the first operator on the meta device from importing ``torch._dynamo``, which takes a second.

    Meta kernels and dispatch modes exempt themselves from compilation by ``torch._dynamo.disable``, which
    they import when they first run. Where nothing is ever compiled, a stand-in that
    returns the function as it is does the same. For a process that compiles later this is not meant: the
    kernels used here would stay unexempted. Does nothing where the real module is loaded already.
    """
    if _NAME in sys.modules:
        yield
        return
    stand_in = types.ModuleType(_NAME)
    stand_in.disable = lambda function, *_, **__: function  # type: ignore[attr-defined]
    sys.modules[_NAME] = torch._dynamo = stand_in
    try:
        yield
    finally:
        del sys.modules[_NAME], torch._dynamo
