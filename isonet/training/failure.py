"""What to tell about a run whose numbers are no longer finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isonet.fast_penalty import ortho_penalty_per_conv
from isonet.ortho import PUBLISHED
from isonet.training.amp import Amp
from isonet.training.step import full_type


class _Found(Exception):  # noqa: N818 - ends a forward pass
    pass


def first_non_finite(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    amp: Amp,
    ortho_coeff: float,
    chunks: int = 1,
    strided: str = PUBLISHED,
) -> str:
    """Where, in the order of computation, a step on this batch first gives a value that is not finite; "": nowhere.

    model: the bare network, with the weights that the step was computed with.
    images, labels: (N, 3, H, W) and (N,), on the model's device, taken in ``chunks`` parts.
    """
    if bad := _bad_weights(model):
        return f"the weights {bad}"
    if not images.isfinite().all():
        return "the images"
    model.zero_grad()
    for part, targets in zip(images.chunk(chunks), labels.chunk(chunks), strict=True):
        try:
            with amp.autocast(), _raise_at_non_finite(model):
                logits = model(part)
        except _Found as found:
            return f"the output of {found}"
        F.cross_entropy(full_type(logits), targets).backward()
    if bad := _bad_gradient(model):
        return f"the gradient of {bad}"
    return _in_penalty(model, ortho_coeff, strided) if ortho_coeff > 0 else ""


def _bad_weights(model: nn.Module) -> str:
    return next((name for name, value in model.state_dict().items() if not value.isfinite().all()), "")


def _bad_gradient(model: nn.Module) -> str:
    """The parameter nearest to the loss: from there a backward pass carries what is not finite to all before it."""
    names = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    return names[-1] if names else ""


@contextmanager
def _raise_at_non_finite(model: nn.Module) -> Iterator[None]:
    def check(name: str, kind: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            if not output.detach().isfinite().all():  # of which a recomputation must find no trace
                raise _Found(f"{name} ({kind})")

        return hook

    leaves = [(n, m) for n, m in model.named_modules() if not list(m.children())]
    hooks = [module.register_forward_hook(check(name, type(module).__name__)) for name, module in leaves]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _in_penalty(model: nn.Module, ortho_coeff: float, strided: str) -> str:
    for name, penalty in ortho_penalty_per_conv(model, strided=strided).items():
        if not penalty.isfinite():
            return f"the penalty of {name}"
    model.zero_grad()
    total = torch.stack(list(ortho_penalty_per_conv(model, strided=strided).values())).sum()
    (ortho_coeff * total).backward()
    bad = _bad_gradient(model)
    return f"the penalty's gradient of {bad}" if bad else ""
