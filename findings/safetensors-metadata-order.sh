#!/usr/bin/env bash
# The same tensors with the same metadata give another file each time they are saved with safetensors:
# the entries of the metadata lie in random order. Without metadata the bytes are the same every time.
# Seen with safetensors 0.8.0. A checksum of such a file names one act of saving, not the content.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 safetensors==0.8.0
cd "$work"
venv/bin/python - <<'PYTHON'
import hashlib

import numpy as np
import safetensors
from safetensors.numpy import load, save

print("safetensors", safetensors.__version__)
tensors = {"w": np.arange(6, dtype=np.float32)}
metadata = {f"key {n}": "value" for n in range(12)}


def digests(about: dict[str, str] | None) -> int:
    return len({hashlib.sha256(save(tensors, about)).hexdigest() for _ in range(20)})


plain, described = digests(None), digests(metadata)
print(f"20 saves: {plain} different file(s) without metadata, {described} with twelve entries")
assert plain == 1
assert described > 1
assert np.array_equal(load(save(tensors, metadata))["w"], tensors["w"])
PYTHON
