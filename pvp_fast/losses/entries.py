"""Loss and gradient of one tile of scores in plain PyTorch, for the losses that sum over entries.

Written out by hand, so that a tile is read from the cache a dozen times and from memory never.
Absent categories are the many and have their own in-place forms; what is present is a short list.
An absent category at score −∞ has loss and gradient 0 in all of these losses: that is how the
present and the unknown ones are taken out of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# log(1 + e) = 2z(1 + z²/3 + z⁴/5 + …) with z = e/(2 + e) ≤ 1/3: seven terms reach float32.
_SERIES = tuple(2.0 / (2 * k + 1) for k in range(7))

Scratch = Sequence[Tensor]


def power(base: Tensor, exponent: float) -> Tensor:
    """base^exponent for base ≥ 0, with 0^exponent = 0 for every exponent but 0."""
    if exponent == 0:
        return torch.ones_like(base)
    return torch.where(base > 0, base.clamp(min=torch.finfo(base.dtype).tiny) ** exponent, 0.0)


def _power_(base: Tensor, exponent: float) -> Tensor:
    if exponent == 2:
        return base.mul_(base)
    if exponent == 3:
        return torch.mul(base, base * base, out=base)
    if exponent == 4:
        return base.mul_(base).mul_(base)
    return base if exponent == 1 else base.pow_(exponent)


def _softplus_(s: Tensor, out: Tensor, scratch: Tensor) -> Tensor:
    """log(1 + exp(s)) into ``out``; s stays."""
    tail = torch.abs(s, out=out).neg_().exp_()
    ratio = torch.add(tail, 2.0, out=scratch)
    torch.div(tail, ratio, out=ratio)
    square = torch.mul(ratio, ratio, out=tail)
    series = square.new_empty(square.shape)
    torch.mul(square, _SERIES[-1], out=series)
    for factor in _SERIES[-2:0:-1]:
        series.add_(factor).mul_(square)
    series.add_(_SERIES[0]).mul_(ratio)
    return torch.clamp(s, min=0.0, out=out).add_(series)


def softplus(s: Tensor) -> Tensor:
    return _softplus_(s, torch.empty_like(s), torch.empty_like(s))


def entries(
    kind: str, s: Tensor, y: Tensor | float, settings: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Loss and ∂loss/∂s of every entry, for targets y in [0, 1]; nothing is overwritten."""
    sigma, rest = torch.sigmoid(s), torch.sigmoid(-s)
    if kind == "asl":
        gamma_pos, gamma_neg, clip, eps, detach = settings
        slope = sigma * rest
        log_pos = sigma.clamp(min=eps).log()
        focus_pos = power(rest, gamma_pos)
        d_pos = torch.where(sigma >= eps, rest, 0.0) * focus_pos
        wide = rest + clip
        q = wide.clamp(max=1.0)
        p = (sigma - clip).clamp_(min=0.0)
        log_neg = q.clamp(min=eps).log()
        focus_neg = power(p, gamma_neg)
        dq = torch.where(wide <= 1.0, -slope, 0.0)
        d_neg = torch.where(q >= eps, dq / q.clamp(min=eps), 0.0) * focus_neg
        if not detach:
            d_pos = d_pos - log_pos * gamma_pos * sigma * focus_pos
            # p^γ / p, and 0 at p = 0.
            d_neg = d_neg - log_neg * gamma_neg * dq * torch.where(p > 0, focus_neg / p, 0.0)
        loss = -(y * log_pos * focus_pos + (1 - y) * log_neg * focus_neg)
        return loss, -(y * d_pos + (1 - y) * d_neg)
    if kind == "siglip":
        z = 2 * y - 1
        return softplus(-z * s), -z * torch.sigmoid(-z * s)
    entropy = softplus(s) - s * y
    if kind == "bce":
        return entropy, sigma - y
    alpha, gamma = settings
    wrong = sigma * (1 - y) + rest * y
    focus = power(wrong, gamma)
    d_focus = torch.where(wrong > 0, gamma * focus / wrong, 0.0) * sigma * rest * (1 - 2 * y)
    balance = alpha * y + (1 - alpha) * (1 - y) if alpha >= 0 else 1.0
    return entropy * focus * balance, ((sigma - y) * focus + entropy * d_focus) * balance


def present(kind: str, s: Tensor, settings: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Loss and gradient of present categories: :func:`entries` with y = 1."""
    if kind in ("bce", "siglip"):
        return softplus(-s), torch.sigmoid(-s).neg_()
    if kind == "focal":
        alpha, gamma = settings
        rest, entropy = torch.sigmoid(-s), softplus(-s)
        focus = power(rest, gamma) * (alpha if alpha >= 0 else 1.0)
        return entropy * focus, -focus * (rest + gamma * entropy * torch.sigmoid(s))
    return entries(kind, s, 1.0, settings)


def absent_(
    kind: str, s: Tensor, settings: Sequence[float], scratch: Scratch, grad: bool
) -> Tensor:
    """Loss of absent categories, in scratch; with ``grad``, s is overwritten by its gradient."""
    if kind == "asl":
        if settings[1] > 0:
            return _absent_asl_(s, settings, scratch, grad)
        loss, slope = entries(kind, s, 0.0, settings)
        s.copy_(slope)
        return loss
    first, second = scratch[0], scratch[1]
    loss = _softplus_(s, first, second)
    if kind != "focal":
        if grad:
            s.sigmoid_()
        return loss
    # σ^γ (σ + γ · softplus · (1 − σ)) · (1 − α)
    alpha, gamma = settings
    sigma = torch.sigmoid(s, out=s)
    if grad:
        # σ + (γ softplus)(1 − σ) = σ + γ softplus − γ softplus σ
        slope = torch.mul(loss, sigma, out=scratch[2]).neg_().add_(loss).mul_(gamma).add_(sigma)
    focus = torch.ones_like(sigma) if gamma == 0 else _power_(second.copy_(sigma), gamma)
    if alpha >= 0:
        focus.mul_(1 - alpha)
    if grad:
        torch.mul(slope, focus, out=s)
    return loss.mul_(focus)


def _absent_asl_(s: Tensor, settings: Sequence[float], scratch: Scratch, grad: bool) -> Tensor:
    """−log(max(q, ε)) · p^γ with q = min(1 − σ + clip, 1) and p = 1 − q; γ > 0."""
    _, gamma, clip, eps, detach = settings
    rest = torch.neg(s, out=scratch[0]).sigmoid_()
    q = torch.add(rest, clip, out=scratch[1])
    if clip:
        q.clamp_(max=1.0)
    p = torch.neg(q, out=scratch[2]).add_(1.0)
    lost = q < eps if clip < eps else None
    if lost is not None:
        q.clamp_(min=eps)
    if grad:
        # |dq/ds| = σ(1 − σ); where wide > 1, p = 0 and so is every term below.
        slope = rest.addcmul_(rest, rest, value=-1.0)
        torch.div(slope, q, out=s)
        if lost is not None:
            s.masked_fill_(lost, 0.0)
    q.log_()
    if grad and not detach:
        # p^γ/q − γ log q · p^(γ − 1), by |dq/ds|
        lower = power(p, gamma - 1) if gamma != 1 else (p > 0).to(p.dtype)
        slope.mul_(q).mul_(lower).mul_(-gamma)
    focus = _power_(p, gamma)
    if grad:
        s.mul_(focus)
        if not detach:
            s.add_(slope)
    return q.mul_(focus).neg_()
