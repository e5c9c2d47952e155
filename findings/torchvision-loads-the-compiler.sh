#!/usr/bin/env bash
# "import torchvision" loads torch's compiler (torch._dynamo with sympy, some 790 modules), because roi_align
# imports one small function of it. That nearly doubles what importing torch costs, and every program that only
# wants a transform, a decoder, timm or open_clip pays it at its start.
# Seen with torch 2.14.1 and torchvision 0.29.1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
cd "$work"
venv/bin/python - <<'PYTHON'
import sys
import time


def loaded(*names: str) -> list[bool]:
    return [name in sys.modules for name in names]


parts = ("torch._dynamo", "sympy")
begin = time.process_time()
import torch

alone, modules = time.process_time() - begin, set(sys.modules)
assert loaded(*parts) == [False, False]
begin = time.process_time()
import torchvision

more = time.process_time() - begin
print("torch", torch.__version__, "torchvision", torchvision.__version__)
print(f"import torch: {len(modules)} modules, {alone:.1f} CPU seconds")
added = [name for name in sys.modules if name not in modules]
compiler = [name for name in added if name.startswith(("torch.", "sympy", "mpmath"))]
print(f"import torchvision: {len(added)} modules more, {more:.1f} CPU seconds")
print(f"    of them torch's compiler and sympy: {len(compiler)}")
assert loaded(*parts) == [True, True]
assert len(compiler) > len(added) / 2
PYTHON
