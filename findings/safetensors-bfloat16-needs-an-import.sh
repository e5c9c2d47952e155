#!/usr/bin/env bash
# Whether safetensors reads a bfloat16 tensor into numpy depends on what else was imported: alone it raises
# TypeError "data type 'bfloat16' not understood", after "import ml_dtypes", or "import onnx" which brings it, the
# same line gives the values: a script that works fails once an import is taken out that it does not use. With it
# numpy knows the name. Seen with safetensors 0.8.0, numpy 2.4.6, ml_dtypes 0.6.0, onnx 1.23.2.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    numpy==2.4.6 safetensors==0.8.0 ml_dtypes==0.6.0 onnx==1.23.2
cd "$work"
venv/bin/python - <<'PYTHON'
import json
import struct
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

print(*(f"{name} {version(name)}" for name in ("safetensors", "numpy", "ml_dtypes", "onnx")))
half = bytes.fromhex("803f 0040 4040 8040")  # 1, 2, 3, 4: the upper halves of float32
header = json.dumps({"w": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}).encode()
Path("w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + half)
READ = """
from safetensors.numpy import load_file
try:
    w = load_file("w.safetensors")["w"]
    print(w.dtype, w.astype("float32").tolist())
except TypeError as error:
    print("TypeError:", error)
"""


def read(before: str) -> str:
    """What a fresh Python prints that has imported something first."""
    done = subprocess.run([sys.executable, "-c", before + READ], capture_output=True, text=True, check=True)
    print(f"{before or 'nothing imported'}: {done.stdout.strip()}")
    return done.stdout.strip()


assert read("") == "TypeError: data type 'bfloat16' not understood"
for name in ("ml_dtypes", "onnx"):
    assert read(f"import {name}") == "bfloat16 [1.0, 2.0, 3.0, 4.0]"
PYTHON
