"""How far a network is from an isometry: singular values of its layers and its Jacobian, and norms of its signals."""

from isonet.isometry.jacobian import extreme_singular_values
from isonet.isometry.measure import signal_norms
from isonet.isometry.spectrum import conv_spectrum, feature_sizes, network_extremes

__all__ = ["conv_spectrum", "extreme_singular_values", "feature_sizes", "network_extremes", "signal_norms"]
