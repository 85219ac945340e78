#!/usr/bin/env bash
# Pillow 13.0.0: Image.open returns images of the format MPO, but its argument formats does not accept MPO.
#
# A photograph of a stereo camera or a telephone is often an MPO file, which contains several JPEG images in sequence. Pillow
# opens it with the plugin for JPEG and then sets the format to MPO. Image.open(file, formats=[image.format]) works for other
# formats and raises KeyError for MPO, also if JPEG follows in the list. A list of permitted formats needs JPEG instead of MPO.
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
