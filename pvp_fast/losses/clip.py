"""CLIP's symmetric contrastive loss (arXiv 2103.00020, section 2.3), hard or soft targets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pvp_fast.errors import InputError
from pvp_fast.losses._scores import as_float, check_backend, similarity


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
    if y is None:
        y = torch.eye(len(scores), dtype=scores.dtype, device=scores.device)
    elif y.shape != scores.shape:
        raise InputError(f"y has shape {tuple(y.shape)}; the scores have {tuple(scores.shape)}")
    y = y.to(scores.dtype)
    rows = (y / y.sum(1, keepdim=True) * scores.log_softmax(1)).sum()
    columns = (y / y.sum(0, keepdim=True) * scores.log_softmax(0)).sum()
    return -(rows + columns) / (2 * max(1, len(scores)))


def clip_loss(
    x: Tensor,
    w: Tensor,
    y: Tensor | None = None,
    *,
    scale: float | Tensor = 1.0,
    bias: float | Tensor | None = None,
    normalize: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Symmetric InfoNCE of N pairs x (N, D), w (N, D); ``scale`` is 1 / temperature."""
    check_backend(backend)
    scores = similarity(x, w, scale=scale, bias=bias, normalize=normalize)
    return clip_loss_from_scores(scores, y)


class CLIPLoss(nn.Module):
    """:func:`clip_loss` as a module."""

    def forward(
        self, x: Tensor, w: Tensor, y: Tensor | None = None, *, scale: float | Tensor = 1.0
    ) -> Tensor:
        return clip_loss(x, w, y, scale=scale)
