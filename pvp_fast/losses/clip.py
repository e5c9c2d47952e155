"""CLIP's symmetric contrastive loss (arXiv 2103.00020, section 2.3), hard or soft targets."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pvp_fast.dispatch import FUSED, choose, fuses, why_not_native, why_not_triton
from pvp_fast.errors import InputError
from pvp_fast.losses import infonce
from pvp_fast.losses.problem import as_float, similarity


def clip_loss_from_scores(scores: Tensor, y: Tensor | None = None) -> Tensor:
    """Mean of the row-wise and the column-wise cross-entropy of (N, N) logits.

    Args:
        scores: (N, N) logits; half precision is evaluated in float32.
        y: (N, N) non-negative targets, every row and column with a positive sum (they are scaled
            to sum to one); None for the pairs (i, i).

    Raises:
        InputError: logits that are not square, or targets of another shape.
    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise InputError(f"scores must be (N, N), not {tuple(scores.shape)}")
    scores = as_float(scores)
    rows, columns = scores.log_softmax(1), scores.log_softmax(0)
    if y is None:
        total = (rows.diagonal() + columns.diagonal()).sum()
    elif y.shape != scores.shape:
        raise InputError(f"y has shape {tuple(y.shape)}; the scores have {tuple(scores.shape)}")
    else:
        y = y.to(scores.dtype)
        total = (y / y.sum(1, keepdim=True) * rows + y / y.sum(0, keepdim=True) * columns).sum()
    return -total / (2 * max(1, len(scores)))


def clip_loss_ref(
    x: Tensor,
    w: Tensor,
    y: Tensor | None = None,
    *,
    scale: float | Tensor = 1.0,
    bias: float | Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    """:func:`clip_loss` by its definition in ordinary PyTorch, with (N, N) scores in memory."""
    scores = similarity(x, w, scale=scale, bias=bias, normalize=normalize)
    return clip_loss_from_scores(scores, y)


def clip_loss(
    x: Tensor,
    w: Tensor,
    y: Tensor | None = None,
    *,
    scale: float | Tensor = 1.0,
    bias: float | Tensor | None = None,
    normalize: bool = True,
    backend: str = "auto",
    regime: Literal["auto", "chunked", "recompute"] = "auto",
) -> Tensor:
    """Symmetric InfoNCE of N pairs x (N, D), w (N, D); ``scale`` is 1 / temperature.

    Equivalent to::

        s = scale * F.normalize(x) @ F.normalize(w).T + bias
        pairs = torch.arange(len(x))
        loss = (F.cross_entropy(s, pairs) + F.cross_entropy(s.T, pairs)) / 2

    but the (N, N) scores are never in memory whole beyond 16 MiB. Memory is O(N · D) and a
    block; scores are made again in backward, 8 N² D multiply-adds' worth against 6 with (N, N) in
    memory. The same inputs give the same bits on the same device.

    float64, and targets that need a gradient, take the plain definition :func:`clip_loss_ref`; it
    alone has second derivatives and works in torch.func.grad.

    Args:
        x, w: (N, D), each of any float dtype; half precision is evaluated in float32.
        y: (N, N) non-negative targets, every row and column with a positive sum (they are scaled
            to sum to one); None for the pairs (i, i).
        scale: a number or one value (differentiable).
        bias: a number or one value. It cancels in both softmaxes: neither the loss nor any other
            gradient depends on it, and its own gradient is exactly 0.
        normalize: unit rows of x and w first.
        backend: "auto" takes Triton where x and w are on a CUDA device, "native" (compiled) on a
            CPU; or "torch", "triton" or "native".
        regime: "chunked" walks the scores in blocks and keeps them for backward where they are few
            (2048 pairs; 1024 by "torch" on a CPU); "recompute" keeps nothing and, by
            Triton, holds nothing but x, w and their gradients: the least memory, more arithmetic.
            "auto" is "chunked".

    Returns:
        () float32 (float64 where x is); 0 for N = 0.

    Raises:
        InputError: shapes that do not fit, x or w that are not floating point, a scale or bias of
            more than one value, an unknown word. BackendError: an explicit backend that is not
            there.
    """
    if x.ndim != 2 or x.shape != w.shape:
        raise InputError(
            f"x {tuple(x.shape)} and w {tuple(w.shape)} must both be (N, D): row i of x and of w "
            "are a pair"
        )
    if y is not None and y.shape != (len(x), len(x)):
        raise InputError(f"y must be {(len(x), len(x))} for {len(x)} pairs, not {tuple(y.shape)}")
    if not (x.is_floating_point() and w.is_floating_point()):
        raise InputError(f"x and w must be floating point, not {x.dtype} and {w.dtype}")
    for name, value in (("scale", scale), ("bias", bias)):
        if isinstance(value, Tensor) and value.numel() != 1:
            raise InputError(f"{name} must be one value, not {tuple(value.shape)}")
    if regime not in ("auto", "chunked", "recompute"):
        raise InputError(f"regime={regime!r}: use 'auto', 'chunked' or 'recompute'")
    learns = y is not None and y.requires_grad

    unknown = "targets need a gradient" if learns else None
    engines = {
        "triton": lambda: unknown or why_not_triton(x, w),
        "native": lambda: unknown or why_not_native(x.device),
    }
    engine = choose(backend, x.device, engines)
    if not fuses(backend, x.dtype) or learns:
        scale = scale.reshape(()) if isinstance(scale, Tensor) else scale
        bias = bias.reshape(()) if isinstance(bias, Tensor) else bias
        return clip_loss_ref(x, w, y, scale=scale, bias=bias, normalize=normalize)
    heat, shift = (
        v.to(x.device, torch.float32).reshape(())
        if isinstance(v, Tensor)
        else torch.full((), v or 0.0, dtype=torch.float32, device=x.device)
        for v in (scale, bias)
    )
    if w.dtype not in FUSED:
        w = w.to(x.dtype)
    return infonce.evaluated(x, w, y, heat, shift, normalize, engine, regime == "recompute")


class CLIPLoss(nn.Module):
    """:func:`clip_loss` as a module."""

    def forward(
        self, x: Tensor, w: Tensor, y: Tensor | None = None, *, scale: float | Tensor = 1.0
    ) -> Tensor:
        return clip_loss(x, w, y, scale=scale)
