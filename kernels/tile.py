# mypy: disable-error-code="no-untyped-def"
"""What kernels share that make a tile of products themselves."""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# Partial results kept apart, to be added in a fixed order: enough programs for a large GPU.
MAX_PROGRAMS = 264
# Triton's interpreter multiplies half precision wrongly; a GPU keeps its tensor cores.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def wide_products(a: Tensor, b: Tensor) -> bool:
    """Whether the products need more than half precision's tensor cores."""
    return torch.float32 in (a.dtype, b.dtype) or a.dtype != b.dtype


@triton.jit
def dot_tile(
    a_at,  # (BLOCK_M, 1) pointers to the rows of a
    in_a,
    b_at,  # (BLOCK_N, 1) pointers to the rows of b
    in_b,
    width,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The products ⟨a_m, b_n⟩ of a tile, (BLOCK_M, BLOCK_N) float32; 0 outside."""
    depth = tl.arange(0, BLOCK_D)
    dot = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, width, BLOCK_D):
        d = start + depth
        in_d = (d < width)[None, :]
        a = tl.load(a_at + d[None, :], mask=in_a[:, None] & in_d, other=0.0)
        b = tl.load(b_at + d[None, :], mask=in_b[:, None] & in_d, other=0.0)
        if UPCAST:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        dot = tl.dot(a, tl.trans(b), dot, input_precision=PRECISION)
    return dot
