"""Training and evaluation. Names load on first use: a script reads its config before it imports torch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isonet.training.metrics import Evaluation, evaluate
    from isonet.training.optim import build_optimizer, learning_rate_at, set_learning_rate
    from isonet.training.step import TrainStep

__all__ = ["Evaluation", "TrainStep", "build_optimizer", "evaluate", "learning_rate_at", "set_learning_rate"]

_MODULES = {"Evaluation": "metrics", "evaluate": "metrics", "TrainStep": "step"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'optim')}"), name)
