#!/usr/bin/env bash
# open_clip keeps a checkpoint's mean, resize mode and interpolation with its tag, not with the architecture:
# given the path of the same weights in a file, create_model_and_transforms returns OpenAI's transform without
# a word. SigLIP, PE-Core, CLIPA and MobileCLIP then see another picture; every feature is a little wrong.
# Seen with open_clip_torch 3.3.0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check open_clip_torch==3.3.0 safetensors==0.8.0
cd "$work"
venv/bin/python - <<'PYTHON'
import warnings
from importlib.metadata import version

import open_clip
from safetensors.torch import save_file

print("open_clip_torch", version("open_clip_torch"))
name, tag = "PE-Core-T-16-384", "meta"
published = open_clip.get_pretrained_cfg(name, tag)
model = open_clip.create_model(name)  # untrained: the file is as valid
save_file({key: value.contiguous() for key, value in model.state_dict().items()}, "weights.safetensors")
with warnings.catch_warnings():
    warnings.simplefilter("error")
    loaded, _, transform = open_clip.create_model_and_transforms(name, pretrained="weights.safetensors")
given = loaded.visual.preprocess_cfg
for key in ("mean", "std", "interpolation", "resize_mode"):
    print(f"{key:14} tag {tag!r}: {published[key]}   file: {given[key]}")
    assert tuple(published[key]) != tuple(given[key])
assert given["mean"] == open_clip.OPENAI_DATASET_MEAN
print(transform)
differ = [
    architecture
    for architecture in open_clip.list_models()
    for settings in [[open_clip.get_pretrained_cfg(architecture, t)
                      for t in open_clip.list_pretrained_tags_by_model(architecture)]]
    if settings and all(
        (tuple(s["mean"]), s["interpolation"], s["resize_mode"])
        != (open_clip.OPENAI_DATASET_MEAN, "bicubic", "shortest")
        for s in settings
    )
]  # fmt: skip
print(len(differ), "architectures of whose weights none has the transform that a file gets")
assert len(differ) > 40, differ
PYTHON
