"""What only a GPU can show: the compiled kernels and the public functions against float64 truth.

The bar for the value and every gradient: an error at most twice that of plain PyTorch in the same
dtype, plus 1e-4 of the largest entry; and the same bits when run again.
"""

from __future__ import annotations

import importlib.util
import inspect
import typing
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pvp_fast import TagIndex, losses, spatial_softmax_pool
from pvp_fast.losses import CSRLabels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is missing"),
]

ENTRYWISE = ["asl", "bce", "focal", "siglip"]
MULTI_LABEL = [*ENTRYWISE, "ranking"]
SHAPES = [(1, 1, 8), (2, 20, 512), (7, 80, 96), (130, 1000, 70), (300, 81, 512)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(kind: str, rows: int, cols: int) -> Tensor | CSRLabels:
    """The first row has no positive; the last of several has no negative."""
    generator = torch.Generator().manual_seed(rows + cols)
    positive = torch.rand(rows, cols, generator=generator) < 0.15
    positive[0] = False
    if rows > 1:
        positive[-1] = True
    if kind == "lists":
        return CSRLabels(F.pad(positive.sum(1).cumsum(0), (1, 0)), positive.nonzero()[:, 1])
    if kind == "partial":
        known = torch.rand(rows, cols, generator=generator) < 0.7
        return torch.where(known, torch.where(positive, 1, -1), 0).to(torch.int8)
    return positive


def moved(y: Tensor | CSRLabels) -> Tensor | CSRLabels:
    if isinstance(y, CSRLabels):
        return CSRLabels(y.offsets.cuda(), y.indices.cuda())
    return y.cuda()


def near(
    ours: list[Tensor],
    plain: list[Tensor],
    truth: list[Tensor],
    dtype: torch.dtype,
    slack: float = 1e-4,
) -> None:
    """Errors relative to the largest entry; half precision may be off by one rounding more."""
    rounding = 0 if dtype == torch.float32 else torch.finfo(dtype).eps
    for found, same, exact in zip(ours, plain, truth, strict=True):
        assert found.isfinite().all()
        size = exact.abs().max().clamp(min=1e-6)
        error = (found.double().cpu().reshape(exact.shape) - exact).abs()
        bound = 2 * (same.double().reshape(exact.shape) - exact).abs().max() + slack * size
        assert bool((error <= bound + rounding * exact.abs()).all()), float((error / size).max())


def with_gradients(call: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    value = call(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def check(
    call: Callable[..., Tensor],
    leaves: list[Tensor],
    y: Tensor | CSRLabels | None,
    slack: float = 1e-4,
) -> None:
    """``call(y, x, w, scale)`` on the GPU, twice, against the plain form on the CPU in float64."""
    dtype = leaves[0].dtype
    exact = with_gradients(lambda *t: call(y, *t), [leaf.double() for leaf in leaves])
    same = with_gradients(lambda *t: call(y, *t), leaves)
    there = None if y is None else moved(y)
    on_gpu = [leaf.cuda() for leaf in leaves]
    ours = with_gradients(lambda *t: call(there, *t), on_gpu)
    again = with_gradients(lambda *t: call(there, *t), on_gpu)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    near(ours, same, exact, dtype, slack)


def regimes(function: Callable[..., Tensor]) -> list[str]:
    if "regime" not in inspect.signature(function).parameters:
        return []
    named = typing.get_args(typing.get_type_hints(function)["regime"])
    return [*(named or ("small", "chunked", "recompute"))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["dense", "partial", "lists"])
@pytest.mark.parametrize("name", MULTI_LABEL)
def test_loss(name: str, kind: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, cols, width = shape
    x, w = randn(rows, width, seed=1).to(dtype), randn(cols, width, seed=2).to(dtype)
    function = getattr(losses, f"{name}_loss")
    scale = torch.tensor(12.0)
    # One pair of 1e7 that lies on the hinge moves a gradient by a 400th.
    slack = 1e-2 if name == "ranking" else 1e-4
    y = labels(kind, rows, cols)
    check(lambda y, x, w, s: function(x, w, y, scale=s), [x, w, scale], y, slack)


@pytest.mark.parametrize(
    ("name", "regime"),
    [
        (name, regime)
        for name in (*MULTI_LABEL, "clip")
        for regime in regimes(getattr(losses, f"{name}_loss"))
    ],
)
def test_every_regime_that_runs_is_right(name: str, regime: str) -> None:
    rows, cols = (96, 96) if name == "clip" else (96, 40)
    x, w = randn(rows, 256, seed=1).bfloat16(), randn(cols, 256, seed=2).bfloat16()
    function = getattr(losses, f"{name}_loss")
    y = None if name == "clip" else labels("lists", rows, cols)

    def call(y: Tensor | CSRLabels | None, x: Tensor, w: Tensor, s: Tensor) -> Tensor:
        return function(x, w, y, scale=s, **({"regime": regime} if x.is_cuda else {}))

    check(call, [x, w, torch.tensor(12.0)], y, 1e-2 if name == "ranking" else 1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 33, 257])
def test_clip_loss(rows: int, dtype: torch.dtype) -> None:
    x, w = randn(rows, 70, seed=1).to(dtype), randn(rows, 70, seed=2).to(dtype)
    scale = torch.tensor(14.0)
    check(lambda y, x, w, s: losses.clip_loss(x, w, scale=s), [x, w, scale], None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1, 8), (3, 49, 81, 70), (5, 196, 300, 512)], ids=str)
def test_pooling(shape: tuple[int, int, int, int], masked: bool, dtype: torch.dtype) -> None:
    images, regions, cols, width = shape
    z, w = randn(images, regions, width, seed=1).to(dtype), randn(cols, width, seed=2).to(dtype)
    g = randn(images, cols, seed=3)
    mask = torch.rand(images, regions, generator=torch.Generator().manual_seed(4)) < 0.6
    mask[0] = False
    heat = torch.tensor(30.0)

    def call(_: None, z: Tensor, w: Tensor, heat: Tensor) -> Tensor:
        real = mask.to(z.device) if masked else None
        scores = spatial_softmax_pool(
            z, w, real, temperature=heat, backend="triton" if z.is_cuda else "torch"
        )
        return (scores * g.to(scores)).sum()

    check(call, [z, w, heat], None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["dense", "partial", "lists"])
@pytest.mark.parametrize("name", MULTI_LABEL)
def test_score_kernels(name: str, kind: str, dtype: torch.dtype) -> None:
    from pvp_fast.kernels.entrywise import elementwise_loss_
    from pvp_fast.kernels.ranking import ranking_loss_

    rows, cols = 70, 1500
    raw, y = 3 * randn(rows, cols, seed=1).to(dtype), labels(kind, rows, cols)
    there = moved(y)
    lists = (there.offsets, there.indices) if isinstance(there, CSRLabels) else there
    scale = torch.tensor([2.0])

    def run() -> list[Tensor]:
        tile = raw.cuda().clone()  # overwritten
        if name == "ranking":
            sums = ranking_loss_(tile, lists, scale=scale.cuda())
        else:
            sums = elementwise_loss_(tile, lists, name, scale=scale.cuda())
        return [sums.loss.sum(), tile, sums.dscale.sum()]

    plain = getattr(losses, f"{name}_loss_from_scores")

    def by_definition(raw: Tensor, scale: Tensor) -> Tensor:
        return plain(raw * scale, y, reduction="sum")

    same, exact = (
        with_gradients(by_definition, [raw.to(kept), scale.to(kept)])
        for kept in (torch.float32, torch.float64)
    )
    ours, again = run(), run()
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    near(ours, same, exact, dtype, 1e-2 if name == "ranking" else 1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cols", [20, 64])
@pytest.mark.parametrize("name", ENTRYWISE)
def test_small_c_kernel(name: str, cols: int, dtype: torch.dtype) -> None:
    from pvp_fast.kernels.entrywise_small import small_c_loss

    rows, width = 3000, 512
    x, w = randn(rows, width, seed=1).to(dtype), randn(cols, width, seed=2).to(dtype)
    y = labels("dense", rows, cols)

    def run() -> list[Tensor]:
        found = small_c_loss(x.cuda(), w.cuda(), y.cuda(), name, scale=torch.tensor([8.0]).cuda())
        assert found.sums.dscale is not None
        return [found.sums.loss.sum(), found.dx, found.dw, found.sums.dscale.sum()]

    plain = getattr(losses, f"{name}_loss_from_scores")

    def by_definition(x: Tensor, w: Tensor, scale: Tensor) -> Tensor:
        scores = scale * (F.normalize(x, dim=1) @ F.normalize(w, dim=1).T)
        return plain(scores, y, reduction="sum")

    same, exact = (
        with_gradients(by_definition, [x.to(kept), w.to(kept), torch.tensor(8.0, dtype=kept)])
        for kept in (torch.float32, torch.float64)
    )
    ours, again = run(), run()
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    near(ours, same, exact, dtype)


def test_a_loss_is_captured_in_a_cuda_graph() -> None:
    from pvp_fast.kernels.entrywise_small import small_c_loss

    x, w = randn(64, 128, seed=1).cuda(), randn(20, 128, seed=2).cuda()
    y = moved(labels("dense", 64, 20))
    eager = small_c_loss(x, w, y, "asl")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = small_c_loss(x, w, y, "asl")
    captured.dw.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured.dw, eager.dw)
    assert torch.equal(captured.sums.loss, eager.sums.loss)


def test_pooling_compiles_on_a_gpu() -> None:
    z, w = randn(2, 20, 32, seed=1).cuda(), randn(5, 32, seed=2).cuda().requires_grad_()
    expected = torch.autograd.grad(spatial_softmax_pool(z, w).sum(), w)[0]
    compiled = torch.compile(lambda z, w: spatial_softmax_pool(z, w).sum(), fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(z, w), w)[0], expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("rows", "cols", "k"), [(1, 100_000, 10), (64, 20_000, 256), (300, 81, 5)])
def test_topk(rows: int, cols: int, k: int, dtype: str) -> None:
    from pvp_fast import native

    if native.call("cuda_status"):
        pytest.skip(native.call("cuda_status"))
    x, w = F.normalize(randn(rows, 512, seed=1), dim=1), randn(cols, 512, seed=2)
    here = TagIndex(w, dtype).topk(x, k)
    there = TagIndex(w.cuda(), dtype).topk(x.cuda(), k, backend="cuda")
    torch.testing.assert_close(there.scores.cpu(), here.scores, rtol=0, atol=2e-6)
    if dtype == "float32":
        assert torch.equal(there.indices.cpu(), here.indices)
