#!/usr/bin/env bash
# Freezing torch's nn.MultiheadAttention makes its gradient dearer. With batch_first=True it turns its input,
# and matmul folds the turned tensor into one product only if the weights want a gradient; frozen ones are
# copied for every place of the sequence and multiplied by bmm, forward and backward. So whoever learns
# the input of a frozen transformer (prompts, images, adversarial noise) pays for those copies; in
# bfloat16 on a CPU with AMX they are most of the time. The results are the same.
# Seen with torch 2.14.1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
cd "$work"
venv/bin/python - <<'PYTHON'
import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode

COUNT, LENGTH, WIDTH, HEADS = 32, 50, 768, 12


class Products(TorchDispatchMode):
    """How often each kind of product runs, and what those with a batch are given to read."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}
        self.weights = 0  # numbers in the widest operand of bmm

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            self.calls[name] = self.calls.get(name, 0) + 1
        if name == "bmm":
            self.weights = max(self.weights, *(operand.numel() for operand in args[:2]))
        return func(*args, **(kwargs or {}))


def run(learns: bool, dtype: torch.dtype) -> tuple[dict[str, int], int, torch.Tensor, float]:
    torch.manual_seed(0)
    layer = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval().to(dtype)
    layer.requires_grad_(learns)
    x = torch.randn(COUNT, LENGTH, WIDTH).to(dtype).requires_grad_()
    best = float("inf")
    for _ in range(4):
        begin = time.thread_time()
        out = layer(x, x, x, need_weights=False)[0]
        (gradient,) = torch.autograd.grad(out.sum(), x)
        best = min(best, time.thread_time() - begin)
    with Products() as products:
        out = layer(x, x, x, need_weights=False)[0]
        torch.autograd.grad(out.sum(), x)
    return products.calls, products.weights, gradient, 1e3 * best


torch.set_num_threads(1)
print("torch", torch.__version__)
for dtype in (torch.float32, torch.bfloat16):
    gradients = []
    for learns in (True, False):
        calls, weights, gradient, ms = run(learns, dtype)
        gradients.append(gradient)
        of = "weights that learn" if learns else "frozen weights"
        print(f"{dtype}, {of}: {calls}, {ms:.0f} CPU ms for the gradient of the input")
        if learns:
            assert "bmm" not in calls, calls
        else:
            copies = weights / (3 * WIDTH * WIDTH)
            print(f"    bmm is given {copies:.0f} copies of the input weights, one a place of the sequence")
            assert calls.get("bmm", 0) >= 2 and copies == LENGTH, (calls, copies)
    torch.testing.assert_close(*gradients, atol=1e-6 if dtype == torch.float32 else 0.05, rtol=0.02)
PYTHON
