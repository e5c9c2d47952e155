"""What test_clip_loss.py and infonce_interpreter.py share: problems, and the bar to meet."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from truth.pooling import infonce as infonce_by_hand

from pvp_fast.losses import clip_loss
from pvp_fast.losses.clip import clip_loss_ref


def sample(n: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x, w (N, D), w near its x, and soft targets (N, N) with zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=generator)
    w = 0.7 * x + torch.randn(n, width, generator=generator)
    y = torch.rand(n, n, generator=generator)
    return x, w, y * (y > 0.6) + torch.eye(n)


def gradients(function, x: Tensor, w: Tensor, scale: float) -> list[Tensor]:
    """The loss and its gradients with respect to x, w and the scale."""
    leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
    leaves.append(torch.tensor(scale, requires_grad=True))
    value = function(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def check(
    x: Tensor,
    w: Tensor,
    y: Tensor | None,
    scale: float,
    normalize: bool = True,
    ulp: float = 2**-8,
    rounding: float = 0.0,
    **how: str,
) -> None:
    """Twice the error of plain PyTorch plus 1e-4, and the same bits again.

    ``rounding``: of gradients, relative to their largest, on the way to x and w.
    """
    truth = infonce_by_hand(
        x.double().numpy(),
        w.double().numpy(),
        scale,
        None if y is None else y.double().numpy(),
        normalize,
    )

    def ours(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
        return clip_loss(a, b, y, scale=s, normalize=normalize, **how)

    def plain(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
        return clip_loss_ref(a, b, y, scale=s, normalize=normalize)

    same = gradients(plain, x.float(), w.float(), scale)
    for i, (found, again, p, t) in enumerate(
        zip(gradients(ours, x, w, scale), gradients(ours, x, w, scale), same, truth, strict=True)
    ):
        assert torch.equal(found, again)
        assert found.isfinite().all()
        exact = torch.from_numpy(np.asarray(t))
        error = (found.double() - exact).abs()
        bound = 2 * (p.double() - exact).abs().max() + 1e-4
        bound += rounding * exact.abs().max() if i in (1, 2) else 0
        # Gradients come in the dtype of their inputs.
        slack = ulp * exact.abs() if i in (1, 2) and found.dtype != torch.float32 else 0
        assert bool((error <= bound + slack).all()), (i, float(error.max()), float(bound))


def labels(kind: str, y: Tensor) -> Tensor | None:
    kinds = {"pairs": None, "soft": y, "bool": y > 0, "uint8": (y > 0).byte(), "half": y.half()}
    return kinds[kind]
