"""What test_fused_losses.py and fused_interpreter.py share: problems, and the bar to meet."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from truth.losses import SETTINGS, truth

from pvp_fast import losses
from pvp_fast.losses import CSRLabels

KINDS = list(SETTINGS)
LABELS = ["bool", "uint8", "soft", "partial", "lists"]
NAMES = ("loss", "x", "w", "scale", "bias", "weight")


def make_labels(kind: str, rows: int, cols: int, seed: int = 0) -> Tensor | CSRLabels:
    """Row 0 has no positive; the last of several rows no negative. Lists repeat themselves."""
    generator = torch.Generator().manual_seed(seed)
    positive = torch.rand(rows, cols, generator=generator) < 0.1
    positive[0] = False
    if rows > 1:
        positive[-1] = True
    if kind == "soft":
        return torch.rand(rows, cols, generator=generator)
    if kind == "partial":
        known = torch.rand(rows, cols, generator=generator) < 0.7
        return torch.where(known, torch.where(positive, 1, -1), 0).to(torch.int8)
    if kind == "lists":
        offsets = 2 * F.pad(positive.sum(1).cumsum(0), (1, 0))
        parts = [row.nonzero()[:, 0].repeat(2) for row in positive]
        return CSRLabels(offsets, torch.cat(parts))
    return positive.to(torch.uint8) if kind == "uint8" else positive


def arrays(y: Tensor | CSRLabels, cols: int) -> tuple[np.ndarray, np.ndarray]:
    """Targets and known entries."""
    dense = y.dense(cols) if isinstance(y, CSRLabels) else y
    if dense.dtype == torch.int8:
        return (dense == 1).double().numpy(), (dense != 0).numpy()
    return dense.double().numpy(), np.ones(dense.shape, bool)


def leaves(
    rows: int, cols: int, width: int, *, scale: float = 6.0, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """x, w, scale, bias and weight."""
    generator = torch.Generator().manual_seed(rows + cols)
    x, w = (torch.randn(n, width, generator=generator).to(dtype) for n in (rows, cols))
    weight = torch.rand(cols, generator=generator) + 0.5
    return [t.requires_grad_() for t in (x, w, torch.tensor(scale), torch.tensor(-0.4), weight)]


def evaluate(loss, tensors: list[Tensor], y, learn_weight: bool = True, **options) -> list[Tensor]:
    """Loss and every gradient; that of a weight that does not learn is 0."""
    x, w, scale, bias, weight = tensors
    weight = weight if learn_weight else weight.detach()
    value = loss(x, w, y, scale=scale, bias=bias, weight=weight, **options)
    grads = torch.autograd.grad(value, tensors, allow_unused=True)
    return [
        value.detach(),
        *(torch.zeros_like(t) if g is None else g for g, t in zip(grads, tensors, strict=True)),
    ]


def plain_half(
    kind: str, tensors: list[Tensor], y, normalize: bool, learn_weight: bool, **options
) -> list[Tensor]:
    """The same in plain PyTorch, with the products in the dtype of x."""
    x, w, scale, bias, weight = tensors
    weight = weight if learn_weight else weight.detach()
    a, b = (F.normalize(t, dim=-1) for t in (x, w)) if normalize else (x, w)
    scores = scale * (a @ b.T).float() + bias
    value = getattr(losses, f"{kind}_loss_from_scores")(scores, y, weight=weight, **options)
    grads = torch.autograd.grad(value, tensors, allow_unused=True)
    return [
        value.detach(),
        *(torch.zeros_like(t) if g is None else g for g, t in zip(grads, tensors, strict=True)),
    ]


def check(
    kind: str,
    tensors: list[Tensor],
    y,
    *,
    normalize: bool = True,
    learn_weight: bool = True,
    **options,
) -> None:
    """Error at most twice that of plain PyTorch in the same dtype + 1e-4; the same bits again."""
    settings = SETTINGS[kind] | {"reduction": "sum"}
    fused, ref = getattr(losses, f"{kind}_loss"), getattr(losses, f"{kind}_loss_ref")
    wide = [t.detach().double().requires_grad_() for t in tensors]
    common = {"normalize": normalize, "learn_weight": learn_weight}
    exact = evaluate(ref, wide, y, **common, **settings)
    a, b, scale, bias, weight = (t.detach() for t in wide)
    if normalize:
        a, b = (t / t.norm(dim=1, keepdim=True).clamp(min=1e-12) for t in (a, b))
    scores = (scale * a @ b.T + bias).numpy()
    by_hand = truth(kind, scores, *arrays(y, len(b)), weight.numpy())
    assert abs(by_hand - exact[0].item()) <= 1e-9 * max(1.0, abs(by_hand))
    plain = plain_half(kind, tensors, y, **common, **settings)
    before = [t.detach().clone() for t in tensors]
    runs = [evaluate(fused, tensors, y, **common, **settings, **options) for _ in range(2)]
    for name, ours, again, p, t in zip(NAMES, *runs, plain, exact, strict=True):
        assert torch.equal(ours, again), name
        assert ours.isfinite().all(), name
        if not t.numel():
            continue
        error = (ours.double() - t).abs().max()
        bound = 2 * (p.double() - t).abs().max() + 1e-4 * max(1.0, float(t.abs().max()))
        assert error <= bound, (name, float(error), float(bound))
    for tensor, old in zip(tensors, before, strict=True):
        assert torch.equal(tensor.detach(), old)
