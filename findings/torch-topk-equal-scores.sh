#!/usr/bin/env bash
# torch.topk on a CPU: among equal values it returns neither the first nor the last, and the order
# changes with the length of the row. Even k = 1 is not argmax, which returns the first.
# Seen with torch 2.13.0. A tag list made of it is not comparable between vocabularies of two sizes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 torch==2.13.0
cd "$work"
venv/bin/python - <<'PYTHON'
import torch

print("torch", torch.__version__)
first, order = {}, {}
for length in (8, 64, 1000):
    x = torch.zeros(2, length)
    x[:, length // 2 :] = 1.0  # the second half is equal and the largest
    first[length] = int(torch.topk(x, 1).indices[0, 0]) - length // 2
    order[length] = (torch.topk(x, 3).indices[0] - length // 2).tolist()
    assert int(x[0].argmax()) == length // 2
    print(f"{length:5} values: topk(1) at {first[length]}, topk(3) at {order[length]} of the equal ones")
assert first[8] == 2, first
assert first[64] == first[1000] == 0, first
assert order == {8: [2, 1, 0], 64: [10, 11, 12], 1000: [2, 1, 0]}, order
PYTHON
