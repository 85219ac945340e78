"""A fast implementation of the orthogonality penalty in ``isonet.ortho``, with the same values."""

from isonet.fast_penalty.plan import OrthoPenalty, ortho_penalty, ortho_penalty_per_conv

__all__ = ["OrthoPenalty", "ortho_penalty", "ortho_penalty_per_conv"]
