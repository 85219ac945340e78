"""``isometrize``: SReLU, the delta initialisation and residual multipliers for a network of another library.

``isometrize.py`` works on a copy of the network, in this order:

1. rewire (``rewiring.py``): make every call of an activation a module, and give every residual branch a multiplier;
2. watch (``watching.py``): run an example, and record the inputs of each layer and the users of its output;
3. replace (``replacing.py``): activations by SReLU, norms by the identity;
4. initialise (``replacing.py``): write the delta initialisation where no norm remains;
5. measure (``report.py``): test whether the result can learn and, if it cannot, which other arguments help.

``report.py`` also describes the changes, ``watching.py`` lists the activations and norms, and ``running.py`` runs
networks on examples and compares results.
"""

from isonet.surgery.report import DeadNetworkWarning, UnchangedNetworkWarning, measure_health
from isonet.surgery.running import ModelError

__all__ = ["DeadNetworkWarning", "ModelError", "UnchangedNetworkWarning", "measure_health"]
