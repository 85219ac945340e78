"""``isometrize``: SReLU, the delta initialisation and residual multipliers for a network of another library.

``isometrize.py`` works on a copy of the network, in this order:

1. rewire (``rewiring.py``): give every call of an activation a module and every residual branch a multiplier;
2. watch (``watching.py``): run an example and record what each layer reads;
3. replace (``replacing.py``): activations by SReLU, norms by the identity;
4. initialise (``replacing.py``): write the delta initialisation where no norm remains;
5. measure (``report.py``): can the result learn, and if not, which other arguments help?

``report.py`` also says what changed, ``watching.py`` lists what counts as an activation or a norm, and ``running.py``
runs networks on examples and compares results.
"""

from isonet.surgery.report import DeadNetworkWarning, UnchangedNetworkWarning, measure_health
from isonet.surgery.running import ModelError

__all__ = ["DeadNetworkWarning", "ModelError", "UnchangedNetworkWarning", "measure_health"]
