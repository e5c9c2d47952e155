"""Products of bfloat16 rows, exact in float32.

torch's mm on a CPU rounds such products to bfloat16. The MKL that it is linked with has them with
float32 results; where that is not exported, or the processor has no tiles of bfloat16 (AMX) that
make it fast, the rows are widened and multiplied in float32.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_ROW_MAJOR, _AS_IS, _TRANSPOSED = 101, 111, 112


@functools.cache
def _gemm() -> Callable[..., Any] | None:
    """MKL's cblas_gemm_bf16bf16f32, where it pays."""
    tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)
    if tiles is None or not tiles():
        return None
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        function: Callable[..., Any] = library.cblas_gemm_bf16bf16f32
    except (OSError, AttributeError):
        return None
    number, real, memory = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
    function.restype = None  # type: ignore[attr-defined]
    function.argtypes = [  # type: ignore[attr-defined]
        *[number] * 6, real, memory, number, memory, number, real, memory, number
    ]  # fmt: skip
    return function


def operand(rows: Tensor) -> Tensor:
    """Rows, contiguous float32 or bfloat16, as :func:`product` takes them."""
    return rows if rows.dtype == torch.bfloat16 and _gemm() is not None else rows.float()


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a @ b.T into float32 out, all contiguous: operands (M, K) and (N, K)."""
    (m, k), n = a.shape, b.shape[0]
    gemm = _gemm() if a.dtype == b.dtype == torch.bfloat16 else None
    if gemm is None or not (m and n and k):
        return torch.mm(a.float(), b.float().T, out=out)
    gemm(
        _ROW_MAJOR, _AS_IS, _TRANSPOSED, m, n, k,
        1.0, a.data_ptr(), k, b.data_ptr(), k, 0.0, out.data_ptr(), n,
    )  # fmt: skip
    return out
