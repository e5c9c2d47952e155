"""The operators under spatial softmax pooling: Triton kernels, or chunks in plain PyTorch.

``pvp_fast::spatial_softmax_pool`` and its backward are torch.library operators with shapes for
torch.compile and a gradient for autograd. Neither path holds (B, L, C): the kernels stream over
the regions, and the chunks are of as many images as keep their cosines in a core's cache. Both
make the cosines again in backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pvp_fast.errors import BackendError

_EPS = 1e-12  # of torch.nn.functional.normalize
# Cosines that a chunk holds at once: 1 MiB of float32 on a CPU, enough to fill a GPU.
_CHUNK = {"cpu": 1 << 18}
_CHUNK_ELSEWHERE = 1 << 23


def _inverse_norms(rows: Tensor, normalize: bool) -> Tensor:
    if not normalize:
        return torch.ones(rows.shape[:-1], dtype=torch.float32, device=rows.device)
    norms = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float32)
    return norms.clamp_min(_EPS).reciprocal()


class _Chunks:
    """Unit rows, cosines and scratch of one chunk after another, in memory taken once."""

    def __init__(self, z: Tensor, w: Tensor, mask: Tensor | None, normalize: bool) -> None:
        self.z, self.mask = z, mask
        images, regions, width = z.shape
        budget = _CHUNK.get(z.device.type, _CHUNK_ELSEWHERE)
        self.images = min(images, max(1, budget // (regions * max(len(w), width))))
        self.cols = min(len(w), max(64, budget // regions))
        self.z_inverse, self.w_inverse = _inverse_norms(z, normalize), _inverse_norms(w, normalize)
        self.w = w * self.w_inverse[:, None]
        self._rows = self.w.new_empty(self.images * regions, width)
        self._scratch = [self.w.new_empty(self.images * regions * self.cols) for _ in range(3)]

    def __iter__(self):  # type: ignore[no-untyped-def]
        """The images of each chunk, their unit rows (images · L, D), and their mask."""
        for first in range(0, len(self.z), self.images):
            images = slice(first, min(first + self.images, len(self.z)))
            part = self.z[images]
            rows = self._rows[: part.shape[0] * part.shape[1]]
            torch.mul(part, self.z_inverse[images, :, None], out=rows.view(part.shape))
            mask = None
            if self.mask is not None:
                mask = self.mask[images, :, None]
                rows.view(part.shape).masked_fill_(~mask, 0.0)
            yield images, rows, mask

    def col_blocks(self) -> list[slice]:
        count = len(self.w)
        return [slice(i, min(i + self.cols, count)) for i in range(0, count, self.cols)]

    def scratch(self, index: int, rows: Tensor, cols: slice) -> Tensor:
        """(images, L, cols) to overwrite."""
        regions, width = self.z.shape[1], cols.stop - cols.start
        return self._scratch[index][: len(rows) * width].view(-1, regions, width)

    def cosines(self, rows: Tensor, cols: slice) -> Tensor:
        out = self.scratch(0, rows, cols)
        torch.mm(rows, self.w[cols].T, out=out.view(len(rows), -1))
        return out


def _chunked(
    z: Tensor, w: Tensor, mask: Tensor | None, heat: Tensor, normalize: bool
) -> tuple[Tensor, Tensor]:
    """Pooled cosines (B, C); the maximum logit and 1 / Σ exp(logit − maximum), (2, B, C)."""
    pooled = torch.zeros(len(z), len(w), dtype=torch.float32, device=z.device)
    stats = pooled.new_zeros(2, *pooled.shape)
    if not (z.shape[0] and z.shape[1] and len(w)):
        return pooled, stats
    chunks = _Chunks(z, w, mask, normalize)
    for images, rows, real in chunks:
        for cols in chunks.col_blocks():
            cosine = chunks.cosines(rows, cols)
            part = torch.mul(cosine, heat, out=chunks.scratch(1, rows, cols))
            if real is not None:
                part.masked_fill_(~real, float("-inf"))
            top = part.amax(1)
            if real is not None:
                top.masked_fill_(~real.any(1), 0.0)
            total = part.sub_(top[:, None]).exp_().sum(1)
            share = total.reciprocal()
            if real is not None:
                share.masked_fill_(~real.any(1), 0.0)
            pooled[images, cols] = part.mul_(cosine).sum(1).mul_(share)
            stats[0, images, cols] = top
            stats[1, images, cols] = share
    return pooled, stats


def _chunked_backward(
    g: Tensor,
    z: Tensor,
    w: Tensor,
    mask: Tensor | None,
    heat: Tensor,
    pooled: Tensor,
    stats: Tensor,
    normalize: bool,
    needs_z: bool,
    needs_w: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dz, dw and dtemperature; see the formulas in kernels/pool.py."""
    dz = torch.zeros(z.shape, dtype=z.dtype, device=z.device) if needs_z else z.new_empty(0)
    grad_w = torch.zeros(w.shape, dtype=torch.float32, device=w.device)
    dheat = torch.zeros((), dtype=torch.float32, device=z.device)
    if not (z.numel() and len(w)):
        return dz, grad_w.to(w.dtype) if needs_w else w.new_empty(0), dheat
    chunks = _Chunks(z, w, mask, normalize)
    single = len(chunks.col_blocks()) == 1
    for images, rows, real in chunks:
        grad = torch.empty_like(rows) if single else torch.zeros_like(rows)
        for cols in chunks.col_blocks():
            apart = chunks.cosines(rows, cols)
            part = torch.mul(apart, heat, out=chunks.scratch(1, rows, cols))
            part.sub_(stats[0, images, None, cols])
            if real is not None:
                # Above the maximum of the real ones, a padded row could overflow.
                part.masked_fill_(~real, float("-inf"))
            part.exp_().mul_((g[images, cols] * stats[1, images, cols])[:, None])
            apart.sub_(pooled[images, None, cols])
            lean = torch.mul(part, apart, out=chunks.scratch(2, rows, cols))
            dheat += torch.dot(lean.view(-1), apart.view(-1))
            part.addcmul_(lean, heat)
            flat = part.view(len(rows), -1)
            if needs_w:
                grad_w[cols].addmm_(flat.T, rows)
            if needs_z and single:
                torch.mm(flat, chunks.w, out=grad)
            elif needs_z:
                grad.addmm_(flat, chunks.w[cols])
        if needs_z:
            if normalize:
                grad.addcmul_(rows, torch.linalg.vecdot(grad, rows)[:, None], value=-1)
            grad = grad.view(-1, *z.shape[1:]).mul_(chunks.z_inverse[images, :, None])
            dz[images] = grad if real is None else grad.masked_fill_(~real, 0.0)
    if not needs_w:
        return dz, w.new_empty(0), dheat
    if normalize:
        grad_w.addcmul_(chunks.w, torch.linalg.vecdot(grad_w, chunks.w)[:, None], value=-1)
    return dz, grad_w.mul_(chunks.w_inverse[:, None]).to(w.dtype), dheat


@torch.library.custom_op("pvp_fast::spatial_softmax_pool", mutates_args=())
def pool(
    z: Tensor, w: Tensor, mask: Tensor | None, heat: Tensor, normalize: bool, triton: bool
) -> tuple[Tensor, Tensor]:
    """Pooled cosines (B, C) float32, and what backward needs, (2, B, C)."""
    mask = None if mask is None else mask.contiguous()
    with torch.autocast(z.device.type, enabled=False):
        if not triton:
            return _chunked(z, w, mask, heat, normalize)
        from pvp_fast.kernels import pool as kernels

        z = z if z.stride(-1) == 1 else z.contiguous()
        found = kernels.pool(z, w.contiguous(), mask, heat, normalize=normalize)
        return found.pooled, found.stats


@pool.register_fake
def _(
    z: Tensor, w: Tensor, mask: Tensor | None, heat: Tensor, normalize: bool, triton: bool
) -> tuple[Tensor, Tensor]:
    pooled = z.new_empty(z.shape[0], w.shape[0], dtype=torch.float32)
    return pooled, pooled.new_empty(2, z.shape[0], w.shape[0])


@torch.library.custom_op("pvp_fast::spatial_softmax_pool_backward", mutates_args=())
def pool_backward(
    g: Tensor,
    z: Tensor,
    w: Tensor,
    mask: Tensor | None,
    heat: Tensor,
    pooled: Tensor,
    stats: Tensor,
    normalize: bool,
    triton: bool,
    needs_z: bool,
    needs_w: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dz and dw (empty if not needed) in the dtypes of z and w, dtemperature () float32."""
    g, mask = g.contiguous(), None if mask is None else mask.contiguous()
    with torch.autocast(z.device.type, enabled=False):
        if not triton:
            return _chunked_backward(
                g, z, w, mask, heat, pooled, stats, normalize, needs_z, needs_w
            )
        from pvp_fast.kernels import pool as kernels

        grads = kernels.pool_backward(
            g,
            z if z.stride(-1) == 1 else z.contiguous(),
            w.contiguous(),
            mask,
            heat,
            kernels.Pooled(pooled, stats),
            normalize=normalize,
            needs_z=needs_z,
            needs_w=needs_w,
        )
        return (
            z.new_empty(0) if grads.dz is None else grads.dz,
            w.new_empty(0) if grads.dw is None else grads.dw,
            g.new_zeros(()) if grads.dtemperature is None else grads.dtemperature,
        )


@pool_backward.register_fake
def _(
    g: Tensor,
    z: Tensor,
    w: Tensor,
    mask: Tensor | None,
    heat: Tensor,
    pooled: Tensor,
    stats: Tensor,
    normalize: bool,
    triton: bool,
    needs_z: bool,
    needs_w: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dz = z.new_empty(z.shape if needs_z else (0,))
    return dz, w.new_empty(w.shape if needs_w else (0,)), g.new_empty(())


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    z, w, mask, heat, ctx.normalize, ctx.triton = inputs
    ctx.save_for_backward(z, w, mask, heat, *output)


def _backward(ctx, g: Tensor, _stats: Tensor | None):  # type: ignore[no-untyped-def]
    z, w, mask, heat, pooled, stats = ctx.saved_tensors
    needs_z, needs_w, _, needs_heat, *_ = ctx.needs_input_grad
    dz, dw, dheat = pool_backward(
        g, z, w, mask, heat, pooled, stats, ctx.normalize, ctx.triton,
        needs_z, needs_w or needs_heat,
    )  # fmt: skip
    return (
        dz if needs_z else None,
        dw if needs_w else None,
        None,
        dheat if needs_heat else None,
        None,
        None,
    )


def _no_second(ctx, *grads: Tensor):  # type: ignore[no-untyped-def]
    raise BackendError(
        "spatial_softmax_pool: the fused gradient has no gradient of its own; give float64 z and "
        "w, which take plain PyTorch, for second derivatives"
    )


pool.register_autograd(_backward, setup_context=_setup)
pool_backward.register_autograd(_no_second)
