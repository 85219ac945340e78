"""Networks."""

from isonet.models.build import build_model
from isonet.models.isonet import ISONet
from isonet.models.layers import ResMultiplier, SReLU

__all__ = ["ISONet", "ResMultiplier", "SReLU", "build_model"]
