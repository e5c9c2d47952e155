"""Kernels against float64 truth, run by tests/kernels/test_kernels.py with TRITON_INTERPRET=1.

The bar for the loss and every gradient: an error at most twice that of plain PyTorch in the same
dtype, plus 1e-4; and the same bits when run again.
"""

import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from pvp_fast.errors import InputError
from pvp_fast.kernels.entrywise import category_sums, elementwise_loss_
from pvp_fast.kernels.entrywise_small import small_c_loss
from pvp_fast.kernels.ranking import ranking_category_sums, ranking_loss_
from pvp_fast.losses import (
    CSRLabels,
    asl_loss_from_scores,
    bce_loss_from_scores,
    focal_loss_from_scores,
    ranking_loss_from_scores,
    siglip_loss_from_scores,
)

PLAIN = {
    "asl": asl_loss_from_scores,
    "bce": bce_loss_from_scores,
    "focal": focal_loss_from_scores,
    "siglip": siglip_loss_from_scores,
    "ranking": ranking_loss_from_scores,
}
PLAIN_SCORES = {"scale": torch.ones(()), "bias": torch.zeros(())}
ENTRYWISE = ["asl", "bce", "focal", "siglip"]
SHAPES = [(1, 1), (2, 20), (3, 81), (7, 80), (33, 130)]
LABELS = ["bool", "uint8", "soft", "partial", "lists"]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_labels(kind: str, rows: int, cols: int, seed: int = 0) -> Tensor | CSRLabels:
    """Row 0 has no positive; the last of several rows has no negative, but in wide lists.

    Ranking walks a list for every entry of it: C³ / 8192 steps of the interpreter.
    """
    positive = torch.rand(rows, cols, generator=generator(seed)) < 0.15
    positive[0] = False
    if rows > 1 and (kind != "lists" or cols <= 128):
        positive[-1] = True
    if kind == "soft":
        return torch.rand(rows, cols, generator=generator(seed))
    if kind == "partial":
        known = torch.rand(rows, cols, generator=generator(seed + 1)) < 0.7
        return torch.where(known, torch.where(positive, 1, -1), 0).to(torch.int8)
    if kind == "lists":
        offsets = torch.zeros(rows + 1, dtype=torch.int64)
        offsets[1:] = positive.sum(1).cumsum(0)
        return CSRLabels(offsets, positive.nonzero()[:, 1])
    return positive.to(torch.uint8) if kind == "uint8" else positive


def for_kernel(y: Tensor | CSRLabels) -> Tensor | tuple[Tensor, Tensor]:
    return (y.offsets, y.indices) if isinstance(y, CSRLabels) else y


def close(ours: Tensor, plain: Tensor, truth: Tensor, slack: float = 0.0) -> None:
    """``slack`` is relative: half precision stores are truncated by the interpreter."""
    assert not ours.isnan().any()
    error = (ours.double() - truth).abs()
    bound = 2 * (plain.double() - truth).abs().max() + 1e-4 * max(1.0, float(truth.abs().max()))
    assert bool((error <= bound + slack * truth.abs()).all()), float((error - bound).max())


def plain(kind: str, scores: Tensor, y, dtype: torch.dtype, **options):
    """Row losses by their sum, and the gradient of the scores, by autograd."""
    leaf = scores.to(dtype, copy=True).requires_grad_()
    loss = PLAIN[kind](leaf, y, reduction="sum", **options)
    return [loss.detach(), *torch.autograd.grad(loss, leaf)]


def check(kind: str, scores: Tensor, y, *, weight=None, **options) -> None:
    double = {} if weight is None else {"weight": weight.double()}
    single = {} if weight is None else {"weight": weight}
    truth = plain(kind, scores, y, torch.float64, **options, **double)
    same = plain(kind, scores, y, torch.float32, **options, **single)
    runs = []
    for _ in range(2):
        tile = scores.clone()
        if kind == "ranking":
            loss = ranking_loss_(tile, for_kernel(y), weight=weight, **options)
        else:
            loss = elementwise_loss_(tile, for_kernel(y), kind, weight=weight, **options)
        runs.append([loss.sum(), tile])
    for ours, again, p, t in zip(*runs, same, truth, strict=True):
        assert torch.equal(ours, again)
        close(ours, p, t)


@pytest.mark.parametrize("first", range(len(LABELS)))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_elementwise(shape: tuple[int, int], first: int) -> None:
    """Every pair of shape, label kind and loss."""
    raw = torch.randn(shape, generator=generator(3)) * 3
    kind = ENTRYWISE[(first + SHAPES.index(shape)) % len(ENTRYWISE)]
    check(kind, raw, make_labels(LABELS[first], *shape))


@pytest.mark.parametrize("kind", ENTRYWISE)
def test_extreme_scores_and_weight(kind: str) -> None:
    raw = torch.linspace(-80, 80, 3 * 41).reshape(3, 41)
    weight = torch.rand(41, generator=generator(1))
    y = make_labels("bool", 3, 41)
    check(kind, raw, y)
    check(kind, raw / 8 - 1, y, weight=weight)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize(
    ("gamma_pos", "gamma_neg", "clip"),
    [(0.0, 0.0, 0.0), (1.0, 4.0, 0.05), (0.5, 0.5, 0.0), (2.0, 3.0, 0.0), (1.5, 2.5, 0.2)],
)
def test_both_asl_conventions(
    detach: bool, gamma_pos: float, gamma_neg: float, clip: float
) -> None:
    raw = torch.randn(5, 37, generator=generator(5)) * 4
    options = {"gamma_pos": gamma_pos, "gamma_neg": gamma_neg, "clip": clip}
    check("asl", raw, make_labels("bool", 5, 37), detach_focal_weight=detach, **options)
    check("asl", raw * 10, make_labels("bool", 5, 37), detach_focal_weight=detach, **options)


@pytest.mark.parametrize("options", [{"gamma": 0.0}, {"alpha": -1.0}, {"gamma": 1.5}])
def test_focal_settings(options: dict[str, float]) -> None:
    raw = torch.randn(3, 20, generator=generator(9)) * 2
    check("focal", raw, make_labels("bool", 3, 20), **options)


def test_a_row_wider_than_a_block_and_strided_tiles() -> None:
    y = make_labels("lists", 3, 130)
    wide = torch.randn(3, 200, generator=generator(2))
    tile = wide[:, 10:140]
    truth = plain("asl", tile, y, torch.float64)
    outside = wide[:, 140:].clone()
    loss = elementwise_loss_(tile, for_kernel(y), "asl", block_cols=32)
    close(loss.sum(), truth[0], truth[0])
    close(tile, truth[1], truth[1])
    assert torch.equal(wide[:, 140:], outside)


def far(near: Tensor) -> Tensor:
    """A copy (3, C) whose row 2 begins 2³¹ elements after row 0; no page between is touched."""
    rows, cols = near.shape
    stride = 2**30
    wide = torch.empty((rows - 1) * stride + cols, dtype=near.dtype)
    return wide.as_strided((rows, cols), (stride, 1)).copy_(near)


@pytest.mark.parametrize("labels", ["bool", "partial"])
@pytest.mark.parametrize("kind", ["asl", "ranking"])
def test_offsets_beyond_32_bits(kind: str, labels: str) -> None:
    raw, y = torch.randn(3, 20, generator=generator(3)), make_labels(labels, 3, 20)
    distant, wide = far(raw), far(y)
    weight = torch.rand(20, generator=generator(1))
    if kind == "ranking":
        found = ranking_loss_(distant, wide, weight=weight)
        expected = ranking_loss_(raw, y, weight=weight)
        by_category = [ranking_category_sums(s, t) for s, t in ((far(raw), wide), (raw, y))]
    else:
        found = elementwise_loss_(distant, wide, kind, weight=weight)
        expected = elementwise_loss_(raw, y, kind, weight=weight)
        by_category = [category_sums(s, t, kind) for s, t in ((far(raw), wide), (raw, y))]
    assert torch.equal(found, expected)
    assert torch.equal(distant, raw)
    assert torch.equal(*by_category)


@pytest.mark.parametrize("labels", ["bool", "partial"])
def test_small_c_reads_labels_beyond_32_bits(labels: str) -> None:
    x, w = (torch.randn(3, 24, generator=generator(seed)) for seed in (1, 2))
    y = make_labels(labels, 3, 3)
    found, expected = (small_c_loss(x, w, t, "asl", **PLAIN_SCORES) for t in (far(y), y))
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(found.dx, expected.dx)
    assert torch.equal(found.dw, expected.dw)


def test_a_chunk_of_rows_takes_a_slice_of_the_offsets() -> None:
    y = make_labels("lists", 6, 30)
    raw = torch.randn(6, 30, generator=generator(4))
    whole, part = raw.clone(), raw[2:5].clone()
    full = elementwise_loss_(whole, (y.offsets, y.indices), "bce")
    some = elementwise_loss_(part, (y.offsets[2:6], y.indices), "bce")
    assert torch.equal(full[2:5], some)
    assert torch.equal(whole[2:5], part)


def test_transposed_labels_unknown_infinities_and_nothing_at_all() -> None:
    raw = torch.randn(4, 9, generator=generator(6))
    y = make_labels("bool", 4, 9)
    check("asl", raw, y.T.contiguous().T)
    hidden = torch.full((1, 2), float("inf"))
    assert elementwise_loss_(hidden, torch.tensor([[0, 0]], dtype=torch.int8), "bce").item() == 0
    assert hidden.tolist() == [[0.0, 0.0]]
    empty = elementwise_loss_(torch.zeros(0, 5), torch.zeros(0, 5), "asl")
    assert empty.shape == (0,)
    assert elementwise_loss_(torch.zeros(2, 0), torch.zeros(2, 0), "asl").tolist() == [0, 0]


def test_the_launcher_refuses_what_it_cannot_run() -> None:
    scores, y = torch.zeros(2, 3), torch.zeros(2, 3)
    with pytest.raises(InputError, match="kind"):
        elementwise_loss_(scores, y, "hinge")
    with pytest.raises(InputError, match="float32"):
        elementwise_loss_(scores.bfloat16(), y, "asl")
    with pytest.raises(InputError, match="contiguous columns"):
        elementwise_loss_(torch.zeros(3, 2).T, y, "asl")
    with pytest.raises(InputError, match="shape"):
        elementwise_loss_(scores, torch.zeros(3, 2), "asl")
    with pytest.raises(InputError, match="offsets"):
        elementwise_loss_(scores, (torch.zeros(2).long(), torch.zeros(0).long()), "asl")
    with pytest.raises(InputError, match="weight"):
        elementwise_loss_(scores, y, "asl", weight=torch.ones(2))


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("shape", [*SHAPES[:-1], (4, 130), (3, 300)], ids=str)
def test_ranking(labels: str, shape: tuple[int, int]) -> None:
    raw = torch.randn(shape, generator=generator(3))
    y = make_labels(labels, *shape)
    check("ranking", raw, y)
    weight = torch.rand(shape[1], generator=generator(1))
    check("ranking", 4 * raw, y, weight=weight, margin=0.7)


def test_ranking_extremes_and_nothing_at_all() -> None:
    raw = torch.linspace(-80, 80, 3 * 41).reshape(3, 41)
    check("ranking", raw, make_labels("bool", 3, 41))
    check("ranking", raw / 40, make_labels("partial", 3, 41))
    wide = torch.randn(2, 70, generator=generator(8))
    check("ranking", wide, torch.rand(2, 70, generator=generator(9)) < 0.6)
    # A category ruled out by a score of −∞ costs nothing and has no gradient.
    ruled_out = torch.randn(3, 20, generator=generator(10))
    y = make_labels("bool", 3, 20)
    ruled_out[:, 4] = float("-inf")
    y[:, 4] = False
    rest = [c for c in range(20) if c != 4]
    expected = ranking_loss_(ruled_out[:, rest], y[:, rest])
    torch.testing.assert_close(ranking_loss_(ruled_out, y), expected)
    assert not ruled_out[:, 4].any()
    assert ranking_loss_(torch.zeros(0, 5), torch.zeros(0, 5)).shape == (0,)
    with pytest.raises(InputError, match="weight"):
        ranking_loss_(torch.zeros(2, 3), torch.zeros(2, 3), weight=torch.ones(2))


def plain_small(kind, x, w, y, dtype, scale, bias, normalize, weight=None, **options):
    leaves = [t.to(dtype, copy=True).requires_grad_() for t in (x, w, scale, bias)]
    a, b, k, c = leaves
    if normalize:
        a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    weight = None if weight is None else weight.to(dtype)
    loss = PLAIN[kind](k * (a @ b.T) + c, y, reduction="sum", weight=weight, **options)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def check_small(kind, x, w, y, *, normalize=True, scale=5.0, max_programs=132, **options) -> None:
    k, c = torch.tensor([scale]), torch.tensor([-0.5])
    truth, same = (
        plain_small(kind, x, w, y, dtype, k, c, normalize, **options)
        for dtype in (torch.float64, torch.float32)
    )
    runs = []
    for _ in range(2):
        found = small_c_loss(
            x,
            w,
            for_kernel(y),
            kind,
            scale=k,
            bias=c,
            normalize=normalize,
            max_programs=max_programs,
            **options,
        )
        by_scale, by_bias = (t.sum()[None] for t in (found.dscale, found.dbias))
        runs.append([found.loss.sum(), found.dx, found.dw, by_scale, by_bias])
    half = x.dtype != torch.float32
    for i, (ours, again, p, t) in enumerate(zip(*runs, same, truth, strict=True)):
        assert torch.equal(ours, again)
        close(ours, p, t, 2**-7 if half and i in (1, 2) else 0.0)


@pytest.mark.parametrize("kind", ENTRYWISE)
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[1] <= 64], ids=str)
def test_small_c(kind: str, shape: tuple[int, int]) -> None:
    rows, cols = shape
    x = torch.randn(rows, 37, generator=generator(1))
    w = torch.randn(cols, 37, generator=generator(2))
    check_small(kind, x, w, make_labels("bool", rows, cols))


@pytest.mark.parametrize("labels", LABELS)
def test_small_c_label_kinds(labels: str) -> None:
    x = torch.randn(18, 70, generator=generator(1))
    w = torch.randn(20, 70, generator=generator(2))
    weight = torch.rand(20, generator=generator(3))
    check_small("asl", x, w, make_labels(labels, 18, 20), weight=weight, detach_focal_weight=False)


def test_small_c_extremes_half_precision_few_programs_and_zero_rows() -> None:
    x = torch.randn(40, 24, generator=generator(1))
    w = torch.randn(20, 24, generator=generator(2))
    y = make_labels("bool", 40, 20)
    check_small("asl", x, w, y, scale=80.0)
    check_small("bce", x, w, y, normalize=False, scale=1.0)
    check_small("asl", x, w, y, max_programs=1)
    check_small("asl", x.bfloat16(), w.bfloat16(), y)
    x = x.index_fill(0, torch.tensor([3]), 0.0)
    w = w.index_fill(0, torch.tensor([4]), 0.0)
    zero_rows = small_c_loss(x, w, y, "asl", **PLAIN_SCORES)
    assert all(t.isfinite().all() for t in zero_rows)
    empty = small_c_loss(x[:0], w, y[:0], "asl", **PLAIN_SCORES)
    assert empty.dx.shape == (0, 24)
    assert not empty.dw.any()
    with pytest.raises(InputError, match="C <= 64"):
        small_c_loss(x, torch.zeros(300, 24), torch.zeros(40, 300), "asl", **PLAIN_SCORES)


@pytest.mark.parametrize("cols", [80, 81, 128])
def test_small_c_of_coco_and_nus_in_half_precision(cols: int) -> None:
    x = torch.randn(7, 40, generator=generator(1)).bfloat16()
    w = torch.randn(cols, 40, generator=generator(2)).bfloat16()
    check_small("asl", x, w, make_labels("lists", 7, cols))
