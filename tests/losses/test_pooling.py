"""Spatial softmax pooling against its definition; chunks, gradients, compile, and the rest."""

from __future__ import annotations

import pytest
import torch
from support.pool_cases import check, sample
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pvp_fast import spatial_softmax_pool
from pvp_fast.errors import BackendError, InputError
from pvp_fast.losses import (
    asl_loss_from_scores,
    native_pool,
    pooling,
    ranking_loss_from_scores,
)

SHAPES = [(1, 1, 1, 8), (2, 7, 20, 37), (3, 49, 81, 70), (5, 70, 5, 130)]


@pytest.fixture
def tiny_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of one image and 64 categories, or of two."""
    monkeypatch.setattr(pooling, "_CHUNK", {"cpu": 2 * 49 * 81})
    monkeypatch.setattr(native_pool, "_CHUNK", 2 * 49 * 81)
    monkeypatch.setattr(native_pool, "_KEPT", 5000)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_within_twice_that_of_plain_pytorch(
    shape: tuple[int, int, int, int], masked: bool, backend: str
) -> None:
    z, w, mask = sample(shape)
    check(z, w, mask if masked else None, 50.0, backend=backend)


@pytest.mark.usefixtures("tiny_chunks")
@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_many_chunks(shape: tuple[int, int, int, int], backend: str) -> None:
    z, w, mask = sample(shape)
    check(z, w, mask, 20.0, backend=backend)
    check(z, w, None, 20.0, normalize=False, backend=backend)


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_more_categories_than_a_chunk_holds(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setattr(pooling, "_CHUNK", {"cpu": 100})
    monkeypatch.setattr(native_pool, "_CHUNK", 100)
    z, w, mask = sample((3, 5, 150, 12))
    check(z, w, mask, 30.0, backend=backend)
    check(z.bfloat16(), w.bfloat16(), mask, 30.0, rounding=2**-8, backend=backend)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("heat", [0.0, -20.0, 1.0, 1000.0])
def test_temperatures(heat: float, backend: str) -> None:
    z, w, mask = sample((3, 20, 21, 40))
    check(z, w, mask, heat, backend=backend)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_evaluated_in_float32(dtype: torch.dtype, backend: str) -> None:
    z, w, mask = sample((3, 17, 33, 40))
    # Where a CPU multiplies it, products that carry gradients back are of bfloat16.
    rounding = 2**-8 if dtype == torch.bfloat16 and backend == "native" else 0.0
    check(z.to(dtype), w.to(dtype), mask, 50.0, rounding=rounding, backend=backend)
    assert spatial_softmax_pool(z.to(dtype), w).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = spatial_softmax_pool(z, w, mask)
    assert torch.equal(inside, spatial_softmax_pool(z, w, mask))


def test_float64_is_the_definition_and_has_second_derivatives() -> None:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    heat = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False, True], [True] * 3])

    def run(z: Tensor, w: Tensor, t: Tensor) -> Tensor:
        return spatial_softmax_pool(z, w, mask, temperature=t, scale=2.0)

    for b in range(2):
        real = torch.nn.functional.normalize(z[b][mask[b]], dim=-1)
        a = real @ torch.nn.functional.normalize(w, dim=-1).T
        expected = 2 * ((3 * a).softmax(0) * a).sum(0)
        torch.testing.assert_close(run(z, w, heat)[b], expected)
    assert torch.autograd.gradcheck(run, (z, w, heat))
    assert torch.autograd.gradgradcheck(run, (z, w, heat))


def test_scale_and_temperature_learn_and_feed_any_loss() -> None:
    z, w, mask = sample((4, 9, 6, 16))
    y = torch.rand(4, 6, generator=torch.Generator().manual_seed(2)) < 0.3
    for loss in (asl_loss_from_scores, ranking_loss_from_scores):
        found = []
        for dtype in (torch.float32, torch.float64):
            leaves = [t.to(dtype, copy=True).requires_grad_() for t in (z, w)]
            leaves += [torch.tensor(v, dtype=dtype, requires_grad=True) for v in (20.0, 5.0)]
            scores = spatial_softmax_pool(*leaves[:2], mask, temperature=leaves[2], scale=leaves[3])
            found.append(torch.autograd.grad(loss(scores, y), leaves))
        for ours, truth in zip(*found, strict=True):
            torch.testing.assert_close(ours.double(), truth, rtol=1e-4, atol=1e-6)


def test_gradients_only_where_they_are_needed() -> None:
    z, w, _ = sample((2, 5, 3, 8))
    spatial_softmax_pool(z, w.requires_grad_()).sum().backward()
    whole = w.grad
    w.grad = None
    spatial_softmax_pool(z.requires_grad_(), w).sum().backward()
    assert torch.equal(w.grad, whole)
    heat = torch.tensor(5.0, requires_grad=True)
    spatial_softmax_pool(z.detach(), w.detach(), temperature=heat).sum().backward()
    assert heat.grad is not None
    assert heat.grad > 0


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_operators_keep_their_contract(backend: str) -> None:
    z, w, mask = sample((2, 5, 7, 8))
    heat = torch.tensor(9.0)
    for m in (None, mask):
        leaves = [t.clone().requires_grad_() for t in (z, w, heat)]
        torch.library.opcheck(pooling.pool, (*leaves[:2], m, leaves[2], True, backend))
        pooled, *saved = pooling.pool(z, w, m, heat, True, backend)
        torch.library.opcheck(
            pooling.pool_backward,
            (torch.ones_like(pooled), z, w, m, heat, pooled, *saved, True, backend, True, False),
            test_utils=("test_schema", "test_faketensor"),
        )


def test_compiles_without_a_break_checkpoints_and_has_functional_gradients() -> None:
    z, w, mask = sample((2, 5, 7, 8))
    y = torch.eye(2, 7).bool()
    w.requires_grad_()

    def loss(z: Tensor, w: Tensor, scale: Tensor) -> Tensor:
        return asl_loss_from_scores(spatial_softmax_pool(z, w, mask, scale=scale), y)

    scale = torch.tensor(4.0)
    expected = torch.autograd.grad(loss(z, w, scale), w)[0]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(z, w, scale), w)[0], expected)
    again = checkpoint(loss, z, w, scale, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(again, w)[0], expected)
    # PyTorch's functional transforms do not take torch.library operators with a gradient; float64
    # goes without them.
    wide = [t.detach().double() for t in (z, w, scale)]
    functional = torch.func.grad(loss, argnums=1)(*wide)
    torch.testing.assert_close(functional.float(), expected)


def test_a_second_derivative_says_how_to_have_one() -> None:
    z, w, _ = sample((1, 3, 2, 4))
    w.requires_grad_()
    (first,) = torch.autograd.grad(spatial_softmax_pool(z, w).sum(), w, create_graph=True)
    with pytest.raises(BackendError, match="float64"):
        first.sum().backward()


def test_padding_may_hold_anything_and_empty_inputs_are_fine() -> None:
    z, w, mask = sample((2, 6, 3, 8))
    clean = spatial_softmax_pool(z, w, mask)
    z[~mask] = float("nan")
    assert torch.equal(spatial_softmax_pool(z, w, mask), clean)
    torch.testing.assert_close(
        spatial_softmax_pool(z[..., ::2], w[:, ::2], mask),
        spatial_softmax_pool(z[..., ::2].contiguous(), w[:, ::2].contiguous(), mask),
    )
    for shape in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        leaf = torch.ones(5, shape[2], requires_grad=True)
        out = spatial_softmax_pool(torch.zeros(shape), leaf)
        assert out.shape == (shape[0], 5)
        assert not out.any()
        out.sum().backward()
        assert leaf.grad is not None
        assert not leaf.grad.any()
    assert spatial_softmax_pool(torch.zeros(2, 3, 4), torch.zeros(0, 4)).shape == (2, 0)


def test_a_row_without_regions_scores_zero() -> None:
    z, w = torch.ones(1, 2, 3), torch.ones(4, 3)
    mask = torch.zeros(1, 2, dtype=torch.bool)
    assert torch.equal(spatial_softmax_pool(z, w, mask), torch.zeros(1, 4))


def test_errors_name_the_argument() -> None:
    with pytest.raises(InputError, match="one width"):
        spatial_softmax_pool(torch.ones(1, 2, 3), torch.ones(4, 5))
    with pytest.raises(InputError, match="mask"):
        spatial_softmax_pool(torch.ones(1, 2, 3), torch.ones(4, 3), torch.ones(1, 2))
    with pytest.raises(InputError, match="temperature"):
        spatial_softmax_pool(torch.ones(1, 2, 3), torch.ones(4, 3), temperature=torch.ones(4))
    with pytest.raises(InputError, match="floating"):
        spatial_softmax_pool(torch.ones(1, 2, 3).long(), torch.ones(4, 3))
    with pytest.raises(InputError, match="backend"):
        spatial_softmax_pool(torch.ones(1, 2, 3), torch.ones(4, 3), backend="cuda")
    with pytest.raises(BackendError):
        spatial_softmax_pool(torch.ones(1, 2, 3), torch.ones(4, 3), backend="triton")
