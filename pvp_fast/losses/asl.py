"""Asymmetric loss for multi-label classification (arXiv 2009.14119, equations 4–7)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pvp_fast.losses.fused import fused_loss
from pvp_fast.losses.labels import Labels, dense_labels
from pvp_fast.losses.similarity import as_float, reduce, similarity


def _power(base: Tensor, exponent: float) -> Tensor:
    """base^exponent for base ≥ 0 with gradient 0, not NaN or infinity, at base 0."""
    if exponent == 0:
        return torch.ones_like(base)
    safe = torch.where(base > 0, base, torch.ones_like(base))
    return torch.where(base > 0, safe**exponent, torch.zeros_like(base))


def asl_loss_from_scores(
    scores: Tensor,
    y: Labels,
    *,
    weight: Tensor | None = None,
    gamma_pos: float = 1.0,
    gamma_neg: float = 4.0,
    clip: float = 0.05,
    eps: float = 1e-8,
    detach_focal_weight: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """The asymmetric loss of logits.

    With σ = sigmoid(s) and q = min(1 − σ + clip, 1):
    −y · log(max(σ, ε)) · (1 − σ)^γ₊ − (1 − y) · log(max(q, ε)) · (1 − q)^γ₋.

    Args:
        scores: (B, C) logits; half precision is evaluated in float32.
        y: labels as in :func:`pvp_fast.losses.labels.dense_labels`.
        weight: (C,) per-category factor.
        detach_focal_weight: no gradient through the focal factors, as the original with
            ``disable_torch_grad_focal_loss``.
        reduction: "sum", "mean" over B·C, or "batchmean" over B.

    Returns:
        Scalar loss, float32 or the scores' wider dtype.
    """
    scores = as_float(scores)
    target, known = dense_labels(y, scores)
    present = torch.sigmoid(scores)
    absent = (1 - present + clip).clamp(max=1)
    focus_pos, focus_neg = 1 - present, 1 - absent
    if detach_focal_weight:
        focus_pos, focus_neg = focus_pos.detach(), focus_neg.detach()
    log_pos = present.clamp(min=eps).log() * _power(focus_pos, gamma_pos)
    log_neg = absent.clamp(min=eps).log() * _power(focus_neg, gamma_neg)
    loss = -(target * log_pos + (1 - target) * log_neg)
    if known is not None:
        loss = loss * known
    if weight is not None:
        loss = loss * weight
    return reduce(loss.sum(), scores.shape, reduction)


def asl_loss_ref(
    x: Tensor,
    w: Tensor,
    y: Labels,
    *,
    scale: float | Tensor = 1.0,
    bias: float | Tensor | None = None,
    normalize: bool = True,
    weight: Tensor | None = None,
    gamma_pos: float = 1.0,
    gamma_neg: float = 4.0,
    clip: float = 0.05,
    eps: float = 1e-8,
    detach_focal_weight: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """:func:`asl_loss` by its definition in ordinary PyTorch, with (B, C) scores in memory."""
    return asl_loss_from_scores(
        similarity(x, w, scale=scale, bias=bias, normalize=normalize),
        y,
        weight=weight,
        gamma_pos=gamma_pos,
        gamma_neg=gamma_neg,
        clip=clip,
        eps=eps,
        detach_focal_weight=detach_focal_weight,
        reduction=reduction,
    )


def asl_loss(
    x: Tensor,
    w: Tensor,
    y: Labels,
    *,
    scale: float | Tensor = 1.0,
    bias: float | Tensor | None = None,
    normalize: bool = True,
    weight: Tensor | None = None,
    gamma_pos: float = 1.0,
    gamma_neg: float = 4.0,
    clip: float = 0.05,
    eps: float = 1e-8,
    detach_focal_weight: bool = True,
    reduction: str = "mean",
    backend: str = "auto",
    regime: str = "auto",
) -> Tensor:
    """The asymmetric loss of the scores scale · ⟨x, w⟩ + bias, which are never in memory.

    The scores stay in the cache, and the gradients are made in the same pass; see ``regime``.
    float64 x takes :func:`asl_loss_ref`, which alone has second derivatives and works in
    torch.func.grad. bfloat16 multiplies in bfloat16, as x @ w.T does, where the CPU can: its
    products are rounded to 8 bits, the loss is evaluated in float32.

    Args:
        x: (B, D) queries. w: (C, D) class vectors. y: labels. Any float dtype.
        scale, bias: logit scale and bias, numbers or scalar tensors (differentiable).
        normalize: unit rows first, so that the scores are scaled cosines.
        weight: (C,) factor of each category (differentiable).
        backend: "auto" takes Triton where x and w are on a CUDA device and the compiled extension
            ("native") on a CPU where it can, else PyTorch. "triton", "native" and "torch" run or
            raise; "native" takes no soft labels and no weight that learns.
        regime: "chunked" tiles whose scores stay in the cache; "small", all at once: one Triton
            kernel up to C = 64 (float32) or 128 (half precision), one tile in PyTorch;
            "recompute", the least memory: small tiles, made again in backward. "auto" is "small"
            where that kernel fits, else "chunked".
        Others: see :func:`asl_loss_from_scores`.

    Returns:
        Scalar loss, float32 (float64 where x is).

    Raises:
        InputError: arguments that do not fit each other. BackendError: an explicit backend that is
            not there.
    """

    def reference() -> Tensor:
        return asl_loss_ref(
            x,
            w,
            y,
            scale=scale,
            bias=bias,
            normalize=normalize,
            weight=weight,
            gamma_pos=gamma_pos,
            gamma_neg=gamma_neg,
            clip=clip,
            eps=eps,
            detach_focal_weight=detach_focal_weight,
            reduction=reduction,
        )

    return fused_loss(
        "asl",
        (gamma_pos, gamma_neg, clip, eps, detach_focal_weight),
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


class AsymmetricLoss(nn.Module):
    """:func:`asl_loss` with its settings kept."""

    def __init__(
        self,
        *,
        gamma_pos: float = 1.0,
        gamma_neg: float = 4.0,
        clip: float = 0.05,
        eps: float = 1e-8,
        detach_focal_weight: bool = True,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.gamma_pos, self.gamma_neg, self.clip, self.eps = gamma_pos, gamma_neg, clip, eps
        self.detach_focal_weight, self.reduction = detach_focal_weight, reduction

    def forward(self, x: Tensor, w: Tensor, y: Labels, *, scale: float | Tensor = 1.0) -> Tensor:
        return asl_loss(
            x,
            w,
            y,
            scale=scale,
            gamma_pos=self.gamma_pos,
            gamma_neg=self.gamma_neg,
            clip=self.clip,
            eps=self.eps,
            detach_focal_weight=self.detach_focal_weight,
            reduction=self.reduction,
        )
