#!/usr/bin/env bash
# torch's antialiased bicubic resize gives other pixels for float32 than for uint8: on hard edges up to 9
# levels of 255 from Pillow (0.7 on average), where its uint8 path is within 1. Pillow rounds and clips
# between the two passes; so does the uint8 path, and the float path does not.
# Seen with torch 2.13.0 and Pillow 13.0.0. Line art, screenshots and print are all hard edges.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 pillow==13.0.0 torch==2.13.0
cd "$work"
venv/bin/python - <<'PYTHON'
import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL import Image

print("torch", torch.__version__, "Pillow", PIL.__version__)
generator = torch.Generator().manual_seed(0)
image = (torch.rand(1, 3, 60, 80, generator=generator) > 0.5).to(torch.uint8) * 255
pixels = image[0].permute(1, 2, 0).numpy()
pillow = np.asarray(Image.fromarray(pixels).resize((28, 21), Image.Resampling.BICUBIC)).astype(int)


def apart(resized: torch.Tensor) -> tuple[int, float]:
    found = resized.round().clamp(0, 255)[0].permute(1, 2, 0).numpy().astype(int)
    return int(abs(found - pillow).max()), float(abs(found - pillow).mean())


options = {"size": (21, 28), "mode": "bicubic", "antialias": True}
wide = apart(F.interpolate(image.float(), **options))
narrow = apart(F.interpolate(image, **options).float())
print(f"levels from Pillow: float32 at most {wide[0]}, mean {wide[1]:.3f}; uint8 at most {narrow[0]}")
assert 5 <= wide[0] <= 20
assert narrow[0] <= 1
PYTHON
