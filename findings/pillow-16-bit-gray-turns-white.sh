#!/usr/bin/env bash
# A 16-bit grayscale PNG or TIFF becomes white: Pillow's convert("RGB") cuts its values at 255 of 65535 where
# it ought to scale them. The transforms of open_clip and transformers begin with that call, so an X-ray, a
# micrograph or a depth map is a white square to CLIP, without a warning.
# Seen with Pillow 13.0.0, open_clip_torch 3.3.0 and transformers 5.24.0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  pillow==13.0.0 numpy==2.4.6 open_clip_torch==3.3.0 transformers==5.24.0
cd "$work"
venv/bin/python - <<'PYTHON'
from importlib.metadata import version

import numpy as np
import PIL
from open_clip import image_transform
from PIL import Image
from transformers import CLIPImageProcessor

print("Pillow", PIL.__version__, "open_clip_torch", version("open_clip_torch"), end=" ")
print("transformers", version("transformers"))
ramp = np.tile(np.linspace(0, 65535, 256).round().astype(np.uint16), (256, 1))
Image.fromarray(ramp).save("ramp.png")
image = Image.open("ramp.png")
assert image.mode == "I;16" and np.array_equal(np.asarray(image), ramp)
rgb = np.asarray(image.convert("RGB"))
print("from black to white, every 32nd column:", rgb[0, ::32, 0].tolist())
assert rgb[:, 1:].min() == 255
plain = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
seen = {
    "open_clip": image_transform(224, is_train=False, **plain)(image),
    "transformers": CLIPImageProcessor(do_normalize=False)(image, return_tensors="pt")["pixel_values"][0],
}
for name, pixels in seen.items():
    white = float((pixels > 0.999).float().mean())
    print(f"{name}: {100 * white:.1f} % of the pixels are white")
    assert white > 0.98
PYTHON
