"""``pvp_fast::topk``, the one operator under pvp_fast.topk: it fills what it is given.

The outputs are allocated by its caller, so that torch.compile needs no shapes from it. What the
class vectors look like says who answers: (C, D) float32 rows, plain PyTorch on any device; packed
ones (pvp_fast/topk/panels.py), the extension on their device (contract: csrc/topk/topk.h). Checks
that look at values are made in here, where tracing does not see them.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pvp_fast import native
from pvp_fast.dispatch import choose, why_not_native
from pvp_fast.errors import InputError
from pvp_fast.topk.panels import bfloat16_rows

_TORCH_BLOCK = 1 << 24  # scores that plain PyTorch holds at once
Memory: TypeAlias = Any  # a Tensor, or on the plain way to the CPU its NumPy view
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class TopK(NamedTuple):
    """What :meth:`TagIndex.topk` returns, on the device of the queries.

    ``scores`` (B, k) float32, descending, -inf where absent; ``indices`` (B, k) int64, -1 where
    absent; ``counts`` (B,) int64, how many of the k are there.
    """

    scores: Tensor
    indices: Tensor
    counts: Tensor


class Query(NamedTuple):
    """What a search reads beside x.

    ``w`` rows or packed class vectors; int8 ones have their ``vectors`` (C, D) and ``centre`` (D,)
    too. ``thresholds`` and ``bias`` are (C,) float32 or None.
    """

    w: Memory
    vectors: Memory | None
    centre: Memory | None
    categories: int
    threshold: float
    thresholds: Tensor | None
    bias: Tensor | None
    scale: float


def engine(backend: str, device: torch.device, k: int) -> str:
    """Who searches an index on this device: "native", "cuda" or "torch".

    Raises:
        InputError: a word that names none of them. BackendError: an explicit one that cannot run.
    """

    if backend == "auto" and device.type == "cpu":
        return "native"  # what choose() says, without what it asks

    def why_not_cuda() -> str | None:
        if device.type != "cuda":
            return f"it needs tensors on a GPU, not on {device}"
        if k > native.extension().CUDA_MAX_K:
            return f"it keeps at most {native.extension().CUDA_MAX_K}, k is {k}"
        return native.call("cuda_status") or None

    here = {"native": lambda: why_not_native(device), "cuda": why_not_cuda}
    return choose(backend, device, here)


def search(x: Tensor, query: Query, k: int) -> TopK:
    """The k best of every row of x (B, D), by the operator."""
    out = TopK(
        x.new_empty((x.shape[0], k)),
        x.new_empty((x.shape[0], k), dtype=torch.int64),
        x.new_empty((x.shape[0],), dtype=torch.int64),
    )
    torch.ops.pvp_fast.topk(x, *query, *out)
    return out


def search_plainly(x: Tensor, query: Query, k: int) -> TopK:
    """As search, of a plain call on a CPU, where the operator would only cost 50 us."""
    rows = x.shape[0]  # NumPy allocates in a fraction of the time that torch takes
    scores, indices = np.empty((rows, k), np.float32), np.empty((rows, k), np.int64)
    counts = np.empty(rows, np.int64)
    _fill_on_cpu(x, query, scores, indices, counts)
    return TopK(torch.from_numpy(scores), torch.from_numpy(indices), torch.from_numpy(counts))


@torch.library.custom_op("pvp_fast::topk", mutates_args=("scores", "indices", "counts"))
def _topk(
    x: Tensor,
    w: Tensor,
    vectors: Tensor | None,
    centre: Tensor | None,
    categories: int,
    threshold: float,
    thresholds: Tensor | None,
    bias: Tensor | None,
    scale: float,
    scores: Tensor,
    indices: Tensor,
    counts: Tensor,
) -> None:
    query = Query(w, vectors, centre, categories, threshold, thresholds, bias, scale)
    if w.ndim == 2 and w.dtype == torch.float32:
        _fill_by_torch(x, query, scores, indices, counts)
    elif x.is_cuda:
        _fill_on_cuda(x, query, scores, indices, counts)
    else:
        _fill_on_cpu(x, query, scores, indices, counts)


def _nan_error(row: int) -> InputError:
    return InputError(
        f"x: row {row} has a NaN score, from a NaN or an infinity in that row; drop the row or "
        "clean it with torch.nan_to_num"
    )


def _check_values(query: Query) -> None:
    for name, values in (("threshold", query.thresholds), ("bias", query.bias)):
        if values is not None and bool(values.isnan().any()):
            raise InputError(f"{name} has a NaN for category {int(values.isnan().nonzero()[0])}")


def _fill_on_cpu(x: Tensor, query: Query, scores: Memory, indices: Memory, counts: Memory) -> None:
    thresholds = bias = None  # a call of one query spends its time here: nothing is done for None
    if query.thresholds is not None or query.bias is not None:
        _check_values(query)
        thresholds, bias = _array(query.thresholds), _array(query.bias)
    row = native.call_with_arrays(
        "topk",  # by position, which the extension reads sooner than names
        native.array(x) if x.is_neg() else x.numpy(),
        _memory(query.w),
        query.categories,
        query.threshold,
        thresholds,
        bias,
        query.scale,
        _memory(scores),
        _memory(indices),
        _memory(counts),
        torch.get_num_threads(),
        _memory(query.vectors),
        _memory(query.centre),
    )
    if row >= 0:
        raise _nan_error(row)


def _memory(values: Memory | None) -> Any:
    # Not isinstance(values, Tensor), which takes half a microsecond to say no.
    return values if values is None or type(values) is np.ndarray else native.array(values)


def _array(values: Tensor | None) -> Any:
    return None if values is None else native.array(values.resolve_neg().contiguous())


def _contiguous(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.resolve_neg().contiguous()


def _fill_on_cuda(x: Tensor, query: Query, scores: Tensor, indices: Tensor, counts: Tensor) -> None:
    waits = not torch.cuda.is_current_stream_capturing()  # to look at values and raise
    if waits:
        _check_values(query)
    dtype = _DTYPES[query.w.dtype]
    x = x.resolve_neg()
    x = bfloat16_rows(x) if dtype == "bfloat16" else x
    thresholds, bias = _contiguous(query.thresholds), _contiguous(query.bias)
    (rows, width), k = x.shape, scores.shape[1]
    parts = native.call("topk_cuda_parts", dtype=dtype, rows=rows, categories=query.categories)
    part_values = x.new_empty((rows * parts * k,), dtype=torch.float32)
    part_categories = x.new_empty((rows * parts * k,), dtype=torch.int32)
    native.call(
        "topk_cuda",
        x=x.data_ptr(),
        rows=rows,
        width=width,
        row_stride=x.stride(0),
        column_stride=x.stride(1),
        panels=query.w.data_ptr(),
        dtype=dtype,
        categories=query.categories,
        k=k,
        threshold=query.threshold,
        thresholds=0 if thresholds is None else thresholds.data_ptr(),
        bias=0 if bias is None else bias.data_ptr(),
        scale=query.scale,
        scores=scores.data_ptr(),
        indices=indices.data_ptr(),
        counts=counts.data_ptr(),
        part_values=part_values.data_ptr(),
        part_categories=part_categories.data_ptr(),
        device=x.device.index,
        stream=torch.cuda.current_stream(x.device).cuda_stream,
    )
    if waits and bool((counts < 0).any()):
        raise _nan_error(int((counts < 0).nonzero()[0]))


def _fill_by_torch(
    x: Tensor, query: Query, scores: Tensor, indices: Tensor, counts: Tensor
) -> None:
    """Scores in blocks of rows, then the best of each."""
    _check_values(query)
    threshold = ctypes.c_float(query.threshold).value
    categories, kept = query.categories, min(scores.shape[1], query.categories)
    scores[:, kept:], indices[:, kept:] = -math.inf, -1
    block = max(1, _TORCH_BLOCK // categories)
    # Keys order first by score, then by the lower category, and no two are equal: torch.topk
    # itself promises nothing about ties.
    tie = torch.arange(categories - 1, -1, -1, device=x.device)
    for start in range(0, x.shape[0], block):
        part = query.scale * (x[start : start + block] @ query.w.T)
        if query.bias is not None:
            part += query.bias
        if bool(part.isnan().any()):
            raise _nan_error(start + int(part.isnan().any(dim=1).nonzero()[0]))
        below = part < threshold
        if query.thresholds is not None:
            below |= part < query.thresholds
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
    torch.sum(indices >= 0, dim=1, out=counts)
