"""The only rule that picks between Triton kernels and plain PyTorch."""

from __future__ import annotations

import importlib.util
import os

from torch import Tensor

from pvp_fast.errors import BackendError, InputError


def use_triton(backend: str, *tensors: Tensor, also: tuple[str, ...] = ()) -> bool:
    """Whether the kernels run: with "auto", where every tensor is on a CUDA device.

    ``also`` are further words that the caller takes, none of which means Triton. An explicit
    "triton" runs on a CPU only by Triton's interpreter (TRITON_INTERPRET=1).

    Raises:
        InputError: another word. BackendError: "triton" where it cannot run.
    """
    words = ("auto", "torch", "triton", *also)
    if backend not in words:
        raise InputError(f"backend={backend!r}: use one of {', '.join(map(repr, words))}")
    if backend == "torch" or backend in also:
        return False
    installed = importlib.util.find_spec("triton") is not None
    on_gpu = all(t.is_cuda for t in tensors)
    if backend == "auto":
        return installed and on_gpu
    if not installed:
        raise BackendError("backend='triton': Triton is not installed, pip install triton")
    if not on_gpu and os.environ.get("TRITON_INTERPRET") != "1":
        raise BackendError(
            "backend='triton' needs CUDA tensors (or TRITON_INTERPRET=1 for its interpreter); use "
            "'auto' or 'torch'"
        )
    return True
