"""Spatial softmax pooling on a CPU: chunks of images, as in :mod:`pvp_fast.losses.native_steps`.

Regions are multiplied as they come; norms, temperature and softmax meet a chunk's products in one
pass, which in backward leaves their gradient there. Masked regions are taken out beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pvp_fast import native
from pvp_fast.losses import exact
from pvp_fast.losses.native_steps import Operand
from pvp_fast.losses.problem import add_product, blocks, multiplies

# Products, or numbers of regions, that a chunk holds at once: 4 MiB of float32.
_CHUNK = 1 << 20
# Products that are kept for backward instead of made again: 16 MiB.
_KEPT = 1 << 22


class Saved(NamedTuple):
    """What forward leaves for backward. Of regions, those that are not masked come first."""

    pooled: Tensor  # (B, C) float32
    stats: Tensor  # (2, B, C): the maximum logit and 1 / Σ exp(logit − maximum)
    norms: Tensor  # (B · L,), or (0,) unless normalised
    kept: Tensor  # the products (B · L, C), or (0, C)


def saved_for(z: Tensor, w: Tensor, normalize: bool) -> Saved:
    """All of it, zero where it is read before it is written."""
    (images, regions, _), categories = z.shape, w.shape[0]
    whole = regions * categories
    keep = whole <= _CHUNK and images * whole <= _KEPT

    def new(*shape: int) -> Tensor:
        return z.new_empty(shape, dtype=torch.float32)

    return Saved(
        new(images, categories).zero_(),
        new(2, images, categories).zero_(),
        new(images * regions if normalize else 0),
        new(images * regions if keep else 0, categories),
    )


class _Chunk(NamedTuple):
    images: slice
    rows: slice  # of all regions that are not masked
    real: Tensor | None  # (images, L) bool
    offsets: Tensor  # where each image's regions begin
    left: Operand
    wide: Tensor | None  # the regions as exact products take them, unless those are kept


class _Chunks:
    def __init__(
        self, z: Tensor, w: Tensor, mask: Tensor | None, temperature: Tensor, normalize: bool
    ) -> None:
        self.z, self.mask, self.normalize = z, mask, normalize
        self.temperature = temperature.item()
        self.half = z.dtype == w.dtype and multiplies(z.dtype, z.device)
        self.right = Operand(w, normalize, self.half)
        count, regions, width = z.shape
        most = min(count, max(1, _CHUNK // (regions * max(len(w), width))))
        cols = min(len(w), max(64, _CHUNK // regions))
        self.images, self.cols = list(blocks(count, most)), list(blocks(len(w), cols))
        self._scratch = torch.empty(most * regions * cols, dtype=torch.float32, device="cpu")

    def walk(self, saved: Saved, again: bool) -> Iterator[_Chunk]:
        """Chunk after chunk; the norms are made, or read where this is done ``again``."""
        done = 0
        for images in self.images:
            part = self.z[images]
            real = None if self.mask is None else self.mask[images]
            if real is None:
                rows = part.flatten(0, 1)
                offsets = torch.arange(len(part) + 1, device="cpu") * part.shape[1]
            else:
                rows, offsets = part[real], F.pad(real.sum(1).cumsum(0), (1, 0))
            at = slice(done, done + len(rows))
            done = at.stop
            norms = saved.norms[at] if self.normalize else None
            left = Operand(rows, self.normalize, self.half, norms, again)
            wide = None if again and len(saved.kept) else exact.operand(left.rows)
            yield _Chunk(images, at, real, offsets, left, wide)

    def products(self, chunk: _Chunk, cols: slice, saved: Saved) -> tuple[Tensor, Tensor]:
        """Those of a chunk, and memory of their shape to overwrite, which may be theirs."""
        shape = chunk.rows.stop - chunk.rows.start, cols.stop - cols.start
        scratch = self._scratch[: shape[0] * shape[1]].view(shape)
        out = saved.kept[chunk.rows] if len(saved.kept) else scratch
        if chunk.wide is not None:
            exact.product(chunk.wide, self.right.rows[cols], out)
        return out, scratch

    def call(
        self, name: str, chunk: _Chunk, cols: slice, saved: Saved, **arguments: Tensor
    ) -> float | None:
        inverse, here = self.right.inverse, (chunk.images, cols)
        found: float | None = native.call(
            name,
            offsets=chunk.offsets,
            temperature=self.temperature,
            threads=torch.get_num_threads(),
            pooled=saved.pooled[here],
            top=saved.stats[0][here],
            inverse_total=saved.stats[1][here],
            z_inverse_norm=chunk.left.inverse,
            w_inverse_norm=None if inverse is None else inverse[cols],
            **arguments,
        )
        return found


def forward(
    z: Tensor, w: Tensor, mask: Tensor | None, temperature: Tensor, normalize: bool
) -> Saved:
    saved = saved_for(z, w, normalize)
    if z.shape[0] and z.shape[1] and len(w):
        chunks = _Chunks(z, w, mask, temperature, normalize)
        for chunk in chunks.walk(saved, again=False):
            for cols in chunks.cols:
                products, _ = chunks.products(chunk, cols, saved)
                chunks.call("pool", chunk, cols, saved, products=products)
        for t in saved[2:]:  # nothing is left to chance, though nobody reads it
            t[chunk.rows.stop :].zero_()
    return saved


def backward(
    g: Tensor,
    z: Tensor,
    w: Tensor,
    mask: Tensor | None,
    temperature: Tensor,
    saved: Saved,
    normalize: bool,
    needs_z: bool,
    needs_w: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dz and dw (empty if not needed) in the dtypes of z and w, dtemperature () float32."""
    dz = z.new_empty(z.shape if needs_z else 0)
    dw = torch.zeros(w.shape if needs_w else (0,), dtype=torch.float32, device="cpu")
    dtemperature = 0.0
    if not (z.numel() and len(w)):
        return dz.zero_(), dw.to(w.dtype), temperature.new_tensor(dtemperature)
    chunks = _Chunks(z, w, mask, temperature, normalize)
    whole = len(chunks.cols) == 1
    for chunk in chunks.walk(saved, again=True):
        rows = chunk.left.rows
        direct = needs_z and whole and mask is None and dz.dtype == rows.dtype
        if direct:
            grad = dz[chunk.images].view(rows.shape)
        elif needs_z:
            grad = torch.empty_like(rows, dtype=rows.dtype if whole else torch.float32)
        for cols in chunks.cols:
            products, flat = chunks.products(chunk, cols, saved)
            along = chunks.call(
                "pool_gradient", chunk, cols, saved,
                products=products, gradients=flat, g=g[chunk.images, cols],
            )  # fmt: skip
            dtemperature += along or 0.0
            flat = flat.to(rows.dtype)
            if needs_z:
                add_product(flat, chunks.right.rows[cols], grad, not cols.start)
            if needs_w:
                add_product(flat.T, rows, dw[cols], False)
        if needs_z:
            chunk.left.project(grad, 1.0)
            if chunk.real is not None:
                dz[chunk.images].zero_()[chunk.real] = grad.to(dz.dtype)
            elif not direct:
                dz[chunk.images] = grad.view(-1, *z.shape[1:])
    if needs_w:
        chunks.right.project(dw, 1.0)
    return dz, dw.to(w.dtype), temperature.new_tensor(dtemperature)
