"""Spatial softmax pooling against its definition."""

from __future__ import annotations

import pytest
import torch

from pvp_fast import spatial_softmax_pool
from pvp_fast.errors import BackendError, InputError


def test_is_its_definition_and_ignores_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    w = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    found = spatial_softmax_pool(z, w, mask, temperature=4.0, scale=2.0, normalize=False)
    for b in range(2):
        real = z[b][mask[b]]
        a = real @ w.T
        expected = 2 * ((4 * a).softmax(0) * a).sum(0)
        torch.testing.assert_close(found[b], expected)


def test_gradients_also_of_the_temperature() -> None:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    heat = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda z, w, t: spatial_softmax_pool(z, w, temperature=t), (z, w, heat)
    )


def test_a_row_without_regions_scores_zero() -> None:
    z, w = torch.ones(1, 2, 3), torch.ones(4, 3)
    mask = torch.zeros(1, 2, dtype=torch.bool)
    assert torch.equal(spatial_softmax_pool(z, w, mask), torch.zeros(1, 4))


def test_errors_name_the_argument() -> None:
    with pytest.raises(InputError, match="one width"):
        spatial_softmax_pool(torch.ones(1, 2, 3), torch.ones(4, 5))
    with pytest.raises(InputError, match="mask"):
        spatial_softmax_pool(torch.ones(1, 2, 3), torch.ones(4, 3), torch.ones(1, 2))
    with pytest.raises(BackendError):
        spatial_softmax_pool(torch.ones(1, 2, 3), torch.ones(4, 3), backend="triton")
