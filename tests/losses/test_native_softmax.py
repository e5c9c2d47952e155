"""The compiled passes under InfoNCE and pooling, by every instruction set they are compiled for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.infonce_cases import check, gradients, sample
from support.pool_cases import check as check_pool
from support.pool_cases import sample as sample_pool
from torch import Tensor

from pvp_fast import native, spatial_softmax_pool
from pvp_fast.errors import BackendError, InputError
from pvp_fast.losses import clip_loss, native_pairs, native_pool
from pvp_fast.losses.clip import clip_loss_ref
from pvp_fast.losses.pooling import spatial_softmax_pool_ref


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("kept", [0, 1 << 22])
def test_odd_shapes(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    monkeypatch.setattr(native_pairs, "_KEPT", kept)
    monkeypatch.setattr(native_pool, "_KEPT", kept)
    for n, width in ((1, 3), (17, 5), (300, 7)):
        x, w, y = sample(n, width)
        for scale in (20.0, 100.0):
            check(x, w, None, scale, backend="native")
            check(x, w, y, scale, backend="native")
    for shape in ((1, 1, 1, 3), (3, 19, 17, 5), (2, 7, 300, 9)):
        z, w, mask = sample_pool(shape)
        check_pool(z, w, None, 50.0, backend="native")
        check_pool(z, w, mask, 100.0, backend="native")


def unaligned(t: Tensor) -> Tensor:
    """The same values one element off."""
    memory = t.new_empty(t.numel() + 1)
    return memory[1:].view(t.shape).copy_(t)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_that_is_not_aligned(dtype: torch.dtype) -> None:
    x, w, y = (t.to(dtype) for t in sample(21, 9))
    z, v, mask = sample_pool((3, 11, 19, 9))
    z, v = z.to(dtype), v.to(dtype)

    def run(move: Callable[[Tensor], Tensor]) -> list[Tensor]:
        targets, real = move(y), move(mask)

        def pooled(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
            return spatial_softmax_pool(a, b, real, temperature=t).square().sum()

        def loss(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
            return clip_loss(a, b, targets, scale=s)

        return [
            *gradients(loss, move(x), move(w), 9.0),
            *gradients(pooled, move(z), move(v), 9.0),
        ]

    for ours, other in zip(run(unaligned), run(torch.clone), strict=True):
        torch.testing.assert_close(ours, other)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_those_of_the_definition(bad: float, normalize: bool) -> None:
    x, w, y = sample(20, 6)
    z, v, _ = sample_pool((3, 5, 40, 6))
    for place in range(2):
        pair, both = [x.clone(), w.clone()], [z.clone(), v.clone()]
        pair[place][3, 2] = bad
        both[place].view(-1, 6)[2, 2] = bad
        for targets in (None, y):
            how: dict[str, Any] = {"scale": 2.0, "normalize": normalize}
            ours = clip_loss(*pair, targets, backend="native", **how)
            torch.testing.assert_close(ours, clip_loss_ref(*pair, targets, **how), equal_nan=True)
        found = spatial_softmax_pool(*both, normalize=normalize, temperature=2.0, backend="native")
        expected = spatial_softmax_pool_ref(*both, None, 2.0, normalize)
        torch.testing.assert_close(found, expected, equal_nan=True)


def test_rows_of_any_length() -> None:
    """Products of x and w as they are would overflow, vanish, or be 0/0."""
    x, w, _ = sample(9, 8)
    z, v, _ = sample_pool((2, 6, 5, 8))
    for t in (x, w, z.view(-1, 8), v):
        t[0] *= 1e18
        t[1] = 0.0
        t[2] *= 1e-17
    found = gradients(lambda a, b, s: clip_loss(a, b, scale=s, backend="native"), x, w, 5.0)
    plain = gradients(lambda a, b, s: clip_loss_ref(a, b, scale=s), x, w, 5.0)
    for ours, other in zip(found, plain, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-6)

    def pooled(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        return spatial_softmax_pool(a, b, temperature=t, backend="native").square().sum()

    def plainly(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        return spatial_softmax_pool_ref(a, b, None, t, True).square().sum()

    for ours, other in zip(
        gradients(pooled, z, v, 5.0), gradients(plainly, z, v, 5.0), strict=True
    ):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-6)


def test_the_same_bits_with_any_number_of_threads() -> None:
    x, w, y = sample(200, 16)
    z, v, _ = sample_pool((6, 20, 700, 16))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            panel, task = pass_of_pairs(x @ w.T, y), pass_of_pool(z @ v.T)
            found.append([*panel, *task])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*found, strict=True))


def pass_of_pairs(products: Tensor, y: Tensor | None, **change: Any) -> list[Tensor]:
    """What the extension leaves of products of pairs, in both directions."""
    rows, columns = products.shape
    stats = torch.zeros(2, 2, columns)
    stats[1, 0] = float("-inf")
    aimed = torch.empty(rows)
    share = None if y is None else [(1 / y.sum(d)) for d in (1, 0)]
    panel = {
        "products": products, "scale": 3.0, "first": 0, "threads": torch.get_num_threads(),
        "targets": y, "row_share": share and share[0], "column_share": share and share[1],
    } | change  # fmt: skip
    native.call(
        "infonce", **panel, aimed=aimed, row_top=stats[0, 0, :rows], row_total=stats[0, 1, :rows],
        column_top=stats[1, 0], column_total=stats[1, 1],
    )  # fmt: skip
    inverse, out = stats[:, 1].reciprocal(), torch.empty_like(products)
    dscale = native.call(
        "infonce_gradient", **panel, gradients=out, row_top=stats[0, 0, :rows],
        row_inverse=inverse[0, :rows], column_top=stats[1, 0], column_inverse=inverse[1],
    )  # fmt: skip
    return [stats, aimed, out, torch.tensor(dscale)]


def pass_of_pool(products: Tensor, **change: Any) -> list[Tensor]:
    images, regions, categories = products.shape
    pooled, top, inverse = torch.zeros(3, images, categories)
    task = {
        "products": products.reshape(-1, categories), "temperature": 9.0,
        "offsets": torch.arange(images + 1) * regions, "threads": torch.get_num_threads(),
        "pooled": pooled, "top": top, "inverse_total": inverse,
    } | change  # fmt: skip
    native.call("pool", **task)
    out = torch.empty(images * regions, categories)
    heat = native.call("pool_gradient", **task, g=torch.ones_like(pooled), gradients=out)
    return [pooled, top, inverse, out, torch.tensor(heat)]


def test_arguments_are_checked_in_cpp() -> None:
    products = torch.randn(4, 6)
    for change, message in (
        ({"targets": torch.zeros(4, 5)}, r"targets, float32 \(4, 5\)"),
        ({"x_inverse_norm": torch.ones(6)}, "x_inverse_norm"),
        ({"row_share": None}, "row_share"),
        ({"products": products.T}, "not contiguous"),
        ({"threads": 0}, "threads"),
    ):
        with pytest.raises(InputError, match=message):
            pass_of_pairs(**{"products": products, "y": torch.ones(4, 6)} | change)
    regions = torch.randn(2, 3, 5)
    for change, message in (
        ({"offsets": torch.tensor([0, 7, 6])}, "ascend from 0 to the number of regions"),
        ({"offsets": torch.tensor([0, 6])}, "offsets"),
        ({"top": torch.zeros(2, 7)[:, :5]}, "top.*as pooled does"),
        ({"top": torch.zeros(3, 5)}, "top.*as pooled does"),
        ({"pooled": np.zeros((2, 5))}, "pooled, float64"),
    ):
        with pytest.raises(InputError, match=message):
            pass_of_pool(regions, **change)


def test_auto_takes_it_and_an_explicit_request_runs_or_raises() -> None:
    x, w, y = sample(6, 5)
    z, v, mask = sample_pool((2, 4, 3, 5))
    assert torch.equal(clip_loss(x, w, y), clip_loss(x, w, y, backend="native"))
    native_pooled = spatial_softmax_pool(z, v, mask, backend="native")
    assert torch.equal(spatial_softmax_pool(z, v, mask), native_pooled)
    with pytest.raises(BackendError, match="targets need a gradient"):
        clip_loss(x, w, y.requires_grad_(), backend="native")
    with pytest.raises(InputError, match="float64"):
        clip_loss(x.double(), w.double(), backend="native")
    with pytest.raises(InputError, match="float64"):
        spatial_softmax_pool(z.double(), v.double(), backend="native")
