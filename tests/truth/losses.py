"""The losses in float64 NumPy, from their papers' formulas; gradients by float64 autograd of those
are not asked of NumPy: they come from the references, which test_losses.py checks by gradcheck."""

from __future__ import annotations

import numpy as np

SETTINGS = {
    "asl": {},
    "bce": {},
    "focal": {},
    "siglip": {},
    "ranking": {"margin": 0.8},
}


def log_sigmoid(s: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0.0, -s)


def truth(kind: str, s: np.ndarray, y: np.ndarray, known: np.ndarray, weight: np.ndarray) -> float:
    """The summed loss of scores s, targets y in [0, 1] and known entries."""
    if kind == "ranking":
        total = 0.0
        for scores, present, seen in zip(s, y > 0.5, known, strict=True):
            absent = ~present & seen
            for p in scores[present & seen]:
                total += float((weight * np.maximum(0, 0.8 - p + scores))[absent].sum())
        return total
    sigma = np.exp(log_sigmoid(s))
    entropy = -(y * log_sigmoid(s) + (1 - y) * log_sigmoid(-s))
    if kind == "asl":
        q = np.minimum(1 - sigma + 0.05, 1)
        loss = -y * np.log(np.maximum(sigma, 1e-8)) * (1 - sigma)
        loss -= (1 - y) * np.log(np.maximum(q, 1e-8)) * (1 - q) ** 4
    elif kind == "bce":
        loss = entropy
    elif kind == "focal":
        right = sigma * y + (1 - sigma) * (1 - y)
        loss = entropy * (1 - right) ** 2 * (0.25 * y + 0.75 * (1 - y))
    else:
        loss = np.logaddexp(0.0, -(2 * y - 1) * s)
    return float((loss * known * weight).sum())
