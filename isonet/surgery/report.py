"""What ``isometrize`` changed in a network, and what it left."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from isonet.surgery.health import Health

_SHOWN = 4  # names listed of each kind


@dataclass
class IsometrizedReport:
    """What ``isometrize`` did to a network, by the names that the modules have in it."""

    activations: dict[str, str] = field(default_factory=dict)  # now SReLU: what it was
    norms_removed: dict[str, str] = field(default_factory=dict)  # now the identity: what it was
    biases_added: list[str] = field(default_factory=list)  # convolutions
    multipliers: list[str] = field(default_factory=list)  # ResMultiplier, each on a residual branch
    rewired: list[str] = field(default_factory=list)  # modules that became a torch.fx.GraphModule to hold the new ones
    initialised: list[str] = field(default_factory=list)  # convolutions
    not_initialised: dict[str, str] = field(default_factory=dict)  # convolutions: why
    penalised: list[str] = field(default_factory=list)  # convolutions
    not_penalised: dict[str, str] = field(default_factory=dict)  # convolutions: why
    left: dict[str, str] = field(default_factory=dict)  # activations, norms, sums that stay: why
    unchanged: str = ""  # why the network stays as it is; empty: it changed
    health: Health | None = None  # whether the network can learn; None: not measured
    not_measured: str = ""  # why ``health`` is None
    advised: dict[str, Any] = field(default_factory=dict)  # arguments of isometrize that give a network that can learn

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
