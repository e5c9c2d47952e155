# mypy: disable-error-code="no-untyped-def"
"""Small vocabularies: similarity, loss and every gradient in one kernel and one small sum.

A program takes 16 queries and all C class vectors (float32: C ≤ 64,
half: C ≤ 128). It streams over D once for the scores
and the norms, evaluates the loss on a tile that never leaves its registers, and streams over D
again for dx and its own partial dw. With x̂ = x/‖x‖, the gradient through the normalisation is
(dx̂ − x̂⟨x̂, dx̂⟩)/‖x‖, and ⟨x̂, dx̂⟩ = Σ_c ds_c · scale · cos_c is in the tile already. A second
kernel adds the partial dw in a fixed order. The gradients are float32, as they are yet to be
multiplied by the incoming one. No atomics, no host synchronisation; memory moved is
2·(B·D + C·D) reads and 4·(B·D + 2·n_programs·C·D) bytes of gradients and partial sums.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pvp_fast.errors import InputError

from .entrywise import (
    KINDS,
    entry_loss,
    label_arguments,
    load_labels,
    whole,
)
from .tile import FLOATS, INTERPRETED

MAX_C = {torch.float32: 64, torch.float16: 128, torch.bfloat16: 128}
# float32 takes three tensor-core products for one, and registers for them.
BLOCK_B = 16
# Columns at a time -> (width at a time, warps, stages), without a spill on sm_80 and sm_90.
TILES = {16: (32, 4, 2), 32: (16, 4, 2), 64: (16, 8, 2), 128: (16, 8, 2)}


@triton.heuristics({"HAS_WEIGHT": lambda launch: launch["weight_ptr"] is not None})
@triton.jit
def _small_c_kernel(
    x_ptr,  # (B, D), contiguous
    w_ptr,  # (C, D), contiguous
    y_ptr,  # (B, C) labels, or (nnz,) category numbers
    offsets_ptr,  # (B + 1,) with lists
    weight_ptr,  # (C,) float32, or None
    scale_ptr,  # (1,) float32
    bias_ptr,  # (1,) float32
    dx_ptr,  # (B, D) float32
    part_ptr,  # (n_programs, C, D) float32: Σ_b ds · scale · x̂
    along_ptr,  # (n_programs, C) float32: Σ_b ds · scale · cos
    norm_ptr,  # (C,) float32: 1/‖w_c‖
    sums_ptr,  # (3, B) float32: loss, ds · cos, ds
    category_ptr,  # (n_programs, C) float32: Σ_b loss before the weight
    n_rows,
    n_cols,
    width,
    y_row,
    y_col,
    gamma_pos,
    gamma_neg,
    clip,
    eps,
    grad_scale,  # of dx and dw
    KIND: tl.constexpr,
    LABELS: tl.constexpr,
    WHOLE_POS: tl.constexpr,
    WHOLE_NEG: tl.constexpr,
    DETACH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    GRADS: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    pid = tl.program_id(0)
    n_programs = tl.num_programs(0)
    # 32 bits do for w: at most 128 rows. x and the partial sums have 64-bit bases.
    cols = tl.arange(0, BLOCK_C)
    in_col = cols < n_cols
    depth = tl.arange(0, BLOCK_D)
    scale = tl.load(scale_ptr)
    bias = tl.load(bias_ptr)
    part = part_ptr + pid.to(tl.int64) * n_cols * width
    along = along_ptr + pid.to(tl.int64) * n_cols
    category = category_ptr + pid.to(tl.int64) * n_cols
    tile = pid
    while tile.to(tl.int64) * BLOCK_R < n_rows:
        later = in_col & (cols * 0 + tile > pid)
        rows = tile.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
        in_row = rows < n_rows
        valid = in_row[:, None] & in_col[None, :]
        dot = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        x_square = tl.zeros((BLOCK_R,), tl.float32)
        w_square = tl.zeros((BLOCK_C,), tl.float32)
        for start in range(0, width, BLOCK_D):
            d = start + depth
            in_d = d < width
            x = tl.load(
                x_ptr + rows[:, None] * width + d[None, :],
                mask=in_row[:, None] & in_d[None, :],
                other=0.0,
            )
            w = tl.load(
                w_ptr + cols[:, None] * width + d[None, :],
                mask=in_col[:, None] & in_d[None, :],
                other=0.0,
            )
            if UPCAST:
                x = x.to(tl.float32)
                w = w.to(tl.float32)
            dot = tl.dot(x, tl.trans(w), dot, input_precision=PRECISION)
            if NORMALIZE:
                x_wide = x.to(tl.float32)
                w_wide = w.to(tl.float32)
                x_square += tl.sum(x_wide * x_wide, axis=1)
                w_square += tl.sum(w_wide * w_wide, axis=1)
        if NORMALIZE:
            x_inverse = 1.0 / tl.maximum(tl.sqrt(x_square), 1e-12)
            w_inverse = 1.0 / tl.maximum(tl.sqrt(w_square), 1e-12)
            dot = dot * x_inverse[:, None] * w_inverse[None, :]
        else:
            x_inverse = x_square * 0 + 1.0
            w_inverse = w_square * 0 + 1.0
        y, factor = load_labels(
            y_ptr, offsets_ptr, rows, cols, in_row, valid, y_row, y_col, LABELS, BLOCK_R, BLOCK_C
        )
        loss, ds = entry_loss(
            dot * scale + bias,
            y,
            gamma_pos,
            gamma_neg,
            clip,
            eps,
            KIND,
            WHOLE_POS,
            WHOLE_NEG,
            DETACH,
        )
        if HAS_WEIGHT:
            plain = tl.sum(tl.where(valid & (factor != 0), loss * factor, 0.0), axis=0)
            before = tl.load(category + cols, mask=later, other=0.0)
            tl.store(category + cols, before + plain, mask=in_col)
            factor = factor * tl.load(weight_ptr + cols, mask=in_col, other=0.0)[None, :]
        keep = valid & (factor != 0)
        loss = tl.where(keep, loss * factor, 0.0)
        ds = tl.where(keep, ds * factor, 0.0)
        tl.store(sums_ptr + rows, tl.sum(loss, axis=1), mask=in_row)
        tl.store(sums_ptr + n_rows + rows, tl.sum(ds * dot, axis=1), mask=in_row)
        tl.store(sums_ptr + n_rows + n_rows + rows, tl.sum(ds, axis=1), mask=in_row)
        if GRADS:
            ds = ds * (scale * grad_scale)
            x_along = tl.sum(ds * dot, axis=1)
            if NORMALIZE:
                before = tl.load(along + cols, mask=later, other=0.0)
                tl.store(along + cols, before + tl.sum(ds * dot, axis=0), mask=in_col)
            to_w = tl.trans(ds * x_inverse[:, None])
            to_x = ds * w_inverse[None, :]
            for start in range(0, width, BLOCK_D):
                d = start + depth
                in_d = d < width
                at_x = rows[:, None] * width + d[None, :]
                at_w = cols[:, None] * width + d[None, :]
                x_valid = in_row[:, None] & in_d[None, :]
                w_valid = in_col[:, None] & in_d[None, :]
                x = tl.load(x_ptr + at_x, mask=x_valid, other=0.0).to(tl.float32)
                w = tl.load(w_ptr + at_w, mask=w_valid, other=0.0).to(tl.float32)
                dx = tl.dot(to_x, w, input_precision=PRECISION)
                if NORMALIZE:
                    dx = (dx - x * (x_inverse * x_along)[:, None]) * x_inverse[:, None]
                tl.store(dx_ptr + at_x, dx.to(dx_ptr.dtype.element_ty), mask=x_valid)
                dw = tl.load(part + at_w, mask=w_valid & later[:, None], other=0.0)
                dw = tl.dot(to_w, x, dw, input_precision=PRECISION)
                tl.store(part + at_w, dw, mask=w_valid)
            if NORMALIZE:
                tl.store(norm_ptr + cols, w_inverse, mask=in_col & (cols * 0 + tile == 0))
        # The next tile reads the partial sums other threads of this program have written.
        tl.debug_barrier()
        tile += n_programs


@triton.jit
def _sum_parts_kernel(
    part_ptr,  # (n_parts, C, D) float32
    along_ptr,  # (n_parts, C) float32
    norm_ptr,  # (C,) float32
    w_ptr,  # (C, D)
    dw_ptr,  # (C, D)
    n_parts,
    n_cols,
    width,
    n_blocks,
    NORMALIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    pid = tl.program_id(0)
    row = (pid // n_blocks).to(tl.int64)
    d = (pid % n_blocks).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_d = d < width
    total = tl.zeros((BLOCK_D,), tl.float32)
    along = tl.zeros((), tl.float32)
    at = part_ptr + row * width + d
    for i in range(0, n_parts):
        step = tl.full((), 1, tl.int64) * i * n_cols
        total += tl.load(at + step * width, mask=in_d, other=0.0)
        if NORMALIZE:
            along += tl.load(along_ptr + step + row)
    if NORMALIZE:
        inverse = tl.load(norm_ptr + row)
        w = tl.load(w_ptr + row * width + d, mask=in_d, other=0.0).to(tl.float32)
        total = (total - w * (inverse * along)) * inverse
    tl.store(dw_ptr + row * width + d, total.to(dw_ptr.dtype.element_ty), mask=in_d)


class SmallC(NamedTuple):
    """Of each row (B,): the summed loss and the gradients of scale and bias; the gradients of
    x (B, D) and w (C, D); with weights Σ_b loss of each category before its weight (C,). All
    float32."""

    loss: Tensor
    dscale: Tensor
    dbias: Tensor
    dx: Tensor
    dw: Tensor
    by_category: Tensor


def small_c_loss(
    x: Tensor,
    w: Tensor,
    labels: Tensor | tuple[Tensor, Tensor],
    kind: str,
    *,
    scale: Tensor,
    bias: Tensor,
    normalize: bool = True,
    weight: Tensor | None = None,
    gamma_pos: float = 1.0,
    gamma_neg: float = 4.0,
    clip: float = 0.05,
    eps: float = 1e-8,
    detach_focal_weight: bool = True,
    alpha: float = 0.25,
    gamma: float = 2.0,
    grad_scale: float = 1.0,
    max_programs: int = 132,
    grads: bool = True,
) -> SmallC:
    """Loss of the scores scale · ⟨x̂, ŵ⟩ + bias with every gradient. No host synchronisation.

    Args:
        x: (B, D). w: (C, D), contiguous and of one dtype: float32 (C ≤ 64),
            float16 or bfloat16 (C ≤ 128).
        labels, kind, weight and the losses' settings: as
            :func:`pvp_fast.kernels.entrywise.elementwise_loss_`.
        scale, bias: one float32 value each, on the device.
        normalize: unit rows of x and w first.
        max_programs: partial dw kept at once, each C·D float32.
        grads: False leaves the gradients of x and w out (0).

    Returns:
        :class:`SmallC`; dx and dw are multiplied by grad_scale, the sums are not.

    Raises:
        InputError: shapes, dtypes or strides other than these.
    """
    if x.dtype not in FLOATS or w.dtype != x.dtype:
        raise InputError(f"x and w must share float32, float16 or bfloat16: {x.dtype}, {w.dtype}")
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[1] or len(w) > MAX_C[x.dtype]:
        raise InputError(
            f"x {tuple(x.shape)} and w {tuple(w.shape)} must be (B, D) and (C, D), "
            f"C <= {MAX_C[x.dtype]}"
        )
    if not (x.is_contiguous() and w.is_contiguous()):
        raise InputError("x and w must be contiguous, call .contiguous() on them")
    if kind not in KINDS:
        raise InputError(f"kind={kind!r}: use one of {', '.join(KINDS)}")
    (rows, width), cols = x.shape, len(w)
    for name, value, size in (("scale", scale, 1), ("bias", bias, 1), ("weight", weight, cols)):
        if value is not None and (
            value.dtype != torch.float32 or value.numel() != size or not value.is_contiguous()
        ):
            raise InputError(f"{name} must be {size} contiguous float32 values on the device")
    y, offsets, y_row, y_col, mode = label_arguments(labels, rows, cols)
    sums = torch.zeros(3, rows, dtype=torch.float32, device=x.device)
    dx, dw = (torch.zeros_like(t, dtype=torch.float32) for t in (x, w))
    by_category = sums.new_zeros(0 if weight is None else cols)
    if rows and cols and width:
        programs = min(max_programs, -(-rows // BLOCK_B))
        part = sums.new_empty(programs if grads else 0, cols, width)
        along = sums.new_empty(programs, cols)
        category = sums.new_empty(0 if weight is None else programs, cols)
        norm = sums.new_empty(cols)
        focal = kind == "focal"
        block_c = max(16, triton.next_power_of_2(cols))
        _small_c_kernel[(programs,)](
            x,
            w,
            y,
            offsets,
            weight,
            scale,
            bias,
            dx,
            part,
            along,
            norm,
            sums,
            category,
            rows,
            cols,
            width,
            y_row,
            y_col,
            gamma if focal else gamma_pos,
            gamma_neg,
            alpha if focal else clip,
            eps,
            grad_scale,
            KIND=KINDS[kind],
            LABELS=mode,
            WHOLE_POS=whole(gamma if focal else gamma_pos),
            WHOLE_NEG=whole(gamma_neg),
            DETACH=detach_focal_weight,
            NORMALIZE=normalize,
            GRADS=grads,
            UPCAST=INTERPRETED,
            PRECISION="tf32x3" if x.dtype == torch.float32 else "tf32",
            BLOCK_R=BLOCK_B,
            BLOCK_C=block_c,
            BLOCK_D=TILES[block_c][0],
            num_warps=TILES[block_c][1],
            num_stages=TILES[block_c][2],
        )
        if weight is not None:
            by_category = category.sum(0)
        if grads:
            blocks = -(-width // 256)
            _sum_parts_kernel[(cols * blocks,)](
                part,
                along,
                norm,
                w,
                dw,
                programs,
                cols,
                width,
                blocks,
                NORMALIZE=normalize,
                BLOCK_D=256,
            )
    return SmallC(sums[0], sums[1], sums[2], dx, dw, by_category)
