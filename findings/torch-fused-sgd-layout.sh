#!/usr/bin/env bash
# torch 2.15.0 (also 2.11.0): on a CPU, SGD(fused=True) uses the memory order of the parameter for the gradient.
#
# The parameter is channels_last; the gradient has the same shape and is contiguous. Both are dense and valid. The default SGD
# computes the correct weights. The fused SGD pairs the k-th number in the parameter's memory with the k-th of the gradient, so
# weights are updated with the gradients of other weights, without an error. Autograd itself produces gradients in the layout of
# their parameters, but code that writes to .grad (manual clipping, hooks, averaging over processes) may not.
#
# Output:
#   torch 2.15.0: default SGD is off by 0.00, fused SGD by 0.50; with a gradient laid out like the parameter, 0.00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.15.0 numpy
"$folder/venv/bin/python" - <<'EOF'
import sys

import torch

torch.manual_seed(0)
start, gradient = torch.randn(8, 4, 3, 3), torch.randn(8, 4, 3, 3)


def error(fused, layout):
    """The largest distance from weight - rate * gradient."""
    weight = torch.nn.Parameter(start.clone().contiguous(memory_format=torch.channels_last))
    weight.grad = gradient.clone().contiguous(memory_format=layout)
    torch.optim.SGD([weight], lr=0.1, fused=fused).step()
    return (weight - (start - 0.1 * gradient)).abs().max().item()


default, fused = (error(on, torch.contiguous_format) for on in (False, True))
alike = error(True, torch.channels_last)
version = torch.__version__.split("+")[0]
print(f"torch {version}: default SGD is off by {default:.2f}, fused SGD by {fused:.2f}; "
      f"with a gradient laid out like the parameter, {alike:.2f}")
sys.exit(not (default < 1e-6 and alike < 1e-6 and fused > 0.1))
EOF
