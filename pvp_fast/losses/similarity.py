"""What every loss shares: scores from queries and class vectors, labels made dense, reduction."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pvp_fast.errors import BackendError, InputError

Reduction = Literal["sum", "mean", "batchmean"]


def similarity(
    x: Tensor, w: Tensor, *, scale: float | Tensor, bias: float | Tensor | None, normalize: bool
) -> Tensor:
    """Scores (B, C) = scale · ⟨x_b, w_c⟩ + bias; cosines when ``normalize``.

    Half precision inputs are multiplied as they are and evaluated in float32.

    Raises:
        InputError: x is not (B, D) or w is not (C, D).
    """
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[1]:
        raise InputError(
            f"x {tuple(x.shape)} and w {tuple(w.shape)} must be (B, D) and (C, D) of one width D"
        )
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    w = w.to(x.dtype)
    if normalize:
        x, w = F.normalize(x, dim=-1), F.normalize(w, dim=-1)
    scores = scale * (x @ w.T)
    return scores if bias is None else scores + bias


def as_float(scores: Tensor) -> Tensor:
    """Half precision scores as float32, others as they are."""
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores


def reduce(total: Tensor, shape: torch.Size, reduction: str) -> Tensor:
    """A summed loss as ``sum``, ``mean`` (over B·C) or ``batchmean`` (over B); empty gives 0."""
    return total * reduction_factor(reduction, shape)


def reduction_factor(reduction: str, shape: torch.Size) -> float:
    """What :func:`reduce` multiplies by."""
    if reduction == "sum":
        return 1.0
    if reduction == "mean":
        return 1 / max(1, shape.numel())
    if reduction == "batchmean":
        return 1 / max(1, shape[0])
    raise InputError(f"reduction={reduction!r}: use 'sum', 'mean' or 'batchmean'")


def check_backend(backend: str) -> None:
    """Only the plain PyTorch form exists; an explicit request for another raises."""
    if backend not in ("auto", "torch", "triton"):
        raise InputError(f"backend={backend!r}: use 'auto', 'torch' or 'triton'")
    if backend == "triton":
        raise BackendError("backend='triton': this loss has no fused kernel; use 'auto' or 'torch'")
