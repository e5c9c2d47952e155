#!/usr/bin/env bash
# Where an odd number of pixels is left over, transformers' centre crop begins at half of it rounded down and
# torchvision's at half of it rounded to even: with 3, 7, 11, … to cut, the same CLIP sees a picture moved by
# one pixel. transformers computes on torchvision's tensors, and still does not crop as torchvision does.
# Seen with transformers 5.24.0 and torchvision 0.29.1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  transformers==5.24.0 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 pillow==13.0.0
cd "$work"
venv/bin/python - <<'PYTHON'
import numpy as np
import torchvision
import transformers
from PIL import Image
from torchvision.transforms import CenterCrop
from transformers import CLIPImageProcessor

print("transformers", transformers.__version__, "torchvision", torchvision.__version__)
processor = CLIPImageProcessor(do_normalize=False, do_rescale=False)
begins = {}
for rest in range(1, 12):
    columns = np.arange(224 + rest, dtype=np.uint8)  # each pixel is its own column's number
    image = Image.fromarray(np.broadcast_to(columns[None, :, None], (224, 224 + rest, 3)).copy())
    pixels = processor(image, return_tensors="np")["pixel_values"][0]
    begins[rest] = int(pixels[0, 0, 0]), int(np.asarray(CenterCrop(224)(image))[0, 0, 0])
    print(f"{rest:2} pixels left over: transformers begins at {begins[rest][0]}, torchvision at {begins[rest][1]}")
assert [rest for rest, (one, other) in begins.items() if one != other] == [3, 7, 11]
PYTHON
