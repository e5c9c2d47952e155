#!/usr/bin/env bash
# The text cleaning that open_clip gives SigLIP and SigLIP 2 deletes every mark but the underscore before
# the tokenizer sees the text: "C", "C#" and "C++" are one category with one score, "1.5 l" is "15 l",
# "AC/DC" is "acdc", while an underscore becomes a space. The cleaning of CLIP keeps them all apart.
# Seen with open_clip_torch 3.3.0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check open_clip_torch==3.3.0
cd "$work"
venv/bin/python - <<'PYTHON'
from importlib.metadata import version

from open_clip.tokenizer import get_clean_fn

print("open_clip_torch", version("open_clip_torch"))
siglip, clip = get_clean_fn("canonicalize"), get_clean_fn("lower")
groups = (("C", "C#", "C++"), ("1.5 l bottle", "15 l bottle"), ("7/11", "711"), ("AC/DC", "acdc"))
for names in groups:
    cleaned = {siglip(name) for name in names}
    print(" = ".join(names), "->", cleaned)
    assert len(cleaned) == 1
assert siglip("T-shirt") == "tshirt"
assert siglip("mp3_player") == "mp3 player"
for names in groups[:3]:
    assert len({clip(name) for name in names}) == len(names)
PYTHON
