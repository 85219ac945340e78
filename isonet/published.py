"""The published ImageNet networks: the rows of MODEL_ZOO.md, and the config of each.

The builders, the zoo and the tables use this list. This module does not import torch, so that a typo after
``zoo:`` is refused before torch is imported.
"""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from yacs.config import CfgNode

from isonet.config import load_cfg
from isonet.errors import UserError

PREFIX = "zoo:"
NUM_CLASSES = 1000


@dataclass(frozen=True)
class PublishedNetwork:
    """A network that the authors trained.

    residual: whether it is an R-ISONet rather than an ISONet.
    dropout: whether it was trained with dropout.
    top1: the accuracy on ImageNet in percent, as the authors report it.
    file_id: the id of its checkpoint on Google Drive.
    """

    depth: int
    residual: bool
    dropout: bool
    top1: float
    file_id: str

    @property
    def network(self) -> str:
        return f"{'R-' * self.residual}ISONet-{self.depth}"

    @property
    def name(self) -> str:
        """The name of its config, with ``-nodropout`` if it was trained without dropout."""
        return f"IN1k-{'R' * self.residual}ISO{self.depth}{'' if self.dropout else '-nodropout'}"

    @property
    def transform(self) -> str:
        return "bottleneck_transform" if self.depth >= 50 else "basic_transform"

    @property
    def dropout_rate(self) -> float:
        return 0.4 if self.residual else 0.1

    def config(self) -> CfgNode:
        """Return its training config, restricted to the keys that describe the network, the loss and the data set."""
        coeff = 3e-4 if self.network == "ISONet-101" else 1e-4
        opts: list[Any] = ["ISON.DEPTH", self.depth, "ISON.TRANS_FUN", self.transform, "ISON.ORTHO_COEFF", coeff]
        opts += ["ISON.DROPOUT", self.dropout, "ISON.DROPOUT_RATE", self.dropout_rate]
        if self.residual:
            opts += ["ISON.HAS_ST", True, "ISON.HAS_RES_MULTIPLIER", True, "ISON.RES_MULTIPLIER", 0.0]
        return load_cfg(None, opts)


_NETWORKS = (  # depth, residual, dropout, top1, file_id
    PublishedNetwork(18, False, False, 67.94, "1z055ncj4nFLwHGI8nWmI1e_pO83Etwe2"),
    PublishedNetwork(34, False, False, 70.45, "1XyhENR7lIdOL0_nVJg0wHcD1hjtOWapE"),
    PublishedNetwork(50, False, False, 70.73, "1s2Z81aS2XTMmOWNWQrQqrmWSmLZnSJK0"),
    PublishedNetwork(101, False, False, 70.38, "1tSJUyZEXhau-Z6djrumUiFiHqM0bV6HX"),
    PublishedNetwork(18, False, True, 68.10, "1eiLW4RqnFuZU2c8qtWd4UfOTyMZ3RFXi"),
    PublishedNetwork(34, False, True, 70.90, "1l6LzC2oXvRkPklhC0M_wOsZsBx-9zsqe"),
    PublishedNetwork(50, False, True, 71.20, "1_x3rWpfd6Fr_7gZZM0DO00Lv2GHRe5-G"),
    PublishedNetwork(101, False, True, 71.01, "1UznWiuWxazjizRhhZdtZNENFdhFW6ApG"),
    PublishedNetwork(18, True, False, 69.06, "1lrO9QC4GWBCH6ySGJY1p2-RTQJGZmYDo"),
    PublishedNetwork(34, True, False, 72.17, "1YG3F8mbxnvCbOVq7rxRyjoUpOqH1MFef"),
    PublishedNetwork(50, True, False, 74.20, "1U8wUUmJO_EeHVeV0z8oudbLV5k4ksQKJ"),
    PublishedNetwork(101, True, False, 75.44, "1ZeYStDgGhoXhjidjwBa2Jj51LIGTq4ll"),
    PublishedNetwork(18, True, True, 69.17, "1nNo0auR4q-Q04NZO8yHrFBNzIZu1XUGO"),
    PublishedNetwork(34, True, True, 73.43, "1x3r52HOUnwzO_CJYLzZ35X9C6sAuL47z"),
    PublishedNetwork(50, True, True, 76.18, "19KIBwTQs6kxu9kYAX5b3pTyaIkpsUMzl"),
    PublishedNetwork(101, True, True, 77.08, "1uh6gfMU7vp74Xa4ThgQMOItumob5gveq"),
)
ZOO = {network.name: network for network in _NETWORKS}


def published(name: str) -> PublishedNetwork:
    """Return the network ``name``, with or without ``zoo:``. Raises ``UserError`` if there is none."""
    name = name.removeprefix(PREFIX)
    if name not in ZOO:
        near = get_close_matches(name[:100], ZOO, n=1)
        hint = f"did you mean {PREFIX}{near[0]}?" if near else f"there are {', '.join(ZOO)}"
        raise UserError(f"no checkpoint {PREFIX}{name:.100} in the zoo; {hint}")
    return ZOO[name]


def published_as(file: str) -> str:
    """Return the name in the zoo that a file name resembles, such as IN1k-RISO18 for RISO18.pt, or ""."""
    letters = re.sub(r"[^a-z0-9]", "", file.rpartition("/")[2].partition(".")[0].lower())
    match = re.fullmatch(r"(?:in1k|imagenet)?(r?)iso(?:net)?(\d+)(nodropout)?", letters)
    name = f"IN1k-{match[1].upper()}ISO{match[2]}{'-nodropout' if match[3] else ''}" if match else ""
    return name if name in ZOO else ""
