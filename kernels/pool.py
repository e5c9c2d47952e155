# mypy: disable-error-code="no-untyped-def"
"""Spatial softmax pooling, streamed over the regions as attention kernels stream over keys.

With unit rows ẑ, ŵ, a = ⟨ẑ_bl, ŵ_c⟩ and π = softmax over l of T · a, the pooled score is
p_bc = Σ_l π_blc a_blc. A program owns an image and a tile of categories and keeps the running
maximum, sum and weighted sum; (B, L, C) is never in memory. With g = ∂loss/∂p, backward makes
tiles of a again from z and w and uses

    ∂loss/∂a = g · π · (1 + T (a − p)),    ∂loss/∂T = Σ g · π · (a − p)²

dz is owned by (image, tile of regions, slice of the width), dw by (part of the images, tile of
categories, slice of the width); the parts are added in a fixed order. No atomics, no host
synchronisation. Through the normalisation, dz = (dẑ − ẑ⟨ẑ, dẑ⟩)/‖z‖ where
⟨ẑ_l, dẑ_l⟩ = Σ_c ∂loss/∂a · a is in the tiles already; the same for w.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pvp_fast.errors import InputError
from pvp_fast.losses.problem import inverse_norms

from .tile import FLOATS, INTERPRETED, MAX_PROGRAMS, dot_tile, wide_products

_LOG2_E = tl.constexpr(1.4426950408889634)
# Fewest and most regions at a time; fewer spill in pool_dw, more in pool_dz.
_REGIONS = {"pool": (16, 64), "pool_dz": (16, 32), "pool_dw": (32, 64)}


class Tiles(NamedTuple):
    """Sizes of a launch: categories, width at a time, width of a gradient slice, warps, stages."""

    cols: int
    depth: int
    slice: int
    warps: int
    stages: int


def tiles(wide: bool, backward: bool) -> Tiles:
    """What fits without a spill on sm_80 and sm_90, the regions being any of `_REGIONS`."""
    if wide:
        # Three tensor-core products for one, and registers for them.
        return Tiles(32, 16, 64, 8, 2) if backward else Tiles(32, 32, 0, 8, 2)
    return Tiles(32, 32, 128, 8, 2) if backward else Tiles(64, 32, 0, 4, 3)


@triton.jit
def _real_regions(mask_ptr, b, regions, n_regions, HAS_MASK: tl.constexpr):
    real = regions < n_regions
    if HAS_MASK:
        real = real & (tl.load(mask_ptr + b * n_regions + regions, mask=real, other=0) != 0)
    return real


@triton.heuristics({"HAS_MASK": lambda launch: launch["mask_ptr"] is not None})
@triton.jit
def _pool_fwd_kernel(
    z_ptr,  # (B, L, D), strides given
    w_ptr,  # (C, D), contiguous
    mask_ptr,  # (B, L) uint8, or None
    z_inverse_ptr,  # (B, L) float32: 1/‖z‖, or 1
    w_inverse_ptr,  # (C,) float32
    temperature_ptr,  # (1,) float32
    pooled_ptr,  # (B, C) float32
    top_ptr,  # (B, C) float32: maximum over l of T · a / log 2
    inverse_total_ptr,  # (B, C) float32: 1 / Σ 2^(T · a / log 2 − top), 0 for a row without regions
    n_regions,
    n_cols,
    width,
    n_tiles,
    z_batch,
    z_row,
    HAS_MASK: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    pid = tl.program_id(0)
    b = (pid // n_tiles).to(tl.int64)
    cols = (pid % n_tiles).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_col = cols < n_cols
    w_at = w_ptr + cols[:, None] * width
    w_inverse = tl.load(w_inverse_ptr + cols, mask=in_col, other=0.0)
    temperature = tl.load(temperature_ptr) * _LOG2_E
    top = tl.full((BLOCK_C,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_C,), tl.float32)
    weighted = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, n_regions, BLOCK_L):
        regions = start + tl.arange(0, BLOCK_L)
        real = _real_regions(mask_ptr, b, regions, n_regions, HAS_MASK)
        # Padding, two thirds of most texts, is not multiplied.
        depth = tl.where(tl.max(real.to(tl.int32), axis=0) > 0, width, 0)
        dot = dot_tile(
            z_ptr + b * z_batch + regions.to(tl.int64)[:, None] * z_row, real, w_at, in_col,
            depth, UPCAST, PRECISION, BLOCK_L, BLOCK_C, BLOCK_D,
        )  # fmt: skip
        z_inverse = tl.load(z_inverse_ptr + b * n_regions + regions, mask=real, other=0.0)
        cosine = dot * z_inverse[:, None] * w_inverse[None, :]
        logit = tl.where(real[:, None], cosine * temperature, float("-inf"))
        before = top
        top = tl.maximum(before, tl.max(logit, axis=0))
        # No region yet: −inf − (−inf) would be NaN.
        base = tl.where(top == float("-inf"), 0.0, top)
        part = tl.exp2(logit - base[None, :])
        fade = tl.exp2(before - base)
        total = total * fade + tl.sum(part, axis=0)
        weighted = weighted * fade + tl.sum(part * cosine, axis=0)
    some = total > 0
    inverse_total = tl.where(some, 1.0 / tl.where(some, total, 1.0), 0.0)
    out = b * n_cols + cols
    tl.store(pooled_ptr + out, weighted * inverse_total, mask=in_col)
    tl.store(top_ptr + out, tl.where(some, top, 0.0), mask=in_col)
    tl.store(inverse_total_ptr + out, inverse_total, mask=in_col)


@triton.jit
def _mixture(
    g_ptr, pooled_ptr, top_ptr, inverse_total_ptr, out, in_col, cosine, real, temperature,
):  # fmt: skip
    """g · π and a − p of a tile (BLOCK_L, BLOCK_C) of cosines."""
    g = tl.load(g_ptr + out, mask=in_col, other=0.0)
    pooled = tl.load(pooled_ptr + out, mask=in_col, other=0.0)
    top = tl.load(top_ptr + out, mask=in_col, other=0.0)
    inverse_total = tl.load(inverse_total_ptr + out, mask=in_col, other=0.0)
    part = tl.exp2(cosine * (temperature * _LOG2_E) - top[None, :]) * (g * inverse_total)[None, :]
    return tl.where(real[:, None] & in_col[None, :], part, 0.0), cosine - pooled[None, :]


@triton.heuristics({"HAS_MASK": lambda launch: launch["mask_ptr"] is not None})
@triton.jit
def _pool_bwd_dz_kernel(
    z_ptr,  # (B, L, D), strides given
    w_ptr,  # (C, D), contiguous
    mask_ptr,  # (B, L) uint8, or None
    z_inverse_ptr,  # (B, L) float32
    w_inverse_ptr,  # (C,) float32
    temperature_ptr,  # (1,) float32
    g_ptr,  # (B, C) float32
    pooled_ptr,  # (B, C) float32
    top_ptr,  # (B, C) float32
    inverse_total_ptr,  # (B, C) float32
    dz_ptr,  # (B, L, D), contiguous
    n_regions,
    n_cols,
    width,
    n_tiles,
    n_slices,
    z_batch,
    z_row,
    NORMALIZE: tl.constexpr,
    HAS_MASK: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    pid = tl.program_id(0)
    d = (pid % n_slices).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    in_d = d < width
    tile = pid // n_slices
    b = (tile // n_tiles).to(tl.int64)
    regions = (tile % n_tiles) * BLOCK_L + tl.arange(0, BLOCK_L)
    real = _real_regions(mask_ptr, b, regions, n_regions, HAS_MASK)
    z_at = z_ptr + b * z_batch + regions.to(tl.int64)[:, None] * z_row
    z_inverse = tl.load(z_inverse_ptr + b * n_regions + regions, mask=real, other=0.0)
    temperature = tl.load(temperature_ptr)
    grad = tl.zeros((BLOCK_L, BLOCK_S), tl.float32)
    along = tl.zeros((BLOCK_L,), tl.float32)
    stop = tl.where(tl.max(real.to(tl.int32), axis=0) > 0, n_cols, 0)
    for start in range(0, stop, BLOCK_C):
        cols = start + tl.arange(0, BLOCK_C).to(tl.int64)
        in_col = cols < n_cols
        w_at = w_ptr + cols[:, None] * width
        dot = dot_tile(
            z_at, real, w_at, in_col, width, UPCAST, PRECISION, BLOCK_L, BLOCK_C, BLOCK_D
        )
        w_inverse = tl.load(w_inverse_ptr + cols, mask=in_col, other=0.0)
        cosine = dot * z_inverse[:, None] * w_inverse[None, :]
        part, apart = _mixture(
            g_ptr, pooled_ptr, top_ptr, inverse_total_ptr, b * n_cols + cols, in_col, cosine, real,
            temperature,
        )  # fmt: skip
        part = part * (1.0 + temperature * apart)
        along += tl.sum(part * cosine, axis=1)
        w = tl.load(w_at + d[None, :], mask=in_col[:, None] & in_d[None, :], other=0.0)
        grad = tl.dot(part * w_inverse[None, :], w.to(tl.float32), grad, input_precision=PRECISION)
    if NORMALIZE:
        z = tl.load(z_at + d[None, :], mask=real[:, None] & in_d[None, :], other=0.0)
        grad -= z.to(tl.float32) * (z_inverse * along)[:, None]
    grad = grad * z_inverse[:, None]
    inside = (regions < n_regions)[:, None] & in_d[None, :]
    out = (b * n_regions + regions)[:, None] * width + d[None, :]
    tl.store(dz_ptr + out, grad.to(dz_ptr.dtype.element_ty), mask=inside)


@triton.heuristics({"HAS_MASK": lambda launch: launch["mask_ptr"] is not None})
@triton.jit
def _pool_bwd_dw_kernel(
    z_ptr,  # (B, L, D), strides given
    w_ptr,  # (C, D), contiguous
    mask_ptr,  # (B, L) uint8, or None
    z_inverse_ptr,  # (B, L) float32
    w_inverse_ptr,  # (C,) float32
    temperature_ptr,  # (1,) float32
    g_ptr,  # (B, C) float32
    pooled_ptr,  # (B, C) float32
    top_ptr,  # (B, C) float32
    inverse_total_ptr,  # (B, C) float32
    part_ptr,  # (n_parts, C, D) float32: Σ ∂loss/∂a · ẑ
    along_ptr,  # (n_parts, C) float32: Σ ∂loss/∂a · a
    dtemperature_ptr,  # (n_parts, C) float32: Σ g · π · (a − p)²
    n_images,
    n_regions,
    n_cols,
    width,
    n_tiles,
    n_slices,
    part_images,  # images of a part
    z_batch,
    z_row,
    HAS_MASK: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    pid = tl.program_id(0)
    index = pid % n_slices
    d = index.to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    in_d = d < width
    tile = pid // n_slices
    part_index = (tile // n_tiles).to(tl.int64)
    cols = (tile % n_tiles).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_col = cols < n_cols
    w_at = w_ptr + cols[:, None] * width
    w_inverse = tl.load(w_inverse_ptr + cols, mask=in_col, other=0.0)
    temperature = tl.load(temperature_ptr)
    grad = tl.zeros((BLOCK_C, BLOCK_S), tl.float32)
    along = tl.zeros((BLOCK_C,), tl.float32)
    dtemperature = tl.zeros((BLOCK_C,), tl.float32)
    first = part_index * part_images
    last = tl.minimum(first + part_images, n_images)
    for image in range(first, last):
        b = image + tl.zeros((), tl.int64)
        for start in range(0, n_regions, BLOCK_L):
            regions = start + tl.arange(0, BLOCK_L)
            real = _real_regions(mask_ptr, b, regions, n_regions, HAS_MASK)
            z_at = z_ptr + b * z_batch + regions.to(tl.int64)[:, None] * z_row
            depth = tl.where(tl.max(real.to(tl.int32), axis=0) > 0, width, 0)
            dot = dot_tile(
                z_at, real, w_at, in_col, depth, UPCAST, PRECISION, BLOCK_L, BLOCK_C, BLOCK_D
            )
            z_inverse = tl.load(z_inverse_ptr + b * n_regions + regions, mask=real, other=0.0)
            cosine = dot * z_inverse[:, None] * w_inverse[None, :]
            part, apart = _mixture(
                g_ptr, pooled_ptr, top_ptr, inverse_total_ptr, b * n_cols + cols, in_col, cosine,
                real, temperature,
            )  # fmt: skip
            dtemperature += tl.sum(part * apart * apart, axis=0)
            part = part * (1.0 + temperature * apart)
            along += tl.sum(part * cosine, axis=0)
            z = tl.load(z_at + d[None, :], mask=real[:, None] & in_d[None, :], other=0.0)
            grad = tl.dot(
                tl.trans(part * z_inverse[:, None]),
                z.to(tl.float32),
                grad,
                input_precision=PRECISION,
            )
    row = part_index * n_cols + cols
    inside = in_col[:, None] & in_d[None, :]
    tl.store(part_ptr + row[:, None] * width + d[None, :], grad, mask=inside)
    if index == 0:
        tl.store(along_ptr + row, along, mask=in_col)
        tl.store(dtemperature_ptr + row, dtemperature, mask=in_col)


class Pooled(NamedTuple):
    """Pooled cosines (B, C) float32, and (2, B, C) that backward makes the softmax from again."""

    pooled: Tensor
    stats: Tensor


class PoolGradients(NamedTuple):
    """dz (B, L, D) and dw (C, D) in the dtypes of z and w, dtemperature () float32; or None."""

    dz: Tensor | None
    dw: Tensor | None
    dtemperature: Tensor | None


def _check(z: Tensor, w: Tensor, mask: Tensor | None, temperature: Tensor) -> None:
    if z.dtype not in FLOATS or w.dtype not in FLOATS:
        raise InputError(f"z and w must be float32, float16 or bfloat16: {z.dtype}, {w.dtype}")
    if z.ndim != 3 or w.ndim != 2 or z.shape[2] != w.shape[1]:
        raise InputError(f"z {tuple(z.shape)} and w {tuple(w.shape)} must be (B, L, D) and (C, D)")
    if (z.shape[2] > 1 and z.stride(2) != 1) or not w.is_contiguous():
        raise InputError("z must have contiguous rows and w be contiguous, call .contiguous()")
    if mask is not None and (
        mask.shape != z.shape[:2] or mask.dtype != torch.bool or not mask.is_contiguous()
    ):
        raise InputError(f"mask must be contiguous bool of shape {tuple(z.shape[:2])}")
    if temperature.dtype != torch.float32 or temperature.numel() != 1:
        raise InputError("temperature must be one float32 value on the device")


def _region_block(kernel: str, n_regions: int) -> int:
    least, most = _REGIONS[kernel]
    return max(least, min(most, triton.next_power_of_2(n_regions)))


def pool_fwd(
    z: Tensor, w: Tensor, mask: Tensor | None, temperature: Tensor, *, normalize: bool = True
) -> Pooled:
    """Spatial softmax pooling, unscaled. No host synchronisation.

    Args:
        z: (B, L, D) regions, rows contiguous. w: (C, D), contiguous. float32, float16 or bfloat16,
            each its own; products are accumulated and the softmax evaluated in float32.
        mask: (B, L) bool, contiguous, True for real regions; what the others hold is not read. An
            image without any scores 0.
        temperature: one float32 value on the device.
        normalize: unit rows first.

    Raises:
        InputError: shapes, dtypes or strides other than these.
    """
    _check(z, w, mask, temperature)
    (images, regions, width), cols = z.shape, len(w)
    pooled = torch.zeros(images, cols, dtype=torch.float32, device=z.device)
    stats = pooled.new_zeros(2, images, cols)
    if images and regions and cols:
        size = tiles(wide_products(z, w), backward=False)
        blocks = -(-cols // size.cols)
        _pool_fwd_kernel[(images * blocks,)](
            z,
            w,
            None if mask is None else mask.view(torch.uint8),
            inverse_norms(z, normalize),
            inverse_norms(w, normalize),
            temperature,
            pooled,
            stats[0],
            stats[1],
            regions,
            cols,
            width,
            blocks,
            z.stride(0),
            z.stride(1),
            UPCAST=INTERPRETED or z.dtype != w.dtype,
            PRECISION="tf32x3" if wide_products(z, w) else "tf32",
            BLOCK_L=_region_block("pool", regions),
            BLOCK_C=size.cols,
            BLOCK_D=size.depth,
            num_warps=size.warps,
            num_stages=size.stages,
        )
    return Pooled(pooled, stats)


def pool_bwd(
    g: Tensor,
    z: Tensor,
    w: Tensor,
    mask: Tensor | None,
    temperature: Tensor,
    forward: Pooled,
    *,
    normalize: bool = True,
    needs_z: bool = True,
    needs_w: bool = True,
) -> PoolGradients:
    """Gradients of Σ g · pooled. No host synchronisation, the same bits every time.

    Args:
        g: (B, C) float32, contiguous.
        z, w, mask, temperature, normalize: as :func:`pool_fwd` was given.
        forward: what it returned.
        needs_z: whether dz is wanted. needs_w: whether dw and dtemperature are.

    Raises:
        InputError: shapes, dtypes or strides other than these.
    """
    _check(z, w, mask, temperature)
    (images, regions, width), cols = z.shape, len(w)
    if g.shape != (images, cols) or g.dtype != torch.float32 or not g.is_contiguous():
        raise InputError(f"g must be ({images}, {cols}) contiguous float32 values")
    size = tiles(wide_products(z, w), backward=True)
    col_blocks, slices = -(-cols // size.cols), -(-width // size.slice)
    z_inverse, w_inverse = inverse_norms(z, normalize), inverse_norms(w, normalize)
    inputs = (
        z,
        w,
        None if mask is None else mask.view(torch.uint8),
        *(z_inverse, w_inverse),
        *(temperature, g),
        *(forward.pooled, forward.stats[0], forward.stats[1]),
    )
    some = bool(images and regions and cols)
    constants = {
        "UPCAST": INTERPRETED or z.dtype != w.dtype,
        "PRECISION": "tf32x3" if wide_products(z, w) else "tf32",
        "BLOCK_C": size.cols,
        "BLOCK_D": size.depth,
        "BLOCK_S": size.slice,
        "num_warps": size.warps,
        "num_stages": size.stages,
    }
    dz = dw = dtemperature = None
    if needs_z:
        dz = torch.zeros(z.shape, dtype=z.dtype, device=z.device)
        if some and width:
            block = _region_block("pool_dz", regions)
            region_blocks = -(-regions // block)
            _pool_bwd_dz_kernel[(images * region_blocks * slices,)](
                *inputs,
                dz,
                regions,
                cols,
                width,
                region_blocks,
                slices,
                z.stride(0),
                z.stride(1),
                NORMALIZE=normalize,
                BLOCK_L=block,
                **constants,
            )
    if needs_w:
        dw = torch.zeros_like(w)
        dtemperature = torch.zeros((), dtype=torch.float32, device=z.device)
        if some and width:
            n_parts = min(images, max(1, MAX_PROGRAMS // (col_blocks * slices)))
            part_images = -(-images // n_parts)
            n_parts = -(-images // part_images)
            part = w_inverse.new_empty(n_parts, cols, width)
            sums = w_inverse.new_empty(2, n_parts, cols)
            _pool_bwd_dw_kernel[(n_parts * col_blocks * slices,)](
                *inputs,
                part,
                sums[0],
                sums[1],
                images,
                regions,
                cols,
                width,
                col_blocks,
                slices,
                part_images,
                z.stride(0),
                z.stride(1),
                BLOCK_L=_region_block("pool_dw", regions),
                **constants,
            )
            grad = part.sum(0)
            if normalize:
                grad -= w * (w_inverse * sums[0].sum(0))[:, None]
            dw = (grad * w_inverse[:, None]).to(w.dtype)
            dtemperature = sums[1].sum()
    return PoolGradients(dz, dw, dtemperature)
