#!/usr/bin/env bash
# The transform that timm makes for a published CLIP or SigLIP tower shows it another picture than open_clip
# does for the same weights. Nearly all cut off a rim that CLIP was trained to see (resize to 248, crop 224:
# a fifth of the area), SigLIP's keeps the proportions where SigLIP squashes, MobileCLIP's is bicubic where it
# is bilinear. OpenAI's ViT-L/14 keeps the rim, OpenAI's ViT-B/32 beside it does not.
# Seen with timm 1.0.31 and open_clip_torch 3.3.0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check open_clip_torch==3.3.0 timm==1.0.31
cd "$work"
venv/bin/python - <<'PYTHON'
from importlib.metadata import version

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import get_pretrained_cfg

print("timm", version("timm"), "open_clip_torch", version("open_clip_torch"))
# A black landscape with a white rim of 12 pixels, all round.
photo = Image.new("RGB", (400, 300), "white")
photo.paste("black", (12, 12, 388, 288))


def rims(pixels: torch.Tensor, white: float) -> str:
    """Which sides of the picture still show the rim."""
    gray, middle = pixels.mean(0), pixels.shape[1] // 2
    sides = {"top": gray[0, middle], "bottom": gray[-1, middle], "left": gray[middle, 0], "right": gray[middle, -1]}
    return ", ".join(name for name, value in sides.items() if value > white) or "none"


expected = {
    ("vit_base_patch32_clip_224.openai", "ViT-B-32", "openai"): ("none", "top, bottom", 0.9),
    ("vit_large_patch14_clip_quickgelu_224.openai", "ViT-L-14", "openai"): ("top, bottom", "top, bottom", 1.0),
    ("vit_base_patch16_siglip_224.webli", "ViT-B-16-SigLIP", "webli"): ("none", "top, bottom, left, right", 0.9),
    ("vit_base_mci_224.apple_mclip2_dfndr2b", "MobileCLIP2-B", "dfndr2b"): ("none", "top, bottom", 0.9),
}
for (name, architecture, tag), (timms, own, crop) in expected.items():
    config = resolve_data_config(pretrained_cfg=get_pretrained_cfg(name).to_dict())
    weights = open_clip.get_pretrained_cfg(architecture, tag)
    assert config["mean"] == tuple(weights["mean"]) and config["std"] == tuple(weights["std"])
    by_timm = create_transform(**config)
    fields = {key: weights[key] for key in ("mean", "std", "interpolation", "resize_mode")}
    by_open_clip = image_transform_v2(PreprocessCfg(size=config["input_size"][1], **fields), is_train=False)
    seen = rims(by_timm(photo), 0.2), rims(by_open_clip(photo), 0.2)
    print(f"{name}: crop_pct {config['crop_pct']}, {config['interpolation']}; rim seen: {seen[0]}")
    print(f"    open_clip, {architecture} {tag}: {weights['resize_mode']}, {weights['interpolation']}; {seen[1]}")
    assert config["crop_pct"] == crop
    assert seen == (timms, own), seen
assert open_clip.get_pretrained_cfg("MobileCLIP2-B", "dfndr2b")["interpolation"] == "bilinear"
PYTHON
