"""Pooling kernels against float64 truth, run by tests/kernels/test_kernels.py.

The bar for the value and every gradient: an error at most twice that of plain PyTorch in the same
dtype, plus 1e-4; and the same bits when run again.
"""

import os

import numpy as np
import pytest
import torch
from torch import Tensor
from truth.pooling import pooling

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from pvp_fast.errors import InputError
from pvp_fast.kernels.pool import pool_bwd, pool_fwd
from pvp_fast.losses.pooling import spatial_softmax_pool_ref

SHAPES = [(1, 1, 1, 8), (2, 7, 20, 37), (3, 49, 81, 70), (2, 70, 5, 150)]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(ours: Tensor, plain: Tensor, truth: np.ndarray, slack: float = 0.0) -> None:
    """``slack`` is relative: half precision stores are truncated by the interpreter."""
    exact = torch.from_numpy(np.asarray(truth))
    assert ours.isfinite().all()
    error = (ours.double() - exact).abs()
    bound = 2 * (plain.double() - exact).abs().max() + 1e-4
    assert bool((error <= bound + slack * exact.abs()).all()), float((error - bound).max())


def check(
    shape: tuple[int, int, int, int],
    *,
    dtype: torch.dtype = torch.float32,
    w_dtype: torch.dtype | None = None,
    temperature: float = 50.0,
    masked: bool = False,
    normalize: bool = True,
) -> None:
    images, regions, cols, width = shape
    z = torch.randn(images, regions, width, generator=generator(1)).to(dtype)
    w = torch.randn(cols, width, generator=generator(2)).to(w_dtype or dtype)
    if not normalize:
        z, w = z / width**0.5, w / width**0.5
    g = torch.randn(images, cols, generator=generator(3))
    mask = torch.rand(images, regions, generator=generator(4)) < 0.6 if masked else None
    if mask is not None:
        mask[0] = False
    heat = torch.tensor([temperature])
    leaves = [t.to(torch.float32, copy=True).requires_grad_() for t in (z, w, heat)]
    out = spatial_softmax_pool_ref(leaves[0], leaves[1], mask, leaves[2], normalize)
    same = [out.detach(), *torch.autograd.grad(out, leaves, g)]
    arrays = (z.double().numpy(), w.double().numpy(), None if mask is None else mask.numpy())
    truth = pooling(*arrays, temperature, g.double().numpy(), normalize)
    runs = []
    for _ in range(2):
        forward = pool_fwd(z, w, mask, heat, normalize=normalize)
        runs.append([forward.pooled, *pool_bwd(g, z, w, mask, heat, forward, normalize=normalize)])
    for i, (ours, again, p, t) in enumerate(zip(*runs, same, truth, strict=True)):
        assert torch.equal(ours, again)
        close(
            ours, p.reshape(ours.shape), t, 2**-7 if dtype != torch.float32 and i in (1, 2) else 0
        )
    if mask is not None:
        assert not runs[0][0][0].any(), "an image without regions scores 0"
        assert not runs[0][1][~mask].any(), "and padding has no gradient"


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pool(shape: tuple[int, int, int, int], masked: bool) -> None:
    check(shape, masked=masked)


@pytest.mark.parametrize("temperature", [0.0, -20.0, 1.0, 1000.0])
def test_pool_temperatures(temperature: float) -> None:
    check((2, 20, 21, 40), temperature=temperature, masked=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pool_half_precision(dtype: torch.dtype) -> None:
    check((3, 17, 33, 40), dtype=dtype, masked=True)
    check((2, 33, 5, 24), dtype=dtype, normalize=False, temperature=3.0)
    check((2, 9, 5, 24), dtype=dtype, w_dtype=torch.float32)


def test_pool_strided_regions_padding_that_is_nan_and_single_gradients() -> None:
    wide = torch.randn(2, 9, 24, generator=generator(5))
    w = torch.randn(4, 24, generator=generator(6))
    g = torch.randn(2, 4, generator=generator(7))
    heat = torch.tensor([10.0])
    whole = pool_fwd(wide[:, 1:].contiguous(), w, None, heat)
    part = pool_fwd(wide[:, 1:], w, None, heat)
    assert torch.equal(whole.pooled, part.pooled)
    both = pool_bwd(g, wide[:, 1:], w, None, heat, part)
    only_w = pool_bwd(g, wide[:, 1:], w, None, heat, part, needs_z=False)
    assert only_w.dz is None
    assert torch.equal(only_w.dw, both.dw)
    assert pool_bwd(g, wide[:, 1:], w, None, heat, part, needs_w=False).dw is None
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[:, 0] = False
    wide[:, 0] = float("nan")
    hidden = pool_fwd(wide, w, mask, heat)
    torch.testing.assert_close(hidden.pooled, part.pooled)
    grads = pool_bwd(g, wide, w, mask, heat, hidden)
    torch.testing.assert_close(grads.dw, both.dw)
    assert not grads.dz[:, 0].any()


def test_pool_of_nothing_zero_rows_and_errors() -> None:
    heat = torch.tensor([10.0])
    for shape in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        z, w = torch.zeros(shape), torch.zeros(5, shape[2])
        forward = pool_fwd(z, w, None, heat)
        assert not forward.pooled.any()
        grads = pool_bwd(torch.ones(shape[0], 5), z, w, None, heat, forward)
        assert grads.dz.shape == shape
        assert not grads.dw.any()
    z, w = torch.zeros(1, 3, 4), torch.ones(2, 4)
    grads = pool_bwd(torch.ones(1, 2), z, w, None, heat, pool_fwd(z, w, None, heat))
    assert all(t.isfinite().all() for t in grads)
    with pytest.raises(InputError, match="float32"):
        pool_fwd(z.double(), w.double(), None, heat)
    with pytest.raises(InputError, match="mask"):
        pool_fwd(z, w, torch.ones(1, 4, dtype=torch.bool), heat)
    with pytest.raises(InputError, match="temperature"):
        pool_fwd(z, w, None, torch.ones(2))
    with pytest.raises(InputError, match=r"\(B, L, D\)"):
        pool_fwd(z, torch.ones(2, 5), None, heat)
    with pytest.raises(InputError, match="contiguous rows"):
        pool_fwd(torch.zeros(1, 4, 3).transpose(1, 2), w, None, heat)
