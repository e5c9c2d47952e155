#!/usr/bin/env bash
# torch's bicubic interpolation is two curves: a = -0.75 as it is, a = -0.5 (Pillow's) with antialias=True, also
# where an image grows and there is nothing to antialias. open_clip and timm stretch position embeddings with
# the one, transformers with the other: the same CLIP at 336 instead of 224 pixels is not the same model.
# Seen with torch 2.14.1, timm 1.0.31 and transformers 5.24.0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.14.1 timm==1.0.31 transformers==5.24.0 numpy==2.4.6 pillow==13.0.0
cd "$work"
venv/bin/python - <<'PYTHON'
import numpy as np
import timm
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from timm.layers import resample_abs_pos_embed
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

print("torch", torch.__version__, "timm", timm.__version__, "transformers", transformers.__version__)
edge = torch.zeros(1, 1, 1, 8)
edge[..., 4:] = 1
plain = F.interpolate(edge, size=(1, 16), mode="bicubic")[0, 0, 0]
smooth = F.interpolate(edge, size=(1, 16), mode="bicubic", antialias=True)[0, 0, 0]
pillow = np.asarray(Image.fromarray(edge[0, 0].numpy()).resize((16, 1), Image.Resampling.BICUBIC))[0]
print("plain     ", [round(v, 4) for v in plain[5:11].tolist()])
print("antialias ", [round(v, 4) for v in smooth[5:11].tolist()])

# The outer weight at 1.25 samples is 0.140625 a, and what an edge overshoots by.
a = [-(float(curve.max()) - 1) / 0.140625 for curve in (plain, smooth)]
print(f"a = {a[0]:.3f} and {a[1]:.3f}")
assert abs(a[0] + 0.75) < 1e-3 and abs(a[1] + 0.5) < 1e-3
assert np.allclose(smooth, pillow, atol=1e-6)

torch.manual_seed(0)
config = CLIPVisionConfig(hidden_size=64, num_attention_heads=2, image_size=224, patch_size=32)
embeddings = CLIPVisionEmbeddings(config)
torch.nn.init.normal_(embeddings.position_embedding.weight)
table = embeddings.position_embedding.weight.detach()[None]  # 1 + 7 * 7 places
with torch.no_grad():
    one = embeddings.interpolate_pos_encoding(torch.zeros(1, 1 + 12 * 12, 64), 384, 384)
other = resample_abs_pos_embed(table, new_size=[12, 12], num_prefix_tokens=1)
apart = float((one - other)[:, 1:].norm() / other[:, 1:].norm())
print(f"position embeddings, 7 x 7 to 12 x 12: transformers and timm differ by {100 * apart:.0f} %")
assert torch.equal(one[:, 0], other[:, 0])
assert 0.05 < apart < 0.5
PYTHON
