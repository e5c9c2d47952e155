"""How learned images are written down: the cosine transform, its weights, a share of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pvp_fast.errors import InputError
from pvp_fast.modules.images import SPREAD, Frequencies, Pixels, image_space


def reference(coefficients: np.ndarray, height: int, width: int) -> np.ndarray:
    """The weighted inverse DCT-II written out, float64."""
    h, w = coefficients.shape
    weight = np.zeros((h, w))
    image = np.zeros((height, width))
    for k in range(h):
        for j in range(w):
            slow = max(math.hypot(k / (2 * height), j / (2 * width)), 1 / max(height, width))
            weight[k, j] = 1 / slow
    weight *= SPREAD / math.sqrt((weight**2).sum() / (height * width))
    for k in range(h):
        for j in range(w):
            norm = math.sqrt((1 if k == 0 else 2) / height * (1 if j == 0 else 2) / width)
            down = np.cos(math.pi / height * k * (np.arange(height) + 0.5))
            across = np.cos(math.pi / width * j * (np.arange(width) + 0.5))
            image += coefficients[k, j] * weight[k, j] * norm * np.outer(down, across)
    return image


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_coefficients_become_the_image_of_the_definition(share: float) -> None:
    space = image_space((12, 20), share)
    learned = space.noise(2, torch.Generator().manual_seed(0))
    assert learned.shape == (2, 3, round(12 * share), round(20 * share))
    pixels = space(learned)
    assert pixels.shape == (2, 3, 12, 20)
    for image, coefficients in zip(pixels.flatten(0, 1), learned.flatten(0, 1), strict=True):
        expected = reference(coefficients.double().numpy(), 12, 20)
        np.testing.assert_allclose(image.numpy(), expected, atol=1e-5)


def test_all_frequencies_are_orthonormal_but_for_their_weight() -> None:
    space = Frequencies(16, 24, 1.0)
    learned = space.noise(5, torch.Generator().manual_seed(1))
    power = (learned * space.weight).square().sum((-2, -1))
    torch.testing.assert_close(space(learned).square().sum((-2, -1)), power)


@pytest.mark.parametrize("share", [0, 0.5, 1.0])
def test_images_start_with_the_spread_they_say(share: float) -> None:
    space = image_space((48, 64), share)
    pixels = space(space.noise(40, torch.Generator().manual_seed(3)))
    assert float(pixels.square().mean().sqrt()) == pytest.approx(space.spread, rel=0.05)


def test_half_of_the_frequencies_are_a_quarter_of_the_numbers_and_the_slow_ones() -> None:
    half, whole = Frequencies(64, 64, 0.5), Frequencies(64, 64, 1.0)
    learned = half.noise(1, torch.Generator().manual_seed(2))
    assert learned.numel() * 4 == 3 * 64 * 64
    padded = torch.zeros(1, *whole.shape)
    padded[..., :32, :32] = learned * half.weight / whole.weight[:32, :32]
    torch.testing.assert_close(whole(padded), half(learned), atol=1e-5, rtol=0)


def test_of_share_0_pixels_are_learned_themselves() -> None:
    space = image_space(32, 0)
    assert isinstance(space, Pixels)
    learned = space.noise(1, torch.Generator().manual_seed(0))
    assert space(learned) is learned


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_other_shares_are_refused(share: float) -> None:
    with pytest.raises(InputError, match="frequencies="):
        image_space(32, share)
