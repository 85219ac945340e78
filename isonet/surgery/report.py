"""What ``isometrize`` changed in a network and what it left, and its warnings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from isonet.surgery.health import Health

_SHOWN = 4  # names listed of each kind


class DeadNetworkWarning(UserWarning):
    """Gradient descent cannot train the network."""


class UnchangedNetworkWarning(UserWarning):
    """No activation of the network becomes SReLU, so ``isometrize`` returns it as it is."""


@dataclass
class IsometrizedReport:
    """What ``isometrize`` did to a network, by the names of its modules.

    activations: modules that are SReLU now, with their former class. norms_removed: modules that are the identity now,
    with their former class. biases_added: convolutions that got a bias. multipliers: ``ResMultiplier`` modules, one for
    each residual branch. rewired: modules that became a ``torch.fx.GraphModule``. initialised, penalised: convolutions
    that the initialisation and the penalty include. not_initialised, not_penalised: the others, with the reason. left:
    activations, norms and sums that stay, with the reason. unchanged: why the network stays as it is; empty if it
    changed. health: whether the network can learn; None if that was not measured. not_measured: the reason. advised:
    arguments of ``isometrize`` that give a network that can learn.
    """

    activations: dict[str, str] = field(default_factory=dict)
    norms_removed: dict[str, str] = field(default_factory=dict)
    biases_added: list[str] = field(default_factory=list)
    multipliers: list[str] = field(default_factory=list)
    rewired: list[str] = field(default_factory=list)
    initialised: list[str] = field(default_factory=list)
    not_initialised: dict[str, str] = field(default_factory=dict)
    penalised: list[str] = field(default_factory=list)
    not_penalised: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    unchanged: str = ""
    health: Health | None = None
    not_measured: str = ""
    advised: dict[str, Any] = field(default_factory=dict)

    def leave(self, name: str, module: nn.Module, why: str) -> None:
        """Enter that a module stays, unless a reason was entered before."""
        self.left.setdefault(name, f"{type(module).__name__}: {why}")

    def __str__(self) -> str:
        lines = [
            _line("activations are SReLU now", self.activations),
            _line("norms removed", self.norms_removed),
            _line("convolutions got a bias", self.biases_added),
            _line("residual branches got a multiplier", self.multipliers),
            _line("modules rewired by torch.fx, their parameters' names kept", self.rewired),
            _line("convolutions start as the identity", self.initialised),
            _line("convolutions keep their weights", self.not_initialised),
            _line("convolutions count in the penalty", self.penalised),
            _line("convolutions do not count in the penalty", self.not_penalised),
            _line("left as it was", self.left),
            *([] if self.activations else ["no activation is SReLU: also=(...) names further kinds to replace"]),
            str(self.health or f"health not measured: {self.not_measured}"),
        ]
        return "\n".join(lines)


def _line(what: str, found: Iterable[str]) -> str:
    reasons = found if isinstance(found, dict) else dict.fromkeys(found, "")
    listed = [f"{name or 'the network itself'}{f' ({why})' if why else ''}" for name, why in reasons.items()]
    shown = ", ".join(listed[:_SHOWN]) + (", ..." if len(listed) > _SHOWN else "")
    return f"{len(listed):4} {what}{': ' if listed else ''}{shown}"
