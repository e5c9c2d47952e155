"""What the tests of spatial softmax pooling share: problems, and the bar to meet."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from truth.pooling import pooling as pooling_by_hand

from pvp_fast import spatial_softmax_pool
from pvp_fast.losses.pooling import spatial_softmax_pool_ref


def sample(shape: tuple[int, int, int, int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """z (B, L, D), w (C, D) and a mask whose first image has no region."""
    images, regions, cols, width = shape
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(images, regions, width, generator=generator)
    w = torch.randn(cols, width, generator=generator)
    mask = torch.rand(images, regions, generator=generator) < 0.6
    mask[0] = False
    return z, w, mask


def check(
    z: Tensor,
    w: Tensor,
    mask: Tensor | None,
    heat: float,
    normalize: bool = True,
    rounding: float = 0.0,
    backend: str = "auto",
) -> None:
    """Twice the error of plain PyTorch plus 1e-4, and the same bits again.

    ``rounding``: of gradients, relative to their largest, on the way to z and w.
    """
    g = torch.randn(len(z), len(w), generator=torch.Generator().manual_seed(3))
    truth = pooling_by_hand(
        z.double().numpy(),
        w.double().numpy(),
        None if mask is None else mask.numpy(),
        heat,
        g.double().numpy(),
        normalize,
    )

    def run(function, dtype: torch.dtype | None) -> list[Tensor]:
        a, b = (t.detach().to(dtype or t.dtype, copy=True).requires_grad_() for t in (z, w))
        t = torch.tensor(heat, requires_grad=True)
        out = function(a, b, t)
        return [out.detach(), *torch.autograd.grad(out, (a, b, t), g)]

    def ours(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        options = {"temperature": t, "normalize": normalize, "backend": backend}
        return spatial_softmax_pool(a, b, mask, **options)

    plain = run(lambda a, b, t: spatial_softmax_pool_ref(a, b, mask, t, normalize), torch.float32)
    half = z.dtype != torch.float32
    for i, (found, again, p, t) in enumerate(
        zip(run(ours, None), run(ours, None), plain, truth, strict=True)
    ):
        assert torch.equal(found, again)
        assert found.isfinite().all()
        exact = torch.from_numpy(np.asarray(t))
        error = (found.double() - exact).abs()
        bound = 2 * (p.double() - exact).abs().max() + 1e-4
        slack = 2**-8 * exact.abs() if half and i in (1, 2) else 0
        bound += rounding * exact.abs().max() if i in (1, 2) else 0
        assert bool((error <= bound + slack).all())
        if mask is not None and i == 1:
            assert not found[~mask].any()
    if mask is not None:
        assert not ours(z, w, torch.tensor(heat))[~mask.any(1)].any()
