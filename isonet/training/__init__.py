"""Training and evaluation."""

from isonet.training.evaluate import Evaluation, evaluate
from isonet.training.optim import build_optimizer, set_learning_rate
from isonet.training.schedule import learning_rate_at
from isonet.training.step import TrainStep

__all__ = ["Evaluation", "TrainStep", "build_optimizer", "evaluate", "learning_rate_at", "set_learning_rate"]
