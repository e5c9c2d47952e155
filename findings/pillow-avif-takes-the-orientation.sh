#!/usr/bin/env bash
# Saving as AVIF with Pillow changes an object of the caller: the orientation is taken out of the Exif
# object that was passed. Whoever saves one photo in several formats with one Exif object loses the turn
# in every format after AVIF. No other format of Pillow does so.
# Seen with Pillow 13.0.0. Pass exif.tobytes() or a copy.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0
cd "$work"
venv/bin/python - <<'PYTHON'
import io

import PIL
from PIL import Image

ORIENTATION = 0x0112
print("Pillow", PIL.__version__)
image = Image.new("RGB", (40, 20), "red")
left = {}
for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image.save(io.BytesIO(), kind, exif=exif)
    left[kind] = exif.get(ORIENTATION)
    print(f"{kind}: orientation in the caller's object after saving: {left[kind]}")
assert left == {"JPEG": 6, "PNG": 6, "WEBP": 6, "TIFF": 6, "AVIF": None}
PYTHON
