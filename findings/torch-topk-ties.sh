#!/usr/bin/env bash
# torch 2.15.0, on the CPU: if several logits equal the maximum, the first index of topk depends on k.
#
# The script uses 50,000 rows of normal logits, rounded to bfloat16. With 1,000 classes, 1,287 rows have a tie for the maximum. In
# these rows, topk(1) gives the index of argmax, topk(2) always gives another index, and topk(5) gives another index in about half
# of the rows. With 10 classes, topk(1) differs from argmax in half of the rows with a tie. A top-1 accuracy from the first column
# of topk(5) therefore depends on the 5. torch 2.11.0 gives the same numbers.
#
# Output: for each number of classes, the rows with a tie, and the rows where the first index of topk(k) is not argmax
#   10 classes, 226 ties: k=1 112, k=2 112, k=3 112, k=5 112, k=10 92
#   100 classes, 788 ties: k=1 0, k=2 395, k=3 395, k=5 394, k=10 390
#   1000 classes, 1287 ties: k=1 0, k=2 1287, k=3 682, k=5 632, k=10 644
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/ties.py" <<'PY'
import torch

for classes in (10, 100, 1000):
    logits = torch.randn(50_000, classes, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    ties = (logits == logits.amax(1, keepdim=True)).sum(1) > 1
    other = {k: int((logits.topk(k, 1).indices[:, 0] != logits.argmax(1)).sum()) for k in (1, 2, 3, 5, 10)}
    print(f"{classes} classes, {int(ties.sum())} ties:", ", ".join(f"k={k} {rows}" for k, rows in other.items()))
PY
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.15.0 numpy
"$folder/venv/bin/python" "$folder/ties.py" | tee "$folder/found"
diff "$folder/found" - <<'TXT'
10 classes, 226 ties: k=1 112, k=2 112, k=3 112, k=5 112, k=10 92
100 classes, 788 ties: k=1 0, k=2 395, k=3 395, k=5 394, k=10 390
1000 classes, 1287 ties: k=1 0, k=2 1287, k=3 682, k=5 632, k=10 644
TXT
