"""Spatial softmax pooling of region or token features (METHOD section 7; TaI-DPT, 2211.12739)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pvp_fast.errors import BackendError, InputError


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

    Args:
        z: (B, L, D) region or token features. w: (C, D) class vectors.
        mask: (B, L) bool, True for real regions; a row without any scores 0.
        temperature, scale: numbers or scalar tensors (differentiable).
        normalize: unit rows of z and w first. Half precision is evaluated in float32.

    Returns:
        (B, C) scores.

    Raises:
        InputError: shapes that do not fit. BackendError: an explicit backend that is not there.
    """
    if backend == "triton":
        raise BackendError("backend='triton': pooling has no fused kernel; use 'auto' or 'torch'")
    if backend not in ("auto", "torch"):
        raise InputError(f"backend={backend!r}: use 'auto', 'torch' or 'triton'")
    if z.ndim != 3 or w.ndim != 2 or z.shape[2] != w.shape[1]:
        raise InputError(
            f"z {tuple(z.shape)} and w {tuple(w.shape)} must be (B, L, D) and (C, D) of one width"
        )
    if mask is not None and (mask.shape != z.shape[:2] or mask.dtype != torch.bool):
        raise InputError(
            f"mask must be bool of shape {tuple(z.shape[:2])}, not {mask.dtype} {tuple(mask.shape)}"
        )
    if z.dtype in (torch.float16, torch.bfloat16):
        z = z.float()
    w = w.to(z.dtype)
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
    return scale * (share * cosines).sum(1)
