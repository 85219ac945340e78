"""Activation checkpointing: what lies between a few blocks is forgotten, and computed again in the backward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_recomputed(stage: nn.Sequential, x: Tensor) -> Tensor:
    """``stage(x)``, of whose blocks' activations only every square-root-th stays in memory (Chen et al. 2016).

    Of n blocks the outputs of about sqrt(n) are kept, and in the backward pass those of sqrt(n) more at a time, for one
    more forward pass. Values and gradients are those of ``stage(x)`` to the bit. Blocks must not draw random numbers.
    """
    blocks = list(stage)
    length = max(1, round(math.sqrt(len(blocks))))
    for start in range(0, len(blocks), length):
        segment = _Segment(blocks[start : start + length])
        x = checkpoint(segment, x, use_reentrant=False, preserve_rng_state=False, context_fn=segment.contexts)
    return x


class _Segment:
    """Blocks that run one after another; not a module, lest it be one of the network's."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.blocks = blocks

    def __call__(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """Of the forward pass and of its repetition."""
        return nullcontext(), self._statistics_kept()

    @contextmanager
    def _statistics_kept(self) -> Iterator[None]:
        """Batch norm counts a batch once, however often it comes by: the second time into copies."""
        modules = [module for block in self.blocks for module in block.modules()]
        own = [(module, name, buffer) for module in modules for name, buffer in module.named_buffers(recurse=False)]
        try:
            for module, name, buffer in own:
                setattr(module, name, buffer.clone())
            yield
        finally:
            for module, name, buffer in own:
                setattr(module, name, buffer)


def wants_recomputing(model: nn.Module) -> bool:
    """Whether there is a backward pass to come."""
    return model.training and torch.is_grad_enabled()
