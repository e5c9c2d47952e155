"""Spatial softmax pooling of region or token features (METHOD section 7; TaI-DPT, 2211.12739)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pvp_fast.dispatch import FUSED, choose, fuses, why_not_triton
from pvp_fast.errors import InputError
from pvp_fast.losses import pooling_ops


def plain_pool(
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
    share = logits.softmax(1)
    if mask is not None:
        share = share * mask[..., None]
    return (share * cosines).sum(1)


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
    running maximum, sum and weighted sum, and the PyTorch path takes chunks of images that stay
    in the cache. The scores are scores like any other, for every ``*_from_scores`` loss::

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
        backend: "auto" takes Triton where z and w are on a CUDA device, else PyTorch; or "torch",
            or "triton".

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
    engine = choose(backend, z.device, {"triton": lambda: why_not_triton(z, w)})
    if not fuses(backend, z.dtype):
        return scale * plain_pool(z, w.to(z.dtype), mask, temperature, normalize)
    if isinstance(temperature, Tensor):
        heat = temperature.to(z.device, torch.float32).reshape(())
    else:
        heat = torch.full((), temperature, dtype=torch.float32, device=z.device)
    if w.dtype not in FUSED:
        w = w.to(z.dtype)
    pooled, _ = pooling_ops.pool(z, w, mask, heat, normalize, engine == "triton")
    return scale * pooled
