#!/usr/bin/env bash
# A photo that lies on its side with an EXIF request to be turned (6, as phones write it), saved as HEIC
# by Pillow with pillow-heif and the same EXIF: the file opens lying on its side, and the request says 1.
# Nothing in the file tells any longer that it should be turned. PNG, JPEG and WebP keep the request.
# Seen with Pillow 13.0.0 and pillow-heif 1.8.1. Turn the pixels before saving (ImageOps.exif_transpose).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 pillow-heif==1.8.1
cd "$work"
venv/bin/python - <<'PYTHON'
import io

import PIL
import pillow_heif
from PIL import Image, ImageOps

ORIENTATION = 0x0112
pillow_heif.register_heif_opener()
print("Pillow", PIL.__version__, "pillow-heif", pillow_heif.__version__)
image = Image.new("RGB", (40, 20), "red")
image.paste("blue", (20, 0, 40, 20))
seen = {}
for kind in ("JPEG", "PNG", "WEBP", "HEIF"):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stream = io.BytesIO()
    image.save(stream, kind, exif=exif)
    opened = Image.open(stream)
    request = opened.getexif().get(ORIENTATION)
    seen[kind] = (request, ImageOps.exif_transpose(opened).size)
    print(f"{kind}: request {request}, turned by it the photo is {seen[kind][1]}")
assert all(seen[kind] == (6, (20, 40)) for kind in ("JPEG", "PNG", "WEBP"))
assert seen["HEIF"] == (1, (40, 20))
PYTHON
