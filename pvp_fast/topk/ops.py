"""The operators under pvp_fast.topk: torch.library faces of the extension, and one in plain torch.

All have one signature and one contract (csrc/topk/topk.h); ``register_fake`` gives their shapes to
torch.compile. Checks that look at values are made in here, where tracing does not see them.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
from typing import Any

import torch
from torch import Tensor

from pvp_fast.errors import BackendError, InputError

_TORCH_BLOCK = 1 << 24  # scores that the torch operator holds at once
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.int8: "int8"}


def pack(w: Tensor) -> Tensor:
    """(C, D) float32 CPU rows to the panels that the extension reads: (ceil(C/32), D, 32)."""
    compiled = extension()
    lanes = compiled.LANES
    categories, width = w.shape
    w = w.resolve_neg()
    packed = torch.empty(((categories + lanes - 1) // lanes, width, lanes), dtype=torch.float32)
    compiled.pack(w.data_ptr(), categories, width, w.stride(0), w.stride(1), packed.data_ptr())
    return packed


def pack_on_device(w: Tensor) -> Tensor:
    """What :func:`pack` does, in torch, for the device that w is on."""
    lanes = extension().LANES
    padded = torch.nn.functional.pad(w, (0, 0, 0, -w.shape[0] % lanes))
    return padded.reshape(-1, lanes, w.shape[1]).permute(0, 2, 1).contiguous()


def bfloat16_rows(rows: Tensor) -> Tensor:
    """(n, D) float32 to contiguous bfloat16, D padded with zeros to a multiple of 8 (16 bytes)."""
    return torch.nn.functional.pad(rows.to(torch.bfloat16), (0, -rows.shape[1] % 8)).contiguous()


@functools.cache
def extension() -> Any:
    """The compiled module, or a BackendError that says why it is not there."""
    try:
        from pvp_fast import _C
    except ImportError as error:
        raise BackendError(
            f"the compiled extension pvp_fast._C cannot be loaded ({error}); install the package "
            "with `pip install .`, or ask for backend='torch'"
        ) from error
    return _C


def _nan_error(row: int) -> InputError:
    return InputError(
        f"x: row {row} has a NaN score, from a NaN or an infinity in that row; drop the row or "
        "clean it with torch.nan_to_num"
    )


def _check_inside(
    scale: float,
    threshold: float,
    thresholds: Tensor | None,
    bias: Tensor | None,
    *,
    look: bool = True,
) -> tuple[float, float]:
    """Scale and threshold rounded to float32, after the checks of values (of tensors: if look)."""
    for name, values in (("threshold", thresholds), ("bias", bias)) if look else ():
        if values is not None and bool(values.isnan().any()):
            raise InputError(f"{name} has a NaN for category {int(values.isnan().nonzero()[0])}")
    factor = ctypes.c_float(scale).value
    if not math.isfinite(factor):
        raise InputError(f"scale is {scale!r}, which is infinite in float32; give a smaller one")
    return factor, ctypes.c_float(threshold).value


def search_cpu(
    x: Tensor,
    packed: Tensor,
    vectors: Tensor | None,
    centre: Tensor | None,
    categories: int,
    k: int,
    threshold: float,
    thresholds: Tensor | None,
    bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The search itself. Called directly it spares the operator's dispatch, about 50 us a call."""
    factor, minimum = _check_inside(scale, threshold, thresholds, bias)
    x = x.resolve_neg()
    minima = None if thresholds is None else thresholds.resolve_neg().contiguous()
    added = None if bias is None else bias.resolve_neg().contiguous()
    rows, width = x.shape
    scores = torch.empty((rows, k), dtype=torch.float32)
    indices = torch.empty((rows, k), dtype=torch.int64)
    counts = torch.empty((rows,), dtype=torch.int64)
    isa = os.environ.get("PVP_FAST_ISA", "")
    try:
        bad_row = extension().topk(
            x.data_ptr(),
            rows,
            width,
            *x.stride(),
            packed.data_ptr(),
            categories,
            k,
            minimum,
            0 if minima is None else minima.data_ptr(),
            0 if added is None else added.data_ptr(),
            factor,
            torch.get_num_threads(),
            isa,
            scores.data_ptr(),
            indices.data_ptr(),
            counts.data_ptr(),
            _DTYPES[packed.dtype],
            0 if vectors is None else vectors.data_ptr(),
            0 if centre is None else centre.data_ptr(),
        )
    except ValueError as error:
        raise BackendError(f"{error} (environment variable PVP_FAST_ISA is {isa!r})") from error
    if bad_row >= 0:
        raise _nan_error(bad_row)
    return scores, indices, counts


@torch.library.custom_op("pvp_fast::topk_cpu", mutates_args=(), device_types="cpu")
def _topk_cpu(
    x: Tensor,
    packed: Tensor,
    categories: int,
    k: int,
    threshold: float,
    thresholds: Tensor | None,
    bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return search_cpu(x, packed, None, None, categories, k, threshold, thresholds, bias, scale)


@torch.library.custom_op("pvp_fast::topk_cpu_int8", mutates_args=(), device_types="cpu")
def _topk_cpu_int8(
    x: Tensor,
    packed: Tensor,
    vectors: Tensor,
    centre: Tensor,
    categories: int,
    k: int,
    threshold: float,
    thresholds: Tensor | None,
    bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return search_cpu(x, packed, vectors, centre, categories, k, threshold, thresholds, bias, scale)


@_topk_cpu_int8.register_fake
def _topk_int8_fake(
    x: Tensor,
    packed: Tensor,
    vectors: Tensor,
    centre: Tensor,
    categories: int,
    k: int,
    threshold: float,
    thresholds: Tensor | None,
    bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return _topk_fake(x, packed, categories, k, threshold, thresholds, bias, scale)


@torch.library.custom_op("pvp_fast::topk_cuda", mutates_args=(), device_types="cuda")
def _topk_cuda(
    x: Tensor,
    packed: Tensor,
    categories: int,
    k: int,
    threshold: float,
    thresholds: Tensor | None,
    bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    waits = not torch.cuda.is_current_stream_capturing()  # to look at values and raise
    factor, minimum = _check_inside(scale, threshold, thresholds, bias, look=waits)
    compiled = extension()
    x = x.resolve_neg()
    if packed.dtype == torch.bfloat16:
        x = bfloat16_rows(x)
    minima = None if thresholds is None else thresholds.resolve_neg().contiguous()
    added = None if bias is None else bias.resolve_neg().contiguous()
    rows, width = x.shape
    scores = x.new_empty((rows, k), dtype=torch.float32)
    indices = x.new_empty((rows, k), dtype=torch.int64)
    counts = x.new_empty((rows,), dtype=torch.int64)
    dtype = _DTYPES[packed.dtype]
    entries = rows * compiled.topk_cuda_parts(dtype, rows, categories) * k
    part_values = x.new_empty((entries,), dtype=torch.float32)
    part_categories = x.new_empty((entries,), dtype=torch.int32)
    try:
        compiled.topk_cuda(
            x=x.data_ptr(),
            rows=rows,
            width=width,
            row_stride=x.stride(0),
            column_stride=x.stride(1),
            packed=packed.data_ptr(),
            categories=categories,
            k=k,
            threshold=minimum,
            thresholds=0 if minima is None else minima.data_ptr(),
            bias=0 if added is None else added.data_ptr(),
            scale=factor,
            scores=scores.data_ptr(),
            indices=indices.data_ptr(),
            counts=counts.data_ptr(),
            part_values=part_values.data_ptr(),
            part_categories=part_categories.data_ptr(),
            device=x.device.index,
            stream=torch.cuda.current_stream(x.device).cuda_stream,
            dtype=dtype,
        )
    except (RuntimeError, ValueError) as error:
        raise BackendError(f"backend 'cuda' failed: {error}") from error
    if waits and bool((counts < 0).any()):
        raise _nan_error(int((counts < 0).nonzero()[0]))
    return scores, indices, counts


@torch.library.custom_op("pvp_fast::topk_torch", mutates_args=())
def _topk_torch(
    x: Tensor,
    w: Tensor,
    categories: int,
    k: int,
    threshold: float,
    thresholds: Tensor | None,
    bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    factor, minimum = _check_inside(scale, threshold, thresholds, bias)
    rows = x.shape[0]
    scores = x.new_full((rows, k), -math.inf)
    indices = torch.full((rows, k), -1, dtype=torch.int64, device=x.device)
    kept = min(k, categories)
    block = max(1, _TORCH_BLOCK // categories)
    # Keys order first by score, then by the lower category, and no two are equal: torch.topk
    # itself promises nothing about ties.
    tie = torch.arange(categories - 1, -1, -1, device=x.device)
    for start in range(0, rows, block):
        part = factor * (x[start : start + block] @ w.T)
        if bias is not None:
            part += bias
        if bool(part.isnan().any()):
            raise _nan_error(start + int(part.isnan().any(dim=1).nonzero()[0]))
        below = part < minimum
        if thresholds is not None:
            below |= part < thresholds
        # Adding 0.0 turns -0.0 into 0.0. Then integers that order as the floats do; int32 min,
        # which no float maps to, marks what is below a threshold.
        bits = (part + 0.0).view(torch.int32)
        ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
        ordered.masked_fill_(below, -(1 << 31))
        best = (ordered * (1 << 32) + tie).topk(kept, dim=1).values
        found = (best >> 32) > -(1 << 31)
        chosen = categories - 1 - (best & 0xFFFFFFFF)
        stop = start + part.shape[0]
        scores[start:stop, :kept] = part.gather(1, chosen).masked_fill(~found, -math.inf)
        indices[start:stop, :kept] = chosen.masked_fill(~found, -1)
    return scores, indices, (indices >= 0).sum(dim=1)


@_topk_cpu.register_fake
@_topk_cuda.register_fake
@_topk_torch.register_fake
def _topk_fake(
    x: Tensor,
    vectors: Tensor,
    categories: int,
    k: int,
    threshold: float,
    thresholds: Tensor | None,
    bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = x.shape[0]
    return (
        x.new_empty((rows, k)),
        x.new_empty((rows, k), dtype=torch.int64),
        x.new_empty((rows,), dtype=torch.int64),
    )
