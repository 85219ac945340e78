"""The keys of a config that the names and shapes of a network's weights determine."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from isonet.config.keys import SMALL_IMAGE
from isonet.depths import BRANCH_CONVS

_BLOCK = re.compile(r"s\d+\.b\d+(?=\.)")
_STEM, _HEAD = "stem.conv.weight", "head.fc.weight"


def described(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the keys that describe the network of ``weights``, with their values, or {} for an unknown network."""
    if _STEM not in weights or _HEAD not in weights or not weights[_HEAD].ndim:
        return {}
    names = "\n".join(weights)
    blocks, transform = set(_BLOCK.findall(names)), f"{'bottleneck' if '.f.c.' in names else 'basic'}_transform"
    small = weights[_STEM].shape[-1:] == (3,)
    return {
        "DATASET.IMAGE_SIZE": f"{'up to' if small else 'above'} {SMALL_IMAGE}",
        "ISON.DEPTH": len(blocks) * BRANCH_CONVS[transform] + 2,
        "ISON.TRANS_FUN": transform,
        "ISON.HAS_ST": ".proj." in names,
        "ISON.HAS_BN": "bn.running_mean" in names,
        "ISON.SReLU": "srelu_bias" in names,
        "ISON.HAS_RES_MULTIPLIER": "shared_scalar" in names,
        "DATASET.NUM_CLASSES": len(weights[_HEAD]),
    }


def differing_keys(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> str:
    """Return the keys that differ between the network of a file and the network of a config, as a phrase, or ""."""
    file, config = described(theirs), described(ours)
    return ", ".join(f"{key} {file[key]} in the file and {config[key]} in the config"
                     for key in file if key in config and file[key] != config[key])  # fmt: skip
