#!/usr/bin/env bash
# safetensors.numpy.save writes a view that is not contiguous (a transposed array, every second column)
# without an error and with the wrong values: the memory's order under the view's shape. The torch side
# of the same library refuses such tensors.
# Seen with safetensors 0.8.0 and NumPy 2.4.6. Call numpy.ascontiguousarray before saving.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 safetensors==0.8.0
cd "$work"
venv/bin/python - <<'PYTHON'
import numpy as np
import safetensors
from safetensors.numpy import load, save

print("safetensors", safetensors.__version__, "numpy", np.__version__)
whole = np.arange(12, dtype=np.float32).reshape(3, 4)
views = {"transposed": whole.T, "every second column": whole[:, ::2]}
for name, view in views.items():
    back = load(save({"t": view}))["t"]
    print(f"{name}: first row saved {view[0].tolist()}, loaded {back[0].tolist()}")
    assert back.shape == view.shape
    assert not np.array_equal(back, view)
    assert np.array_equal(back.ravel(), whole.ravel()[: back.size])
    assert np.array_equal(load(save({"t": np.ascontiguousarray(view)}))["t"], view)
PYTHON
