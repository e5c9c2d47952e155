# mypy: disable-error-code="no-untyped-def"
"""Symmetric InfoNCE over N pairs, without the (N, N) scores in memory.

With s_ij = scale · ⟨x̂_i, ŵ_j⟩, r_i = log Σ_j exp s_ij, c_j = log Σ_i exp s_ij and targets t, which
are 2 · [i = j] for pairs and y_ij / Σ_j y_ij + y_ij / Σ_i y_ij for soft labels,

    loss = (Σ r + Σ c − Σ s · t) / 2N,    ∂loss/∂s = (exp(s − r) + exp(s − c) − t) / 2N

r and c are carried as a maximum and a sum of exponentials, r = top + log total: at scores of ±80
the rounding of r itself would cost the gradients a digit. Both must be there before the first
gradient, so scores are made twice. Two ways:

block   products of a block of rows and a block of columns, made by a matrix product, lie in the
        cache; one kernel reads them once and leaves the maxima and sums of the block's rows and
        columns, and Σ s · t; another turns them into gradients for the two matrix products that
        follow.
tile    nothing but x, w and their gradients in memory: a program owns rows and streams over the
        columns, with a running maximum and sum. Called once for x against w and once for w against
        x, since the loss is the same with both exchanged.

Partial results have places of their own and are added in a fixed order: no atomics, no host
synchronisation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pvp_fast.errors import InputError
from pvp_fast.losses.problem import combine_online

from .tile import FLOATS, INTERPRETED, MAX_PROGRAMS, dot_tile, wide_products

# A tile of a block: 16 scores a thread.
BLOCK_R, BLOCK_C = 16, 128
# What may be None, all or nothing.
_HAS_Y = {"HAS_Y": lambda launch: launch["y_ptr"] is not None}
_HAS = _HAS_Y | {"HAS_NORMS": lambda launch: launch["row_inverse_ptr"] is not None}


class Tiles(NamedTuple):
    """Sizes of a launch: rows, columns, width at a time, width of a slice, warps, stages."""

    rows: int
    cols: int
    depth: int
    slice: int
    warps: int
    stages: int


def tiles(wide: bool, backward: bool) -> Tiles:
    """What fits without a spill on sm_80 and sm_90."""
    if wide:
        # Three tensor-core products for one, and registers for them.
        return Tiles(32, 32, 16, 64, 8, 2) if backward else Tiles(32, 32, 32, 0, 8, 2)
    return Tiles(32, 32, 32, 128, 8, 2) if backward else Tiles(64, 64, 32, 0, 8, 3)


@triton.jit
def _targets(
    y_ptr, y_rows_ptr, y_cols_ptr, rows, cols, in_row, in_col, y_row, y_col, shift,
    HAS_Y: tl.constexpr,
):  # fmt: skip
    """t of a tile, float32; ``shift`` is how far the block's columns begin after its rows."""
    if HAS_Y:
        at = y_ptr + rows[:, None] * y_row + cols[None, :] * y_col
        y = tl.load(at, mask=in_row[:, None] & in_col[None, :], other=0).to(tl.float32)
        y_rows = tl.load(y_rows_ptr + rows, mask=in_row, other=0.0)
        y_cols = tl.load(y_cols_ptr + cols, mask=in_col, other=0.0)
        target = y * (y_rows[:, None] + y_cols[None, :])
    else:
        target = tl.where(rows[:, None] == (cols + shift)[None, :], 2.0, 0.0)
    return target


@triton.jit
def _probability(s, top, total):
    """exp(s − r), r = top + log total."""
    return tl.exp(s - top) * (1.0 / total)


@triton.jit
def _block_cosines(
    s_ptr, row_inverse_ptr, col_inverse_ptr, rows, cols, in_row, in_col, s_row,
    HAS_NORMS: tl.constexpr,
):  # fmt: skip
    s = tl.load(
        s_ptr + rows[:, None] * s_row + cols[None, :],
        mask=in_row[:, None] & in_col[None, :],
        other=0.0,
    )
    if HAS_NORMS:
        s = s * tl.load(row_inverse_ptr + rows, mask=in_row, other=0.0)[:, None]
        s = s * tl.load(col_inverse_ptr + cols, mask=in_col, other=0.0)[None, :]
    return s


@triton.heuristics(_HAS)
@triton.jit
def _block_fwd_kernel(
    s_ptr,  # (R, C) float32 products, row stride given
    row_inverse_ptr,  # (R,) float32: 1/‖x_i‖, or None
    col_inverse_ptr,  # (C,) float32: 1/‖w_j‖
    scale_ptr,  # (1,) float32
    y_ptr,  # (R, C), strides given, or None for pairs
    y_rows_ptr,  # (R,) float32: 1 / Σ_j y_ij
    y_cols_ptr,  # (C,) float32: 1 / Σ_i y_ij
    row_part_ptr,  # (2, n_col_tiles, R) float32: maximum and sum of a tile's rows
    col_part_ptr,  # (2, n_row_tiles, C) float32: and of its columns
    target_part_ptr,  # (n_col_tiles, R) float32: Σ_j s · t
    n_rows,
    n_cols,
    n_tiles,
    row_plane,  # n_col_tiles · R
    col_plane,  # n_row_tiles · C
    s_row,
    y_row,
    y_col,
    shift,
    HAS_NORMS: tl.constexpr,
    HAS_Y: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    pid = tl.program_id(0)
    row_tile = (pid // n_tiles).to(tl.int64)
    col_tile = (pid % n_tiles).to(tl.int64)
    rows = row_tile * BLOCK_R + tl.arange(0, BLOCK_R)
    cols = col_tile * BLOCK_C + tl.arange(0, BLOCK_C)
    in_row = rows < n_rows
    in_col = cols < n_cols
    valid = in_row[:, None] & in_col[None, :]
    cosine = _block_cosines(
        s_ptr, row_inverse_ptr, col_inverse_ptr, rows, cols, in_row, in_col, s_row, HAS_NORMS
    )
    s = cosine * tl.load(scale_ptr)
    target = _targets(
        y_ptr, y_rows_ptr, y_cols_ptr, rows, cols, in_row, in_col, y_row, y_col, shift, HAS_Y
    )
    # A choice, not a product: an infinite score that is nobody's target must not give NaN.
    aimed = tl.where(valid & (target != 0), s * target, 0.0)
    tl.store(target_part_ptr + col_tile * n_rows + rows, tl.sum(aimed, axis=1), mask=in_row)
    s = tl.where(valid, s, float("-inf"))
    row_top = tl.max(s, axis=1)
    # −inf − (−inf) would be NaN.
    row_base = tl.where(row_top == float("-inf"), 0.0, row_top)
    row_out = row_part_ptr + col_tile * n_rows + rows
    tl.store(row_out, row_top, mask=in_row)
    row_total = tl.sum(tl.exp(s - row_base[:, None]), axis=1)
    tl.store(row_out + row_plane, row_total, mask=in_row)
    col_top = tl.max(s, axis=0)
    col_base = tl.where(col_top == float("-inf"), 0.0, col_top)
    col_out = col_part_ptr + row_tile * n_cols + cols
    tl.store(col_out, col_top, mask=in_col)
    col_total = tl.sum(tl.exp(s - col_base[None, :]), axis=0)
    tl.store(col_out + col_plane, col_total, mask=in_col)


@triton.heuristics(_HAS)
@triton.jit
def _block_bwd_kernel(
    s_ptr,  # (R, C) float32 products, row stride given
    row_inverse_ptr,  # (R,) float32, or None
    col_inverse_ptr,  # (C,) float32
    scale_ptr,  # (1,) float32
    y_ptr,  # (R, C), strides given, or None for pairs
    y_rows_ptr,  # (R,) float32
    y_cols_ptr,  # (C,) float32
    row_top_ptr,  # (R,) float32
    row_total_ptr,  # (R,) float32
    col_top_ptr,  # (C,) float32
    col_total_ptr,  # (C,) float32
    out_ptr,  # (R, C), row stride given: g · unit, g = exp(s − r) + exp(s − c) − t
    along_ptr,  # (n_programs,) float32: Σ g · s / scale
    n_rows,
    n_cols,
    n_tiles,
    s_row,
    y_row,
    y_col,
    shift,
    out_row,
    unit,
    HAS_NORMS: tl.constexpr,
    HAS_Y: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    pid = tl.program_id(0)
    rows = (pid // n_tiles).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    cols = (pid % n_tiles).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_row = rows < n_rows
    in_col = cols < n_cols
    cosine = _block_cosines(
        s_ptr, row_inverse_ptr, col_inverse_ptr, rows, cols, in_row, in_col, s_row, HAS_NORMS
    )
    s = cosine * tl.load(scale_ptr)
    target = _targets(
        y_ptr, y_rows_ptr, y_cols_ptr, rows, cols, in_row, in_col, y_row, y_col, shift, HAS_Y
    )
    row_top = tl.load(row_top_ptr + rows, mask=in_row, other=0.0)
    row_total = tl.load(row_total_ptr + rows, mask=in_row, other=1.0)
    col_top = tl.load(col_top_ptr + cols, mask=in_col, other=0.0)
    col_total = tl.load(col_total_ptr + cols, mask=in_col, other=1.0)
    g = _probability(s, row_top[:, None], row_total[:, None])
    g = g + _probability(s, col_top[None, :], col_total[None, :]) - target
    valid = in_row[:, None] & in_col[None, :]
    along = tl.sum(tl.where(valid, g * cosine, 0.0), axis=1)
    tl.store(along_ptr + pid, tl.sum(along, axis=0))
    out = out_ptr + rows[:, None] * out_row + cols[None, :]
    tl.store(out, (g * unit).to(out_ptr.dtype.element_ty), mask=valid)


@triton.heuristics(_HAS_Y)
@triton.jit
def _tile_fwd_kernel(
    x_ptr,  # (N, D), contiguous: the rows
    w_ptr,  # (N, D), contiguous: the columns
    x_inverse_ptr,  # (N,) float32
    w_inverse_ptr,  # (N,) float32
    scale_ptr,  # (1,) float32
    y_ptr,  # (N, N), strides given, or None for pairs
    y_rows_ptr,  # (N,) float32
    y_cols_ptr,  # (N,) float32
    sum_ptr,  # (2, n_parts, N) float32: maximum and sum of each row over a part of the columns
    target_ptr,  # (n_parts, N) float32: Σ_j s · t
    n,
    width,
    n_parts,
    part_cols,  # columns of a part
    plane,  # n_parts · N
    y_row,
    y_col,
    HAS_Y: tl.constexpr,
    WITH_TARGET: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    pid = tl.program_id(0)
    part = (pid % n_parts).to(tl.int64)
    rows = (pid // n_parts).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    in_row = rows < n
    x_at = x_ptr + rows[:, None] * width
    x_inverse = tl.load(x_inverse_ptr + rows, mask=in_row, other=0.0) * tl.load(scale_ptr)
    top = tl.full((BLOCK_R,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_R,), tl.float32)
    aimed = tl.zeros((BLOCK_R,), tl.float32)
    first = part * part_cols
    last = tl.minimum(first + part_cols, n)
    for start in range(first, last, BLOCK_C):
        cols = start + tl.arange(0, BLOCK_C).to(tl.int64)
        in_col = cols < last
        dot = dot_tile(
            x_at, in_row, w_ptr + cols[:, None] * width, in_col, width,
            UPCAST, PRECISION, BLOCK_R, BLOCK_C, BLOCK_D,
        )  # fmt: skip
        w_inverse = tl.load(w_inverse_ptr + cols, mask=in_col, other=0.0)
        s = dot * x_inverse[:, None] * w_inverse[None, :]
        if WITH_TARGET:
            target = _targets(
                y_ptr, y_rows_ptr, y_cols_ptr, rows, cols, in_row, in_col, y_row, y_col, 0, HAS_Y
            )
            keep = in_col[None, :] & (target != 0)
            aimed += tl.sum(tl.where(keep, s * target, 0.0), axis=1)
        s = tl.where(in_col[None, :], s, float("-inf"))
        before = top
        top = tl.maximum(before, tl.max(s, axis=1))
        base = tl.where(top == float("-inf"), 0.0, top)
        total = total * tl.exp(before - base) + tl.sum(tl.exp(s - base[:, None]), axis=1)
    out = part * n + rows
    tl.store(sum_ptr + out, top, mask=in_row)
    tl.store(sum_ptr + plane + out, total, mask=in_row)
    if WITH_TARGET:
        tl.store(target_ptr + out, aimed, mask=in_row)


@triton.heuristics(_HAS_Y)
@triton.jit
def _tile_bwd_kernel(
    x_ptr,  # (N, D), contiguous: the rows, whose gradient this is
    w_ptr,  # (N, D), contiguous: the columns
    x_inverse_ptr,  # (N,) float32
    w_inverse_ptr,  # (N,) float32
    scale_ptr,  # (1,) float32
    g_ptr,  # (1,) float32: ∂/∂loss / 2N
    y_ptr,  # (N, N), strides given, or None for pairs
    y_rows_ptr,  # (N,) float32
    y_cols_ptr,  # (N,) float32
    row_top_ptr,  # (N,) float32
    row_total_ptr,  # (N,) float32
    col_top_ptr,  # (N,) float32
    col_total_ptr,  # (N,) float32
    dx_ptr,  # (N, D), contiguous
    along_ptr,  # (N,) float32: Σ_j (exp(s − r) + exp(s − c) − t) · cosine
    n,
    width,
    n_slices,
    y_row,
    y_col,
    HAS_Y: tl.constexpr,
    NORMALIZE: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    pid = tl.program_id(0)
    index = pid % n_slices
    d = index.to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    in_d = d < width
    rows = (pid // n_slices).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    in_row = rows < n
    x_at = x_ptr + rows[:, None] * width
    x_inverse = tl.load(x_inverse_ptr + rows, mask=in_row, other=0.0)
    row_top = tl.load(row_top_ptr + rows, mask=in_row, other=0.0)
    row_total = tl.load(row_total_ptr + rows, mask=in_row, other=1.0)
    scale = tl.load(scale_ptr)
    grad = tl.zeros((BLOCK_R, BLOCK_S), tl.float32)
    along = tl.zeros((BLOCK_R,), tl.float32)
    for start in range(0, n, BLOCK_C):
        cols = start + tl.arange(0, BLOCK_C).to(tl.int64)
        in_col = cols < n
        w_at = w_ptr + cols[:, None] * width
        dot = dot_tile(
            x_at, in_row, w_at, in_col, width, UPCAST, PRECISION, BLOCK_R, BLOCK_C, BLOCK_D
        )
        w_inverse = tl.load(w_inverse_ptr + cols, mask=in_col, other=0.0)
        cosine = dot * x_inverse[:, None] * w_inverse[None, :]
        s = cosine * scale
        col_top = tl.load(col_top_ptr + cols, mask=in_col, other=0.0)
        col_total = tl.load(col_total_ptr + cols, mask=in_col, other=1.0)
        target = _targets(
            y_ptr, y_rows_ptr, y_cols_ptr, rows, cols, in_row, in_col, y_row, y_col, 0, HAS_Y
        )
        g = _probability(s, row_top[:, None], row_total[:, None])
        g = g + _probability(s, col_top[None, :], col_total[None, :]) - target
        g = tl.where(in_row[:, None] & in_col[None, :], g, 0.0)
        along += tl.sum(g * cosine, axis=1)
        w = tl.load(w_at + d[None, :], mask=in_col[:, None] & in_d[None, :], other=0.0)
        grad = tl.dot(g * w_inverse[None, :], w.to(tl.float32), grad, input_precision=PRECISION)
    inside = in_row[:, None] & in_d[None, :]
    if NORMALIZE:
        x = tl.load(x_at + d[None, :], mask=inside, other=0.0)
        grad -= x.to(tl.float32) * (x_inverse * along)[:, None]
    grad = grad * (x_inverse * (scale * tl.load(g_ptr)))[:, None]
    out = dx_ptr + rows[:, None] * width + d[None, :]
    tl.store(out, grad.to(dx_ptr.dtype.element_ty), mask=inside)
    if index == 0:
        tl.store(along_ptr + rows, along, mask=in_row)


class Targets(NamedTuple):
    """Soft targets (R, C) of any strides, and 1 / their sums over all columns and all rows."""

    y: Tensor
    rows: Tensor
    cols: Tensor

    @property
    def T(self) -> Targets:
        return Targets(self.y.T, self.cols, self.rows)

    def block(self, rows: slice, cols: slice) -> Targets:
        return Targets(self.y[rows, cols], self.rows[rows], self.cols[cols])


class Norms(NamedTuple):
    """1 / ‖x_i‖ (R,) and 1 / ‖w_j‖ (C,), float32, that products are to be multiplied by."""

    rows: Tensor
    cols: Tensor


class Sums(NamedTuple):
    """Maximum and sum of rows (2, R) and of columns (2, C), and Σ_j s · t of rows (R,); float32."""

    rows: Tensor
    cols: Tensor
    target: Tensor


def _check_sums(n_rows: int, n_cols: int, rows: Tensor, cols: Tensor) -> None:
    for name, value, size in (("row_sums", rows, n_rows), ("col_sums", cols, n_cols)):
        if (
            value.dtype != torch.float32
            or value.shape != (2, size)
            or (size > 1 and value.stride(1) != 1)
        ):
            raise InputError(f"{name} must be (2, {size}) float32 with contiguous columns")


def _check_sides(
    shape: tuple[int, ...], scale: Tensor, norms: Norms | None, targets: Targets | None
) -> None:
    if scale.dtype != torch.float32 or scale.numel() != 1:
        raise InputError("scale must be one float32 value on the device")
    for name, pair in (("norms", norms), ("targets", targets and targets[1:])):
        if pair is not None and (
            (len(pair[0]), len(pair[1])) != shape
            or any(t.dtype != torch.float32 or not t.is_contiguous() for t in pair)
        ):
            raise InputError(f"{name} must be contiguous float32 values of {shape}")
    if targets is not None and targets.y.shape != shape:
        raise InputError(f"targets must be {shape}, not {tuple(targets.y.shape)}")


def _check_block(s: Tensor, scale: Tensor, norms: Norms | None, targets: Targets | None) -> None:
    if s.ndim != 2 or s.dtype != torch.float32 or (s.shape[1] > 1 and s.stride(1) != 1):
        raise InputError(f"s must be (R, C) float32 with contiguous columns, not {tuple(s.shape)}")
    _check_sides(tuple(s.shape), scale, norms, targets)


def _target_arguments(targets: Targets | None) -> tuple[Tensor | None, ...]:
    if targets is None:
        return None, None, None
    y = targets.y.view(torch.uint8) if targets.y.dtype == torch.bool else targets.y
    return y, targets.rows, targets.cols


def _target_strides(targets: Targets | None) -> tuple[int, int]:
    return (0, 0) if targets is None else (targets.y.stride(0), targets.y.stride(1))


def block_fwd(
    s: Tensor, scale: Tensor, norms: Norms | None, targets: Targets | None, *, shift: int = 0
) -> Sums:
    """What a block of scores adds to the sums and to Σ s · t. No host synchronisation.

    Args:
        s: (R, C) float32 products, columns contiguous; the scores are scale · s, times ``norms``.
        scale: one float32 value on the device.
        targets: of this block; None for pairs, the block's first column being ``shift`` after its
            first row.

    Raises:
        InputError: shapes, dtypes or strides other than these.
    """
    _check_block(s, scale, norms, targets)
    rows, cols = s.shape
    row_tiles, col_tiles = -(-rows // BLOCK_R), -(-cols // BLOCK_C)
    row_part, target_part = s.new_empty(2, col_tiles, rows), s.new_empty(col_tiles, rows)
    col_part = s.new_empty(2, row_tiles, cols)
    if rows and cols:
        _block_fwd_kernel[(row_tiles * col_tiles,)](
            s,
            *((None, None) if norms is None else norms),
            scale,
            *_target_arguments(targets),
            row_part,
            col_part,
            target_part,
            rows,
            cols,
            col_tiles,
            col_tiles * rows,
            row_tiles * cols,
            s.stride(0),
            *_target_strides(targets),
            shift,
            BLOCK_R=BLOCK_R,
            BLOCK_C=BLOCK_C,
            num_warps=4,
        )
    return Sums(combine_online(row_part), combine_online(col_part), target_part.sum(0))


def block_bwd(
    s: Tensor,
    scale: Tensor,
    norms: Norms | None,
    targets: Targets | None,
    row_sums: Tensor,
    col_sums: Tensor,
    out: Tensor,
    *,
    shift: int = 0,
    unit: float = 1.0,
) -> Tensor:
    """out = unit · g, g = exp(s − r) + exp(s − c) − t; returns Σ g · ∂s/∂scale () float32.

    No host synchronisation.

    Args:
        s, scale, norms, targets, shift: as :func:`block_fwd` was given.
        row_sums: (2, R) float32 maxima and sums over all columns. col_sums: (2, C), over all rows.
        out: (R, C), columns contiguous, of any of the three float dtypes; may be s.
        unit: half precision has no room for what is far below one.

    Raises:
        InputError: shapes, dtypes or strides other than these.
    """
    _check_block(s, scale, norms, targets)
    rows, cols = s.shape
    _check_sums(rows, cols, row_sums, col_sums)
    if out.shape != s.shape or out.dtype not in FLOATS or (cols > 1 and out.stride(1) != 1):
        raise InputError(f"out must be {tuple(s.shape)} with contiguous columns")
    col_tiles = -(-cols // BLOCK_C)
    along = scale.new_empty(-(-rows // BLOCK_R) * col_tiles)
    if rows and cols:
        _block_bwd_kernel[(len(along),)](
            s,
            *((None, None) if norms is None else norms),
            scale,
            *_target_arguments(targets),
            *row_sums,
            *col_sums,
            out,
            along,
            rows,
            cols,
            col_tiles,
            s.stride(0),
            *_target_strides(targets),
            shift,
            out.stride(0),
            unit,
            BLOCK_R=BLOCK_R,
            BLOCK_C=BLOCK_C,
            num_warps=4,
        )
    return along.sum()


def _check_pairs(
    x: Tensor, w: Tensor, norms: Norms, scale: Tensor, targets: Targets | None
) -> None:
    if x.dtype not in FLOATS or w.dtype not in FLOATS:
        raise InputError(f"x and w must be float32, float16 or bfloat16: {x.dtype}, {w.dtype}")
    if x.ndim != 2 or x.shape != w.shape:
        raise InputError(f"x {tuple(x.shape)} and w {tuple(w.shape)} must be (N, D), N pairs")
    if not (x.is_contiguous() and w.is_contiguous()):
        raise InputError("x and w must be contiguous, call .contiguous() on them")
    _check_sides((len(x), len(x)), scale, norms, targets)


def _precision(x: Tensor, w: Tensor) -> dict[str, object]:
    return {
        "UPCAST": INTERPRETED or x.dtype != w.dtype,
        "PRECISION": "tf32x3" if wide_products(x, w) else "tf32",
    }


def tile_fwd(x: Tensor, w: Tensor, scale: Tensor, norms: Norms, targets: Targets | None) -> Sums:
    """Maxima and sums of rows and columns, and Σ_j s · t, in O(N) memory. No host synchronisation.

    Args:
        x, w: (N, D), contiguous, float32, float16 or bfloat16, each its own.
        scale: one float32 value on the device. norms: of x and w, ones where not normalised.
        targets: (N, N), or None for pairs.

    Raises:
        InputError: shapes, dtypes or strides other than these.
    """
    _check_pairs(x, w, norms, scale, targets)
    n, width = x.shape
    size = tiles(wide_products(x, w), backward=False)
    row_tiles = -(-n // size.rows)
    col_tiles = -(-n // size.cols)
    n_parts = max(1, min(col_tiles, MAX_PROGRAMS // max(1, row_tiles)))
    part_cols = -(-col_tiles // n_parts) * size.cols
    n_parts = max(1, -(-n // part_cols)) if n else 1
    parts = norms.rows.new_empty(5, n_parts, n)
    for a, b, a_inverse, b_inverse, out, first in (
        (x, w, *norms, parts[:2], True),
        (w, x, *norms[::-1], parts[2:4], False),
    ):
        if not n:
            break
        _tile_fwd_kernel[(row_tiles * n_parts,)](
            a,
            b,
            a_inverse,
            b_inverse,
            scale,
            *_target_arguments(targets if first else None),
            out,
            parts[4],
            n,
            width,
            n_parts,
            part_cols,
            n_parts * n,
            *_target_strides(targets if first else None),
            WITH_TARGET=first,
            BLOCK_R=size.rows,
            BLOCK_C=size.cols,
            BLOCK_D=size.depth,
            num_warps=size.warps,
            num_stages=size.stages,
            **_precision(a, b),
        )
    return Sums(combine_online(parts[:2]), combine_online(parts[2:4]), parts[4].sum(0))


def tile_bwd(
    x: Tensor,
    w: Tensor,
    scale: Tensor,
    norms: Norms,
    targets: Targets | None,
    row_sums: Tensor,
    col_sums: Tensor,
    factor: Tensor,
    *,
    normalize: bool = True,
) -> tuple[Tensor, Tensor]:
    """dx (N, D) in the dtype of x, and (N,) whose sum · factor is dscale. No synchronisation.

    For dw exchange everything: w, x, the norms, the targets, the sums.

    Args:
        x, w, scale, norms, targets: as :func:`tile_fwd` was given.
        row_sums, col_sums: (2, N) float32 maxima and sums over all columns, and over all rows.
        factor: one float32 value: the gradient of the loss / 2N.

    Raises:
        InputError: shapes, dtypes or strides other than these.
    """
    _check_pairs(x, w, norms, scale, targets)
    n, width = x.shape
    _check_sums(n, n, row_sums, col_sums)
    dx, along = torch.zeros_like(x), torch.zeros_like(norms.rows)
    size = tiles(wide_products(x, w), backward=True)
    slices = -(-width // size.slice)
    if n and width:
        _tile_bwd_kernel[(-(-n // size.rows) * slices,)](
            x,
            w,
            *norms,
            scale,
            factor,
            *_target_arguments(targets),
            *row_sums,
            *col_sums,
            dx,
            along,
            n,
            width,
            slices,
            *_target_strides(targets),
            NORMALIZE=normalize,
            BLOCK_R=size.rows,
            BLOCK_C=size.cols,
            BLOCK_D=size.depth,
            BLOCK_S=size.slice,
            num_warps=size.warps,
            num_stages=size.stages,
            **_precision(x, w),
        )
    return dx, along
