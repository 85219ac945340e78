"""The depths of the networks and their blocks per stage. To check configs early, this module does not import torch."""

from isonet.config.keys import SMALL_IMAGE
from isonet.errors import ConfigError

BRANCH_CONVS = {"basic_transform": 2, "bottleneck_transform": 3}  # convolutions in a residual branch
IMAGENET_DEPTHS = {
    "basic_transform": {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)},
    "bottleneck_transform": {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)},
}
_CIFAR_STAGES = 3


def stage_depths(depth: int, transform: str, imagenet: bool) -> tuple[int, ...]:
    """Return the number of blocks in each stage of the network with ``depth`` layers.

    transform: a key of ``BRANCH_CONVS``.
    imagenet: whether the network is of the ImageNet family rather than the CIFAR family.

    Raises ``ConfigError`` if there is no such network.
    """
    per_block = _CIFAR_STAGES * BRANCH_CONVS[transform]  # layers that one more block in every stage adds
    n, rest = divmod(depth - 2, per_block)
    if imagenet:
        if depth in IMAGENET_DEPTHS[transform]:
            return IMAGENET_DEPTHS[transform][depth]
        there = "; ".join(f"{name}: {', '.join(map(str, depths))}" for name, depths in IMAGENET_DEPTHS.items())
        raise ConfigError(
            f"no network for images above {SMALL_IMAGE} px (ImageNet) has ISON.DEPTH {depth} and ISON.TRANS_FUN "
            f"{transform} ({there}); choose one of these, as in configs/IN1k-RISO18.yaml, or set DATASET.IMAGE_SIZE "
            f"{SMALL_IMAGE} or less for the CIFAR networks"
        )
    if rest or n < 1:
        near = [per_block * m + 2 for m in (max(n, 1), max(n, 1) + 1)]
        raise ConfigError(
            f"depth {depth} (ISON.DEPTH) of {transform} must be {per_block}n+2 for images up to {SMALL_IMAGE} px "
            f"(CIFAR networks); the nearest are {near[0]} and {near[1]}; the ImageNet networks, as "
            f"in configs/IN1k-*.yaml, need DATASET.IMAGE_SIZE above {SMALL_IMAGE}"
        )
    return (n,) * _CIFAR_STAGES
