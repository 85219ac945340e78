#!/usr/bin/env bash
# torch 2.13.0 and 2.15.0: the gradient of clamp differs between the versions where its input equals the bound.
#
# With a number as the bound, the gradient of the input was 1 and is now 0. With a tensor as the bound, the input received the
# whole gradient and the bound none. Now each receives half, as in torch.maximum. threshold and hardtanh compute the same values
# and did not change. An activation max(x, b) trains differently with each of them if many inputs equal the bound exactly.
#
# Output:
#   torch 2.13.0: clamp by a number 1, by a tensor (1, 0), maximum (0.5, 0.5), threshold 0, hardtanh 0
#   torch 2.15.0: clamp by a number 0, by a tensor (0.5, 0.5), maximum (0.5, 0.5), threshold 0, hardtanh 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/tie.py" <<'EOF'
import torch
import torch.nn.functional as F


def gradients(f, *inputs):
    inputs = [torch.tensor([value], requires_grad=True) for value in inputs]
    found = [f"{g.item():g}" for g in torch.autograd.grad(f(*inputs).sum(), inputs)]
    return found[0] if len(found) == 1 else f"({', '.join(found)})"


print("torch {}: clamp by a number {}, by a tensor {}, maximum {}, threshold {}, hardtanh {}".format(
    torch.__version__.split("+")[0],
    gradients(lambda x: torch.clamp(x, min=-1.0), -1.0),
    gradients(lambda x, b: torch.clamp(x, min=b), -1.0, -1.0),
    gradients(torch.maximum, -1.0, -1.0),
    gradients(lambda x: F.threshold(x, -1.0, -1.0), -1.0),
    gradients(lambda x: F.hardtanh(x, -1.0, 9.0), -1.0),
))
EOF
for version in 2.13.0 2.15.0; do
    python3 -m venv --clear "$folder/venv"
    "$folder/venv/bin/pip" install --quiet torch==$version numpy
    "$folder/venv/bin/python" "$folder/tie.py"
done | tee "$folder/found"
diff "$folder/found" - <<'EOF'
torch 2.13.0: clamp by a number 1, by a tensor (1, 0), maximum (0.5, 0.5), threshold 0, hardtanh 0
torch 2.15.0: clamp by a number 0, by a tensor (0.5, 0.5), maximum (0.5, 0.5), threshold 0, hardtanh 0
EOF
