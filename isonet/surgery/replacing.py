"""Replaces activations and norms of a rewired network, and initialises its convolutions."""

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor, nn

from isonet.convs import Conv, is_7x7_stem, named_convs
from isonet.init import delta_init_
from isonet.models.layers import SReLU
from isonet.ortho import penalised_convs
from isonet.surgery.report import IsometrizedReport
from isonet.surgery.rewiring import exchange
from isonet.surgery.watching import NORMS, NOT_POINTWISE, Kinds, Seen, is_activation

_NOT_REACHED = "the example does not reach it"
_NO_SRELU = "no activation becomes SReLU"


class Copied(nn.Identity):
    """Replaces a norm whose output the network overwrites, because the layer before it may need its own output."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


@dataclass
class Replacing:
    """Changes ``model`` in place, except for the modules that are named in ``left_out``.

    seen: the result of ``watch`` for ``model``. report: the report to which the changes, and the modules that stay with
    the reason, are added.
    """

    model: nn.Module
    seen: Seen
    left_out: Collection[str]
    report: IsometrizedReport

    def activations(self, kinds: Kinds, unread: dict[str, str]) -> None:
        """Replace each module of ``kinds`` by an ``SReLU`` if the number of its channels is known.

        unread: the modules whose forward ``torch.fx`` cannot trace, by name, with the reason.
        """
        for name, module in list(self.model.named_modules()):
            if name in self.left_out:
                continue
            if not isinstance(module, kinds):
                if is_activation(module) and not isinstance(module, NOT_POINTWISE):
                    self.report.leave(name, module, "not asked for")
                continue
            calls = self.seen.calls[name]
            where = {(call.shape[call.dim], call.dim) for call in calls}
            if not calls:
                self.report.leave(name, module, _NOT_REACHED)
            elif len(where) > 1:
                widths = " and ".join(str(channels) for channels, _ in sorted(where))
                why = unread.get(name.rpartition(".")[0], "the module is shared")
                self.report.leave(name, module, f"called with {widths} channels; {why}")
            elif name in self.seen.written_over:
                self.report.leave(name, module, "its output, which SReLU needs, is written over")
            else:
                ((channels, dim),) = where
                exchange(self.model, module, SReLU(channels, dim=dim).to(calls[0].like))
                self.report.activations[name] = type(module).__name__
        for name, called in self.seen.functions.items():
            if name not in self.left_out:
                why = unread.get(name, "not asked for")
                self.report.left[name] = f"{', '.join(sorted(called))} as a function: {why}"

    def norms(self, normalisation: bool | None) -> None:
        """Replace norms of feature maps by the identity, and give their convolutions a bias where no SReLU follows.

        normalisation: see ``isometrize``.
        """
        modules = {name: module for name, module in self.model.named_modules() if name not in self.left_out}
        norms = [name for name, module in modules.items() if isinstance(module, NORMS)]
        if normalisation is True:
            return
        for name in norms:
            calls = self.seen.calls[name]
            if not calls or any(len(call.shape) < 3 for call in calls):
                self.report.leave(name, modules[name], "its input is no feature map, or it contains other modules")
        for name, why in self._needed(norms).items() if normalisation is None else ():
            self.report.leave(name, modules[name], why)
        for name in norms:
            if name in self.report.left:
                continue
            exchange(self.model, modules[name], Copied() if name in self.seen.written_over else nn.Identity())
            self.report.norms_removed[name] = type(modules[name]).__name__
            source = self.seen.calls[name][0].source
            conv = modules.get(source)
            shifted = self.report.activations and self.seen.readers[name] <= self.report.activations.keys()
            if isinstance(conv, Conv) and conv.bias is None and not shifted:
                conv.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels))
                self.report.biases_added.append(source)

    def _needed(self, norms: list[str]) -> dict[str, str]:
        """Return the norms that stay by default, with the reason: an activation that uses them becomes no SReLU."""
        srelus = self.report.activations.keys()
        if not srelus:
            return dict.fromkeys(norms, _NO_SRELU)
        others = {name: sorted(self.seen.readers[name] - srelus) for name in norms}
        needed = {name: f"used by {readers[0]}, which is no SReLU" for name, readers in others.items() if readers}
        if needed:  # a norm before the head is removed only if all norms are removed
            needed |= {name: "no activation uses it" for name in norms if not self.seen.readers[name]}
        return needed

    def weights(self, delta: bool | None) -> None:
        """Write the delta initialisation, and record which convolutions it and the penalty include.

        delta: see ``isometrize``.
        """
        report = self.report
        norms = {name for name, module in self.model.named_modules() if isinstance(module, NORMS)}
        penalised = dict(penalised_convs(self.model))
        for name, conv in named_convs(self.model):
            if name in self.left_out:
                continue
            images = "3 output channels" if conv.transposed else "3 input channels"
            special = "a 7x7 stem" if is_7x7_stem(conv) else images
            readers = sorted(self.seen.readers[name] & norms)
            if delta is False:
                report.not_initialised[name] = _NO_SRELU if report.unchanged else "not asked for"
            elif is_7x7_stem(conv):
                report.not_initialised[name] = special
            elif delta is None and (readers or not self.seen.calls[name]):
                report.not_initialised[name] = f"used by a norm that stays, {readers[0]}" if readers else _NOT_REACHED
            else:
                delta_init_(conv)
                report.initialised.append(name)
            if name in penalised:
                report.penalised.append(name)
            else:
                report.not_penalised[name] = special
