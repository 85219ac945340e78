#!/usr/bin/env bash
# torch 2.15.0 (also 2.11.0): copy.deepcopy drops plain attributes of a torch.fx.GraphModule, and pickle drops its class.
#
# The script copies a subclass of GraphModule with a method and a plain attribute. deepcopy keeps the class and drops the
# attribute. pickle keeps the attribute and drops the class, and with it the method. A deepcopy of the unpickled module has
# neither. nn.Module keeps both in all cases. So a traced network loses an added method (e.g. no_weight_decay for an optimizer
# factory) in a checkpoint, and an added attribute in an averaged copy of the weights.
#
# Output:
#   torch 2.15.0: deepcopy: class True, attribute False; pickle: class False, attribute True; both: class False, attribute False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/counted.py" <<'EOF'
from torch import fx


class Counted(fx.GraphModule):
    def total(self):
        return sum(p.numel() for p in self.parameters())
EOF
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.15.0 numpy
cd "$folder"
PYTHONPATH="$folder" "$folder/venv/bin/python" - <<'EOF'
import copy
import pickle
import sys

import torch
from counted import Counted
from torch import fx, nn

network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
module = Counted(network, fx.Tracer().trace(network))
module.note = "kept"
pickled = pickle.loads(pickle.dumps(module))
copies = {"deepcopy": copy.deepcopy(module), "pickle": pickled, "both": copy.deepcopy(pickled)}
found = {how: (isinstance(new, Counted), hasattr(new, "note")) for how, new in copies.items()}
print(f"torch {torch.__version__.split('+')[0]}: "
      + "; ".join(f"{how}: class {kind}, attribute {note}" for how, (kind, note) in found.items()))
sys.exit(found != {"deepcopy": (True, False), "pickle": (False, True), "both": (False, False)})
EOF
