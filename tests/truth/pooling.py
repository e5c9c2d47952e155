"""Spatial softmax pooling and symmetric InfoNCE in NumPy float64, from the formulas."""

from __future__ import annotations

import numpy as np


def unit(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    norm = np.maximum(np.sqrt((rows**2).sum(-1, keepdims=True)), 1e-12)
    return rows / norm, norm


def back_through_norm(grad: np.ndarray, hat: np.ndarray, norm: np.ndarray) -> np.ndarray:
    return (grad - hat * (grad * hat).sum(-1, keepdims=True)) / norm


def pooling(
    z: np.ndarray,
    w: np.ndarray,
    mask: np.ndarray | None,
    temperature: float,
    g: np.ndarray,
    normalize: bool = True,
) -> tuple[np.ndarray, ...]:
    """Scores p_bc = Σ_l π a, and the gradients of Σ g · p: dz, dw, dtemperature."""
    zh, zn = unit(z) if normalize else (z, np.ones_like(z[..., :1]))
    wh, wn = unit(w) if normalize else (w, np.ones_like(w[..., :1]))
    scores, dzh, dwh, dt = np.zeros_like(g), np.zeros_like(z), np.zeros_like(w), 0.0
    for b in range(z.shape[0]):
        real = np.ones(z.shape[1], bool) if mask is None else mask[b]
        if not real.any():
            continue
        a = zh[b, real] @ wh.T
        e = np.exp(temperature * a - (temperature * a).max(0))
        pi = e / e.sum(0)
        scores[b] = (pi * a).sum(0)
        # d(Σ π a)/da_l = π_l + T π_l (a_l − Σ π a)
        da = g[b] * pi * (1 + temperature * (a - scores[b]))
        dt += (g[b] * pi * (a - scores[b]) * a).sum()
        dzh[b, real] = da @ wh
        dwh += da.T @ zh[b, real]
    if normalize:
        dzh, dwh = back_through_norm(dzh, zh, zn), back_through_norm(dwh, wh, wn)
    return scores, dzh, dwh, np.array(dt)


def infonce(
    x: np.ndarray,
    w: np.ndarray,
    scale: float,
    y: np.ndarray | None = None,
    normalize: bool = True,
) -> tuple[np.ndarray, ...]:
    """(cross-entropy of rows + of columns) / 2 against y, or pairs (i, i); dx, dw, dscale."""
    xh, xn = unit(x) if normalize else (x, np.ones_like(x[:, :1]))
    wh, wn = unit(w) if normalize else (w, np.ones_like(w[:, :1]))
    n = len(x)
    y = np.eye(n) if y is None else y
    cosine = xh @ wh.T
    s = scale * cosine
    ds, loss = np.zeros_like(s), 0.0
    for axis in (0, 1):
        target = y / y.sum(axis, keepdims=True)
        top = s.max(axis, keepdims=True)
        lse = top + np.log(np.exp(s - top).sum(axis, keepdims=True))
        loss += (target * (lse - s)).sum() / (2 * n)
        ds += (np.exp(s - lse) - target) / (2 * n)
    dxh, dwh = scale * ds @ wh, scale * ds.T @ xh
    if normalize:
        dxh, dwh = back_through_norm(dxh, xh, xn), back_through_norm(dwh, wh, wn)
    return np.array(loss), dxh, dwh, np.array((ds * cosine).sum())
