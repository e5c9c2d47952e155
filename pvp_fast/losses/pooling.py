"""Spatial softmax pooling of region or token features (METHOD section 7; TaI-DPT, 2211.12739).

The definition, plain PyTorch in chunks, the operators, the public function. Neither the Triton
kernels nor the chunks hold (B, L, C): the kernels stream over the regions, and the chunks are of as
many images as keep their cosines in a core's cache. Both make the cosines again in backward; the
compiled extension (:mod:`pvp_fast.losses.native_pool`) only where they are more than 16 MiB.
``pvp_fast::spatial_softmax_pool`` and its backward are torch.library operators with shapes for
torch.compile and a gradient for autograd.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pvp_fast.dispatch import FUSED, choose, fuses, why_not_native, why_not_triton, with_gradient
from pvp_fast.errors import BackendError, InputError
from pvp_fast.losses import native_pool
from pvp_fast.losses.problem import blocks, inverse_norms, through_norm

# Cosines that a chunk holds at once: 1 MiB of float32 on a CPU, enough to fill a GPU.
_CHUNK = {"cpu": 1 << 18}
_CHUNK_ELSEWHERE = 1 << 23


def spatial_softmax_pool_ref(
    z: Tensor, w: Tensor, mask: Tensor | None, temperature: float | Tensor, normalize: bool
) -> Tensor:
    """The definition in ordinary PyTorch, with (B, L, C) in memory; z and w of one dtype."""
    if normalize:
        z, w = F.normalize(z, dim=-1), F.normalize(w, dim=-1)
    cosines = z @ w.T
    logits = cosines * temperature
    if mask is not None:
        # A finite floor keeps rows without any region free of NaN; their weights are zeroed below.
        logits = logits.masked_fill(~mask[..., None], torch.finfo(logits.dtype).min)
    mixture = logits.softmax(1)
    if mask is not None:
        mixture = mixture * mask[..., None]
    return (mixture * cosines).sum(1)


class _Chunks:
    """Unit rows, cosines and scratch of one chunk after another, in memory taken once."""

    def __init__(self, z: Tensor, w: Tensor, mask: Tensor | None, normalize: bool) -> None:
        self.z, self.mask = z, mask
        images, regions, width = z.shape
        budget = _CHUNK.get(z.device.type, _CHUNK_ELSEWHERE)
        self.images = min(images, max(1, budget // (regions * max(len(w), width))))
        self.cols = min(len(w), max(64, budget // regions))
        self.z_inverse, self.w_inverse = (inverse_norms(t, normalize) for t in (z, w))
        self.w = w * self.w_inverse[:, None]
        self._rows = self.w.new_empty(self.images * regions, width)
        self._scratch = [self.w.new_empty(self.images * regions * self.cols) for _ in range(3)]

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """The images of each chunk, their unit rows (images · L, D), and their mask."""
        for images in blocks(len(self.z), self.images):
            part = self.z[images]
            rows = self._rows[: part.shape[0] * part.shape[1]]
            torch.mul(part, self.z_inverse[images, :, None], out=rows.view(part.shape))
            mask = None
            if self.mask is not None:
                mask = self.mask[images, :, None]
                rows.view(part.shape).masked_fill_(~mask, 0.0)
            yield images, rows, mask

    def col_blocks(self) -> list[slice]:
        return list(blocks(len(self.w), self.cols))

    def scratch(self, index: int, rows: Tensor, cols: slice) -> Tensor:
        """(images, L, cols) to overwrite."""
        regions, width = self.z.shape[1], cols.stop - cols.start
        return self._scratch[index][: len(rows) * width].view(-1, regions, width)

    def cosines(self, rows: Tensor, cols: slice) -> Tensor:
        out = self.scratch(0, rows, cols)
        torch.mm(rows, self.w[cols].T, out=out.view(len(rows), -1))
        return out


def _chunked(
    z: Tensor, w: Tensor, mask: Tensor | None, temperature: Tensor, normalize: bool
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
            part = torch.mul(cosine, temperature, out=chunks.scratch(1, rows, cols))
            if real is not None:
                part.masked_fill_(~real, float("-inf"))
            top = part.amax(1)
            if real is not None:
                top.masked_fill_(~real.any(1), 0.0)
            total = part.sub_(top[:, None]).exp_().sum(1)
            inverse_total = total.reciprocal()
            if real is not None:
                inverse_total.masked_fill_(~real.any(1), 0.0)
            pooled[images, cols] = part.mul_(cosine).sum(1).mul_(inverse_total)
            stats[0, images, cols] = top
            stats[1, images, cols] = inverse_total
    return pooled, stats


def _chunked_backward(
    g: Tensor,
    z: Tensor,
    w: Tensor,
    mask: Tensor | None,
    temperature: Tensor,
    pooled: Tensor,
    stats: Tensor,
    normalize: bool,
    needs_z: bool,
    needs_w: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dz, dw and dtemperature; see the formulas in kernels/pool.py."""
    dz = torch.zeros(z.shape, dtype=z.dtype, device=z.device) if needs_z else z.new_empty(0)
    grad_w = torch.zeros(w.shape, dtype=torch.float32, device=w.device)
    dtemperature = torch.zeros((), dtype=torch.float32, device=z.device)
    if not (z.numel() and len(w)):
        return dz, grad_w.to(w.dtype) if needs_w else w.new_empty(0), dtemperature
    chunks = _Chunks(z, w, mask, normalize)
    single = len(chunks.col_blocks()) == 1
    for images, rows, real in chunks:
        grad = torch.empty_like(rows) if single else torch.zeros_like(rows)
        for cols in chunks.col_blocks():
            apart = chunks.cosines(rows, cols)
            part = torch.mul(apart, temperature, out=chunks.scratch(1, rows, cols))
            part.sub_(stats[0, images, None, cols])
            if real is not None:
                # Above the maximum of the real ones, a padded row could overflow.
                part.masked_fill_(~real, float("-inf"))
            part.exp_().mul_((g[images, cols] * stats[1, images, cols])[:, None])
            apart.sub_(pooled[images, None, cols])
            lean = torch.mul(part, apart, out=chunks.scratch(2, rows, cols))
            dtemperature += torch.dot(lean.view(-1), apart.view(-1))
            part.addcmul_(lean, temperature)
            flat = part.view(len(rows), -1)
            if needs_w:
                grad_w[cols].addmm_(flat.T, rows)
            if needs_z and single:
                torch.mm(flat, chunks.w, out=grad)
            elif needs_z:
                grad.addmm_(flat, chunks.w[cols])
        if needs_z:
            if normalize:
                through_norm(grad, rows)
            grad = grad.view(-1, *z.shape[1:]).mul_(chunks.z_inverse[images, :, None])
            dz[images] = grad if real is None else grad.masked_fill_(~real, 0.0)
    if not needs_w:
        return dz, w.new_empty(0), dtemperature
    if normalize:
        through_norm(grad_w, chunks.w)
    return dz, grad_w.mul_(chunks.w_inverse[:, None]).to(w.dtype), dtemperature


def _pool(
    z: Tensor, w: Tensor, mask: Tensor | None, temperature: Tensor, normalize: bool, engine: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pooled cosines (B, C) float32; what backward needs: native_pool.Saved, or (2, B, C) alone."""
    mask = None if mask is None else mask.contiguous()
    with torch.autocast(z.device.type, enabled=False):
        if engine == "native":
            return native_pool.forward(z, w, mask, temperature, normalize)
        if engine == "torch":
            pooled, stats = _chunked(z, w, mask, temperature, normalize)
            return pooled, stats, z.new_empty(0), z.new_empty(0)
        from pvp_fast.kernels import pool as kernels

        z = z if z.stride(-1) == 1 else z.contiguous()
        found = kernels.pool_fwd(z, w.contiguous(), mask, temperature, normalize=normalize)
        return found.pooled, found.stats, z.new_empty(0), z.new_empty(0)


pool = torch.library.custom_op("pvp_fast::spatial_softmax_pool", _pool, mutates_args=())


@pool.register_fake
def _(
    z: Tensor, w: Tensor, mask: Tensor | None, temperature: Tensor, normalize: bool, engine: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    saved = native_pool.saved_for(z, w, normalize)
    if engine == "native":
        return saved
    return saved.pooled, saved.stats, z.new_empty(0), z.new_empty(0)


def _pool_backward(
    g: Tensor,
    z: Tensor,
    w: Tensor,
    mask: Tensor | None,
    temperature: Tensor,
    pooled: Tensor,
    stats: Tensor,
    norms: Tensor,
    kept: Tensor,
    normalize: bool,
    engine: str,
    needs_z: bool,
    needs_w: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dz and dw (empty if not needed) in the dtypes of z and w, dtemperature () float32."""
    g, mask = g.contiguous(), None if mask is None else mask.contiguous()
    with torch.autocast(z.device.type, enabled=False):
        if engine == "native":
            saved = native_pool.Saved(pooled, stats, norms, kept)
            return native_pool.backward(
                g, z, w, mask, temperature, saved, normalize, needs_z, needs_w
            )
        if engine == "torch":
            return _chunked_backward(
                g, z, w, mask, temperature, pooled, stats, normalize, needs_z, needs_w
            )
        from pvp_fast.kernels import pool as kernels

        grads = kernels.pool_bwd(
            g,
            z if z.stride(-1) == 1 else z.contiguous(),
            w.contiguous(),
            mask,
            temperature,
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


pool_backward = torch.library.custom_op(
    "pvp_fast::spatial_softmax_pool_backward", _pool_backward, mutates_args=()
)


@pool_backward.register_fake
def _(g: Tensor, z: Tensor, w: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, needs_z, needs_w = others
    dz = z.new_empty(z.shape if needs_z else (0,))
    return dz, w.new_empty(w.shape if needs_w else (0,)), g.new_empty(())


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.set_materialize_grads(False)  # of what is kept, which nobody differentiates
    z, w, mask, temperature, ctx.normalize, ctx.engine = inputs
    ctx.save_for_backward(z, w, mask, temperature, *output)


def _backward(ctx, g: Tensor, *_unused: Tensor | None):  # type: ignore[no-untyped-def]
    z, w, mask, temperature, *saved = ctx.saved_tensors
    needs_z, needs_w, _, needs_temperature, *_ = ctx.needs_input_grad
    dz, dw, dtemperature = _gradients(
        g, z, w, mask, temperature, *saved, ctx.normalize, ctx.engine,
        needs_z, needs_w or needs_temperature,
    )  # fmt: skip
    return (
        dz if needs_z else None,
        dw if needs_w else None,
        None,
        dtemperature if needs_temperature else None,
        None,
        None,
    )


def _no_second(ctx, *grads: Tensor):  # type: ignore[no-untyped-def]
    raise BackendError(
        "spatial_softmax_pool: the fused gradient has no gradient of its own; give float64 z and "
        "w, which take plain PyTorch, for second derivatives"
    )


_pooled = with_gradient(pool, _pool, _backward, _setup)
_gradients = with_gradient(pool_backward, _pool_backward, _no_second)


def spatial_softmax_pool(
    z: Tensor,
    w: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float | Tensor = 50.0,
    scale: float | Tensor = 1.0,
    normalize: bool = True,
    backend: str = "auto",
) -> Tensor:
    """s_bc = scale · Σ_l π_blc a_blc, with a = ⟨z_bl, w_c⟩ and π = softmax over l of a · T.

    Equivalent to::

        a = torch.einsum("bld,cd->blc", z, w)
        scores = scale * ((a * temperature).softmax(1) * a).sum(1)

    but (B, L, C) is never in memory, forward or backward: the Triton kernels stream over L with a
    running maximum, sum and weighted sum, and the others take chunks of images that stay in the
    cache; "native" keeps products for backward up to 16 MiB. The scores are scores like any other,
    for every ``*_from_scores`` loss::

        loss = asl_loss_from_scores(spatial_softmax_pool(z, w, mask, scale=scale), y)

    which is what pooling fused with a loss means here: its (B, C) scores, a factor L smaller, are
    in memory; nothing of size (B, L, C) is. float64 takes the plain definition, which has (B, L, C)
    in memory, and which alone has second derivatives and works in torch.func.grad. Relative errors
    of the gradients grow as |temperature| · 1e-7.

    Args:
        z: (B, L, D) region or token features, any float dtype; half precision is evaluated in
            float32. w: (C, D) class vectors, the same or another dtype.
        mask: (B, L) bool, True for real regions; what the others hold does not matter and gets
            gradient 0; a row without any scores 0.
        temperature, scale: numbers or scalar tensors (differentiable).
        normalize: unit rows of z and w first.
        backend: "auto" takes Triton where z and w are on a CUDA device, "native" (compiled) on a
            CPU; or "torch", "triton" or "native".

    Returns:
        (B, C) scores, float32 (float64 where z is).

    Raises:
        InputError: shapes that do not fit, z or w that are not floating point, a temperature of
            more than one value. BackendError: an explicit backend that is not there.
    """
    if z.ndim != 3 or w.ndim != 2 or z.shape[2] != w.shape[1]:
        raise InputError(
            f"z {tuple(z.shape)} and w {tuple(w.shape)} must be (B, L, D) and (C, D) of one width"
        )
    if mask is not None and (mask.shape != z.shape[:2] or mask.dtype != torch.bool):
        raise InputError(
            f"mask must be bool of shape {tuple(z.shape[:2])}, not {mask.dtype} {tuple(mask.shape)}"
        )
    if not (z.is_floating_point() and w.is_floating_point()):
        raise InputError(f"z and w must be floating point, not {z.dtype} and {w.dtype}")
    if isinstance(temperature, Tensor) and temperature.numel() != 1:
        raise InputError(f"temperature must be one value, not {tuple(temperature.shape)}")
    engines = {
        "triton": lambda: why_not_triton(z, w),
        "native": lambda: why_not_native(z.device),
    }
    engine = choose(backend, z.device, engines)
    if not fuses(backend, z.dtype):
        return scale * spatial_softmax_pool_ref(z, w.to(z.dtype), mask, temperature, normalize)
    if isinstance(temperature, Tensor):
        temperature = temperature.to(z.device, torch.float32).reshape(())
    else:
        temperature = torch.full((), temperature, dtype=torch.float32, device=z.device)
    if w.dtype not in FUSED:
        w = w.to(z.dtype)
    pooled, *_ = _pooled(z, w, mask, temperature, normalize, engine)
    return scale * pooled
