"""The losses that are a sum over entries: binary cross-entropy, focal (1708.02002) and SigLIP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvp_fast.losses.fused import fused_loss
from pvp_fast.losses.labels import Labels, dense_labels
from pvp_fast.losses.similarity import as_float, reduce, similarity


def _sum(loss: Tensor, known: Tensor | None, weight: Tensor | None, reduction: str) -> Tensor:
    if known is not None:
        loss = loss * known
    if weight is not None:
        loss = loss * weight
    return reduce(loss.sum(), loss.shape, reduction)


def bce_loss_from_scores(
    scores: Tensor, y: Labels, *, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """Binary cross-entropy of logits (B, C), evaluated in at least float32."""
    scores = as_float(scores)
    target, known = dense_labels(y, scores)
    loss = F.binary_cross_entropy_with_logits(scores, target, reduction="none")
    return _sum(loss, known, weight, reduction)


def focal_loss_from_scores(
    scores: Tensor,
    y: Labels,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Sigmoid focal loss of logits (B, C), as torchvision's; alpha < 0 leaves the balance out."""
    scores = as_float(scores)
    target, known = dense_labels(y, scores)
    probability = torch.sigmoid(scores)
    entropy = F.binary_cross_entropy_with_logits(scores, target, reduction="none")
    right = probability * target + (1 - probability) * (1 - target)
    loss = entropy * (1 - right) ** gamma
    if alpha >= 0:
        loss = loss * (alpha * target + (1 - alpha) * (1 - target))
    return _sum(loss, known, weight, reduction)


def siglip_loss_from_scores(
    scores: Tensor, y: Labels, *, weight: Tensor | None = None, reduction: str = "batchmean"
) -> Tensor:
    """−Σ log sigmoid(z · s) with z = ±1 (SigLIP, arXiv 2303.15343, algorithm 1)."""
    scores = as_float(scores)
    target, known = dense_labels(y, scores)
    loss = -F.logsigmoid((2 * target - 1) * scores)
    return _sum(loss, known, weight, reduction)


def bce_loss_ref(
    x: Tensor,
    w: Tensor,
    y: Labels,
    *,
    scale: float | Tensor = 1.0,
    bias: float | Tensor | None = None,
    normalize: bool = True,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """:func:`bce_loss` by its definition in ordinary PyTorch, with (B, C) scores in memory."""
    return bce_loss_from_scores(
        similarity(x, w, scale=scale, bias=bias, normalize=normalize),
        y,
        weight=weight,
        reduction=reduction,
    )


def bce_loss(
    x: Tensor,
    w: Tensor,
    y: Labels,
    *,
    scale: float | Tensor = 1.0,
    bias: float | Tensor | None = None,
    normalize: bool = True,
    weight: Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
    regime: str = "auto",
) -> Tensor:
    """Binary cross-entropy of the scores scale · ⟨x, w⟩ + bias.

    x (B, D), w (C, D); the rest as in :func:`pvp_fast.losses.asl_loss`.
    """

    def reference() -> Tensor:
        return bce_loss_ref(
            x,
            w,
            y,
            scale=scale,
            bias=bias,
            normalize=normalize,
            weight=weight,
            reduction=reduction,
        )

    return fused_loss(
        "bce",
        (),
        reference,
        x,
        w,
        y,
        scale=scale,
        bias=bias,
        normalize=normalize,
        weight=weight,
        reduction=reduction,
        backend=backend,
        regime=regime,
    )


def focal_loss_ref(
    x: Tensor,
    w: Tensor,
    y: Labels,
    *,
    scale: float | Tensor = 1.0,
    bias: float | Tensor | None = None,
    normalize: bool = True,
    weight: Tensor | None = None,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "mean",
) -> Tensor:
    """:func:`focal_loss` by its definition in ordinary PyTorch, with (B, C) scores in memory."""
    return focal_loss_from_scores(
        similarity(x, w, scale=scale, bias=bias, normalize=normalize),
        y,
        weight=weight,
        alpha=alpha,
        gamma=gamma,
        reduction=reduction,
    )


def focal_loss(
    x: Tensor,
    w: Tensor,
    y: Labels,
    *,
    scale: float | Tensor = 1.0,
    bias: float | Tensor | None = None,
    normalize: bool = True,
    weight: Tensor | None = None,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "mean",
    backend: str = "auto",
    regime: str = "auto",
) -> Tensor:
    """Focal loss of the scores scale · ⟨x, w⟩ + bias.

    x (B, D), w (C, D); the rest as in :func:`pvp_fast.losses.asl_loss`.
    """

    def reference() -> Tensor:
        return focal_loss_ref(
            x,
            w,
            y,
            scale=scale,
            bias=bias,
            normalize=normalize,
            weight=weight,
            alpha=alpha,
            gamma=gamma,
            reduction=reduction,
        )

    return fused_loss(
        "focal",
        (alpha, gamma),
        reference,
        x,
        w,
        y,
        scale=scale,
        bias=bias,
        normalize=normalize,
        weight=weight,
        reduction=reduction,
        backend=backend,
        regime=regime,
    )


def siglip_loss_ref(
    x: Tensor,
    w: Tensor,
    y: Labels,
    *,
    scale: float | Tensor = 1.0,
    bias: float | Tensor | None = None,
    normalize: bool = True,
    weight: Tensor | None = None,
    reduction: str = "batchmean",
) -> Tensor:
    """:func:`siglip_loss` by its definition in ordinary PyTorch, with (B, C) scores in memory."""
    return siglip_loss_from_scores(
        similarity(x, w, scale=scale, bias=bias, normalize=normalize),
        y,
        weight=weight,
        reduction=reduction,
    )


def siglip_loss(
    x: Tensor,
    w: Tensor,
    y: Labels,
    *,
    scale: float | Tensor = 1.0,
    bias: float | Tensor | None = None,
    normalize: bool = True,
    weight: Tensor | None = None,
    reduction: str = "batchmean",
    backend: str = "auto",
    regime: str = "auto",
) -> Tensor:
    """SigLIP's loss of the scores scale · ⟨x, w⟩ + bias.

    x (B, D), w (C, D); the rest as in :func:`pvp_fast.losses.asl_loss`.
    """

    def reference() -> Tensor:
        return siglip_loss_ref(
            x,
            w,
            y,
            scale=scale,
            bias=bias,
            normalize=normalize,
            weight=weight,
            reduction=reduction,
        )

    return fused_loss(
        "siglip",
        (),
        reference,
        x,
        w,
        y,
        scale=scale,
        bias=bias,
        normalize=normalize,
        weight=weight,
        reduction=reduction,
        backend=backend,
        regime=regime,
    )


class BCELoss(nn.Module):
    """:func:`bce_loss` with its reduction kept."""

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, x: Tensor, w: Tensor, y: Labels, *, scale: float | Tensor = 1.0) -> Tensor:
        return bce_loss(x, w, y, scale=scale, reduction=self.reduction)


class FocalLoss(nn.Module):
    """:func:`focal_loss` with its settings kept."""

    def __init__(self, *, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "mean") -> None:
        super().__init__()
        self.alpha, self.gamma, self.reduction = alpha, gamma, reduction

    def forward(self, x: Tensor, w: Tensor, y: Labels, *, scale: float | Tensor = 1.0) -> Tensor:
        return focal_loss(
            x, w, y, scale=scale, alpha=self.alpha, gamma=self.gamma, reduction=self.reduction
        )


class SigLIPLoss(nn.Module):
    """:func:`siglip_loss` with a learnable scale (as its logarithm) and bias."""

    def __init__(self, *, scale: float = 10.0, bias: float = -10.0) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(scale).log())
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, x: Tensor, w: Tensor, y: Labels) -> Tensor:
        return siglip_loss(x, w, y, scale=self.log_scale.exp(), bias=self.bias)
