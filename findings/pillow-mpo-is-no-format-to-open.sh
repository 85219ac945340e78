#!/usr/bin/env bash
# Pillow 13.0.0: Image.open reports the format MPO, which its argument formats does not know.
#
# A photograph of a stereo camera or a telephone is often an MPO file, which is several JPEG images one after the other. Pillow
# opens it with the plugin JPEG, and then calls its format MPO. Image.open(file, formats=[image.format]) works for other formats
# and raises KeyError for this one, also if JPEG follows in the list. A list of permitted formats needs JPEG in place of MPO.
#
# Output:
#   all formats: MPO
#   JPEG: MPO
#   MPO: KeyError
#   JPEG, MPO: MPO
#   MPO, JPEG: KeyError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/mpo.py" <<'PY'
import io

from PIL import Image

file = io.BytesIO()
frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
frames[0].save(file, "MPO", save_all=True, append_images=frames[1:])
for formats in (None, ["JPEG"], ["MPO"], ["JPEG", "MPO"], ["MPO", "JPEG"]):
    try:
        found = Image.open(io.BytesIO(file.getvalue()), formats=formats).format
    except KeyError as error:
        found = type(error).__name__
    print(f"{', '.join(formats) if formats else 'all formats'}: {found}")
PY
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0
"$folder/venv/bin/python" "$folder/mpo.py" | tee "$folder/found"
diff "$folder/found" - <<'TXT'
all formats: MPO
JPEG: MPO
MPO: KeyError
JPEG, MPO: MPO
MPO, JPEG: KeyError
TXT
