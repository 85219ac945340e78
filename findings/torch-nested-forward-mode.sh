#!/usr/bin/env bash
# torch 2.15.0 (also 2.11.0): torch.func.jvp of torch.func.jvp drops the second derivative of a custom autograd.Function.
#
# The function below is x^3 with a jvp rule as described in torch's documentation; at x = 2 its second derivative is 12.
# Reverse over reverse, forward over reverse and reverse over forward give 12. Forward over forward gives 0, without an error
# or a warning, because torch disables forward-mode differentiation while it runs the jvp rule of the function. The same
# happens with a linear rule that only returns the tangent, so every composition with such a function loses terms.
# jacfwd(jacfwd(f)), a common way to compute a Hessian, is affected as well.
#
# Output:
#   torch 2.15.0: first 12, reverse/reverse 12, forward/reverse 12, reverse/forward 12, forward/forward 0 (true: 12)
#   passed on: forward/forward of f(x^2) 0 (true: 2)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.15.0
"$folder/venv/bin/python" - <<'EOF'
import sys

import torch
from torch.func import grad, jvp


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        return cotangent * 3 * x**2

    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        return tangent * 3 * x**2


class PassedOn(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def jvp(ctx, tangent):
        return tangent.clone()


def forward(f):
    return lambda x: jvp(f, (x,), (torch.ones_like(x),))[1]


x, f = torch.tensor(2.0, dtype=torch.double), Cube.apply
found = [d(x).item() for d in (forward(f), grad(grad(f)), forward(grad(f)), grad(forward(f)), forward(forward(f)))]
passed = forward(forward(lambda x: PassedOn.apply(x * x)))(x).item()
version = torch.__version__.split("+")[0]
print(
    "torch {}: first {:g}, reverse/reverse {:g}, forward/reverse {:g}, reverse/forward {:g}, forward/forward {:g} (true: 12)"
    .format(version, *found)
)
print(f"passed on: forward/forward of f(x^2) {passed:g} (true: 2)")
sys.exit(found != [12, 12, 12, 12, 0] or passed != 0)
EOF
