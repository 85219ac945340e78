"""The orthogonality penalty of ``isonet.ortho``, the same numbers at a fraction of the work."""

from isonet.fast_penalty.plan import OrthoPenalty, ortho_penalty, ortho_penalty_per_conv

__all__ = ["OrthoPenalty", "ortho_penalty", "ortho_penalty_per_conv"]
