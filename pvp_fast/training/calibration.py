"""Probabilities and thresholds from held-out sentences, without images (METHOD section 8)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pvp_fast.artifact import probability

# Pulls each category's intercept towards the common one: a few sentences decide little alone.
RIDGE = 1e-2


def fit_platt(scores: Tensor, labels: Tensor) -> Tensor:
    """Slope and intercept (C, 2) from mixed cosines to probabilities (Platt, 1999).

    One slope for all categories, one intercept each, by regularised logistic regression.

    Args:
        scores: (N, C) mixed cosines of held-out sentences. labels: (N, C) bool.
    """
    target = labels.double()
    s = scores.detach().double()
    spread = s.std().clamp(min=1e-6)
    centre = s.mean()
    unit = (s - centre) / spread
    slope = torch.ones((), dtype=torch.double, requires_grad=True)
    common = torch.zeros((), dtype=torch.double, requires_grad=True)
    own = torch.zeros(s.shape[1], dtype=torch.double, requires_grad=True)
    solver = torch.optim.LBFGS([slope, common, own], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        logits = unit * slope + common + own
        loss = F.binary_cross_entropy_with_logits(logits, target)
        loss = loss + RIDGE * own.square().mean()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    # A negative slope would reverse the ranking; nothing was learned then.
    a = slope.detach().clamp(min=1e-3) / spread
    b = common.detach() + own.detach() - a * centre
    return torch.stack([a.expand_as(b), b], 1).float()


def best_f1_thresholds(scores: Tensor, labels: Tensor, platt: Tensor) -> Tensor:
    """Probabilities (C,) from which on a category is kept, for the best F1 on held-out sentences.

    The threshold lies halfway, in cosines, between the last sentence kept and the first one left
    out: sentences are often separated by a wide gap, and images score lower than sentences. A
    category without held-out positives gets 0.5.
    """
    order = scores.sort(0, descending=True)
    hits = labels.gather(0, order.indices).double().cumsum(0)
    kept = torch.arange(1, len(scores) + 1, dtype=torch.double, device=scores.device)[:, None]
    positives = labels.sum(0).double()
    f1 = 2 * hits / (kept + positives)
    best = f1.argmax(0, keepdim=True)
    last = order.values.gather(0, best)
    first_out = order.values.gather(0, (best + 1).clamp(max=len(scores) - 1))
    thresholds = probability((last + first_out) / 2, platt)[0]
    return torch.where(positives > 0, thresholds, torch.full_like(thresholds, 0.5)).float()
