"""Launch every kernel on small, odd shapes; for compute-sanitizer, which watches each access.

``compute-sanitizer --tool memcheck python tests/native/sanitize/gpu_small.py`` (or racecheck).
Exits with an error where a kernel of pvp_fast.kernels was not launched. With TRITON_INTERPRET=1 it
runs on a CPU, which shows that the calls are right.
"""

from __future__ import annotations

import inspect
import os
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pvp_fast import TagIndex, losses, native, spatial_softmax_pool
from pvp_fast.errors import BackendError, InputError
from pvp_fast.kernels.entrywise import elementwise_loss_
from pvp_fast.kernels.entrywise_small import small_c_loss
from pvp_fast.kernels.ranking import ranking_loss_
from pvp_fast.losses import CSRLabels

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "kernels"))
import aot

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
ROWS, COLS, WIDTH = 19, 37, 70
DTYPES = (torch.float32,) if INTERPRETED else (torch.float32, torch.bfloat16)


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)


def label_kinds(rows: int, cols: int) -> Iterator[Tensor | CSRLabels]:
    positive = torch.rand(rows, cols, device=DEVICE) < 0.2
    yield positive
    yield positive.to(torch.int8) * 2 - 1
    yield positive.float()
    yield CSRLabels(F.pad(positive.sum(1).cumsum(0), (1, 0)), positive.nonzero()[:, 1])


def as_lists(y: Tensor | CSRLabels) -> Tensor | tuple[Tensor, Tensor]:
    return (y.offsets, y.indices) if isinstance(y, CSRLabels) else y


def kernels() -> None:
    one = torch.ones(1, device=DEVICE)
    for dtype in DTYPES:
        weight = torch.rand(COLS, device=DEVICE)
        for y in label_kinds(ROWS, COLS):
            for kind in ("asl", "bce", "focal", "siglip"):
                elementwise_loss_(randn(ROWS, COLS), as_lists(y), kind, weight=weight)
                x, w = randn(ROWS, WIDTH, dtype=dtype), randn(COLS, WIDTH, dtype=dtype)
                small_c_loss(x, w, as_lists(y), kind, scale=one, bias=one, max_programs=1)
            ranking_loss_(randn(ROWS, COLS), as_lists(y), weight=weight)


def public(name: str, **options: str) -> None:
    function = getattr(losses, f"{name}_loss")
    cols = ROWS if name == "clip" else COLS
    for dtype in DTYPES:
        x = randn(ROWS, WIDTH, dtype=dtype).requires_grad_()
        w = randn(cols, WIDTH, dtype=dtype).requires_grad_()
        scale = torch.tensor(9.0, device=DEVICE, requires_grad=True)
        for y in [None] if name == "clip" else label_kinds(ROWS, cols):
            function(x, w, y, scale=scale, **options).backward()


def every_loss() -> None:
    for name in ("asl", "bce", "focal", "siglip", "ranking", "clip"):
        function = getattr(losses, f"{name}_loss")
        public(name)
        if "regime" not in inspect.signature(function).parameters:
            continue
        named = typing.get_args(typing.get_type_hints(function)["regime"])
        for regime in named or ("small", "chunked", "recompute"):
            try:
                public(name, regime=regime)
            except (BackendError, InputError) as reason:
                print(f"{name}, {regime}: {reason}")


def pooling() -> None:
    mask = torch.rand(3, 21, device=DEVICE) < 0.6
    for dtype in DTYPES:
        z = randn(3, 21, WIDTH, dtype=dtype).requires_grad_()
        w = randn(COLS, WIDTH, dtype=dtype).requires_grad_()
        heat = torch.tensor(20.0, device=DEVICE, requires_grad=True)
        for m in (None, mask):
            spatial_softmax_pool(z, w, m, temperature=heat, backend="triton").sum().backward()


def topk() -> None:
    if DEVICE == "cpu" or native.call("cuda_status"):
        print(f"top-k: no CUDA kernel here: {native.call('cuda_status') or 'interpreted'}")
        return
    for rows, cols, k in ((1, 5, 9), (19, 301, 12), (3, 3001, 256)):
        for dtype in ("float32", "bfloat16"):
            index = TagIndex(randn(cols, WIDTH), dtype)
            bias = randn(cols)
            index.topk(randn(rows, WIDTH), k, 0.0, bias, backend="cuda")


def not_launched() -> list[str]:
    """Kernels that Triton has compiled for no device."""
    functions = [aot.jit_function(spec.kernel) for spec in aot.collect()]
    kernels = {function.fn.__name__: function for function in functions}
    return [name for name, kernel in kernels.items() if not kernel.device_caches]


def main() -> int:
    if DEVICE == "cuda" and not torch.cuda.is_available():
        print("no CUDA device")
        return 0
    torch.manual_seed(0)
    for step in (kernels, every_loss, pooling, topk):
        step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        print(f"{step.__name__}: done", flush=True)
    missing = [] if INTERPRETED else not_launched()
    if missing:
        print("never launched: " + ", ".join(missing))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
