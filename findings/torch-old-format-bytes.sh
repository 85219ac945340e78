#!/usr/bin/env bash
# torch 2.15.0: torch.save in the format before torch 1.6 writes other bytes in each call. The present format does not.
#
# With _use_new_zipfile_serialization=False, the file names each tensor's storage by its address in memory. Three saves of equal
# weights give three different files, so a checksum of such a file does not identify the weights. Files of many published networks
# have this format. The zip format numbers the storages.
#
# Output: the number of different files among three
#   zip format: 1
#   format before torch 1.6: 3
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/bytes.py" <<'PY'
import io

import torch

for name, zipped in (("zip format", True), ("format before torch 1.6", False)):
    kept, contents = [], set()
    for _ in range(3):
        weights = {"weight": torch.zeros(3), "bias": torch.ones(2)}
        kept.append(weights)  # otherwise the next weights may be at the same address
        file = io.BytesIO()
        torch.save(weights, file, _use_new_zipfile_serialization=zipped)
        contents.add(file.getvalue())
    print(f"{name}: {len(contents)}")
PY
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.15.0 numpy
"$folder/venv/bin/python" "$folder/bytes.py" | tee "$folder/found"
diff "$folder/found" - <<'TXT'
zip format: 1
format before torch 1.6: 3
TXT
