"""Asymmetric loss for multi-label classification (arXiv 2009.14119, equations 4–7)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pvp_fast.losses.fused import entrywise, fused_loss, reference, register
from pvp_fast.losses.problem import Labels


class ASLSettings(NamedTuple):
    """γ₊, γ₋, the probability shift ``clip``, the floor ε of both logarithms, and the convention
    of the gradient; see :func:`asl_loss_from_scores`."""

    gamma_pos: float = 1.0
    gamma_neg: float = 4.0
    clip: float = 0.05
    eps: float = 1e-8
    detach_focal_weight: bool = True


def _power(base: Tensor, exponent: float) -> Tensor:
    """base^exponent for base ≥ 0 with gradient 0, not NaN or infinity, at base 0."""
    if exponent == 0:
        return torch.ones_like(base)
    safe = torch.where(base > 0, base, torch.ones_like(base))
    return torch.where(base > 0, safe**exponent, torch.zeros_like(base))


def _entries(settings: ASLSettings, s: Tensor, y: Tensor) -> Tensor:
    gamma_pos, gamma_neg, clip, eps, detach = settings
    present = torch.sigmoid(s)
    absent = (1 - present + clip).clamp(max=1)
    focus_pos, focus_neg = 1 - present, 1 - absent
    if detach:
        focus_pos, focus_neg = focus_pos.detach(), focus_neg.detach()
    log_pos = present.clamp(min=eps).log() * _power(focus_pos, gamma_pos)
    log_neg = absent.clamp(min=eps).log() * _power(focus_neg, gamma_neg)
    return -(y * log_pos + (1 - y) * log_neg)


def _present(settings: ASLSettings, s: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and gradient of present categories."""
    gamma, _, _, eps, detach = settings
    sigma, rest = torch.sigmoid(s), torch.sigmoid(-s)
    log, focus = sigma.clamp(min=eps).log(), _power(rest, gamma)
    slope = torch.where(sigma >= eps, rest, 0.0) * focus
    if not detach:
        slope -= log * gamma * sigma * focus
    return -log * focus, -slope


def _absent_(settings: ASLSettings, s: Tensor, grad: bool) -> Tensor:
    """Loss of absent categories, γ₋ > 0; with ``grad`` s is overwritten by its gradient.

    −log(max(q, ε)) · p^γ with q = min(1 − σ + clip, 1) and p = 1 − q: 0 at s = −∞. Written out in
    place, so that a tile is read from the cache a dozen times and from memory never.
    """
    _, gamma, clip, eps, detach = settings
    rest = torch.neg(s).sigmoid_()
    q = torch.add(rest, clip)
    if clip:
        q.clamp_(max=1.0)
    p = torch.neg(q).add_(1.0)
    lost = q < eps if clip < eps else None
    if lost is not None:
        q.clamp_(min=eps)
    if grad:
        # |dq/ds| = σ(1 − σ); where 1 − σ + clip > 1, p = 0 and so is every term below.
        slope = rest.addcmul_(rest, rest, value=-1.0)
        torch.div(slope, q, out=s)
        if lost is not None:
            s.masked_fill_(lost, 0.0)
    q.log_()
    if grad and not detach:
        # p^γ/q − γ log q · p^(γ − 1), by |dq/ds|
        lower = _power(p, gamma - 1) if gamma != 1 else (p > 0).to(p.dtype)
        slope.mul_(q).mul_(lower).mul_(-gamma)
    if gamma == 4:
        focus = p.square_().square_()
    elif gamma == 3:
        focus = torch.mul(p, p * p, out=p)
    else:
        focus = p.pow_(gamma)
    if grad:
        s.mul_(focus)
        if not detach:
            s.add_(slope)
    return q.mul_(focus).neg_()


def _closed_form(
    settings: ASLSettings, s: Tensor, y: Tensor, weight: Tensor | None, grad: bool
) -> Tensor | None:
    """Of hard labels: the absent categories are the many, what is present is a short list."""
    if settings.gamma_neg <= 0 or y.is_floating_point():
        return None
    flat, at = s.view(-1), (y == 1).flatten().nonzero()[:, 0]
    present, slope = _present(settings, flat[at])
    # Present and unknown ones have no part in the loss of the absent.
    flat.index_fill_(0, at, float("-inf"))
    if y.dtype == torch.int8:
        s.masked_fill_(y == 0, float("-inf"))
    loss = _absent_(settings, s, grad)
    flat.index_copy_(0, at, slope)
    loss.view(-1).index_copy_(0, at, present)
    if weight is not None:
        s.mul_(weight)
    return loss.sum(0)


ASL = register(entrywise("asl", ASLSettings, _entries, _closed_form))


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
        y: labels as in :func:`pvp_fast.losses.problem.dense_labels`.
        weight: (C,) per-category factor.
        detach_focal_weight: no gradient through the focal factors, as the original with
            ``disable_torch_grad_focal_loss``.
        reduction: "sum", "mean" over B·C, or "batchmean" over B.

    Returns:
        Scalar loss, float32 or the scores' wider dtype.
    """
    settings = ASLSettings(gamma_pos, gamma_neg, clip, eps, detach_focal_weight)
    return ASL.of_scores(settings, scores, y, weight, reduction)


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
    settings = ASLSettings(gamma_pos, gamma_neg, clip, eps, detach_focal_weight)
    return reference(ASL, settings, x, w, y, scale, bias, normalize, weight, reduction)


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
    settings = ASLSettings(gamma_pos, gamma_neg, clip, eps, detach_focal_weight)
    return fused_loss(
        ASL, settings, x, w, y, scale, bias, normalize, weight, reduction, backend, regime
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
        self.settings = ASLSettings(gamma_pos, gamma_neg, clip, eps, detach_focal_weight)
        self.reduction = reduction

    def forward(self, x: Tensor, w: Tensor, y: Labels, *, scale: float | Tensor = 1.0) -> Tensor:
        return asl_loss(x, w, y, scale=scale, reduction=self.reduction, **self.settings._asdict())
