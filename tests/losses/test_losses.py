"""Losses against formulas written out by hand in float64, and their edges."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pvp_fast import losses
from pvp_fast.errors import BackendError, InputError
from pvp_fast.losses import CSRLabels

SHAPES = [(1, 1), (2, 20), (3, 81), (7, 80)]


def sample(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return scores, torch.rand(rows, columns, generator=generator) < 0.3


def asl_by_hand(s: float, y: bool, gp: float, gn: float, clip: float) -> float:
    p = 1 / (1 + math.exp(-s))
    if y:
        return -math.log(max(p, 1e-8)) * (1 - p) ** gp
    q = min(1 - p + clip, 1)
    return -math.log(max(q, 1e-8)) * (1 - q) ** gn


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("gp", "gn", "clip"), [(1.0, 4.0, 0.05), (0.0, 2.0, 0.0), (0.5, 0.5, 0.1)])
def test_asl_is_its_formula(shape: tuple[int, int], gp: float, gn: float, clip: float) -> None:
    scores, y = sample(*shape)
    expected = sum(
        asl_by_hand(s, label, gp, gn, clip)
        for row, labels in zip(scores.tolist(), y.tolist(), strict=True)
        for s, label in zip(row, labels, strict=True)
    )
    options = {"gamma_pos": gp, "gamma_neg": gn, "clip": clip}
    for detach in (True, False):
        loss = losses.asl_loss_from_scores(
            scores, y, reduction="sum", detach_focal_weight=detach, **options
        )
        assert loss.item() == pytest.approx(expected, rel=1e-12)
    mean = losses.asl_loss_from_scores(scores, y, **options).item()
    assert mean == pytest.approx(expected / scores.numel(), rel=1e-12)


@pytest.mark.parametrize(("detach", "expected"), [(True, -0.1811), (False, -0.3166)])
def test_asl_gradient_of_both_conventions(detach: bool, expected: float) -> None:
    score = torch.tensor([[0.3]], requires_grad=True)
    losses.asl_loss_from_scores(
        score, torch.ones(1, 1), gamma_pos=1, detach_focal_weight=detach
    ).backward()
    assert score.grad is not None
    assert score.grad.item() == pytest.approx(expected, abs=1e-4)


def test_asl_without_focusing_is_bce() -> None:
    scores, y = sample(7, 80)
    plain = losses.asl_loss_from_scores(scores, y, gamma_pos=0, gamma_neg=0, clip=0)
    torch.testing.assert_close(plain, losses.bce_loss_from_scores(scores, y))


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
def test_saturated_asl_has_finite_gradients_and_zero_where_clamped(gamma: float) -> None:
    scores = torch.tensor([[80.0, -80.0, 80.0, -80.0]], requires_grad=True)
    y = torch.tensor([[True, True, False, False]])
    loss = losses.asl_loss_from_scores(
        scores, y, gamma_pos=gamma, gamma_neg=gamma, detach_focal_weight=False, clip=0.05
    )
    loss.backward()
    assert loss.isfinite()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    # A lost positive and an easy negative lie on the clamps: exactly no gradient.
    assert scores.grad[0, 3] == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_ranking_is_the_triple_sum(shape: tuple[int, int]) -> None:
    scores, y = sample(*shape)
    expected = 0.0
    for row, labels in zip(scores.tolist(), y.tolist(), strict=True):
        for p, is_positive in zip(row, labels, strict=True):
            for n, other in zip(row, labels, strict=True):
                if is_positive and not other:
                    expected += max(0.0, 1 - p + n)
    loss = losses.ranking_loss_from_scores(scores, y, reduction="sum")
    assert loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_rows_without_positives_or_negatives_cost_nothing() -> None:
    scores = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([[False] * 5, [True] * 5])
    assert losses.ranking_loss_from_scores(scores, y).item() == 0


def test_focal_is_torchvisions() -> None:
    ops = pytest.importorskip("torchvision.ops")
    scores, y = sample(7, 80)
    ours = losses.focal_loss_from_scores(scores, y, alpha=0.25, gamma=2)
    theirs = ops.sigmoid_focal_loss(scores, y.double(), 0.25, 2, reduction="mean")
    torch.testing.assert_close(ours, theirs)


def test_siglip_and_clip_are_their_formulas() -> None:
    scores, y = sample(4, 4)
    sign = 2 * y.double() - 1
    by_hand = torch.log1p(torch.exp(-sign * scores)).sum() / 4
    torch.testing.assert_close(losses.siglip_loss_from_scores(scores, y), by_hand)
    diagonal = scores.diagonal()
    rows = (scores.logsumexp(1) - diagonal).mean()
    columns = (scores.logsumexp(0) - diagonal).mean()
    torch.testing.assert_close(losses.clip_loss_from_scores(scores), (rows + columns) / 2)
    soft = torch.eye(4) + 1e-9
    torch.testing.assert_close(losses.clip_loss_from_scores(scores, soft), (rows + columns) / 2)


@pytest.mark.parametrize("name", ["asl", "bce", "focal", "siglip", "ranking"])
def test_gradients_of_queries_classes_and_scale(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    w = torch.randn(5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-0.2, dtype=torch.float64, requires_grad=True)
    y = torch.rand(3, 5, generator=generator) < 0.4
    options = {"detach_focal_weight": False} if name == "asl" else {}
    loss = getattr(losses, f"{name}_loss")

    def run(x: Tensor, w: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return loss(x, w, y, scale=scale, bias=bias, **options)

    assert torch.autograd.gradcheck(run, (x, w, scale, bias))


@pytest.mark.parametrize("name", ["asl", "bce", "focal", "siglip", "ranking"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_evaluated_in_float32(name: str, dtype: torch.dtype) -> None:
    scores, y = sample(3, 81)
    scores = (scores * 10).to(dtype)
    loss = getattr(losses, f"{name}_loss_from_scores")
    half = loss(scores, y)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, loss(scores.float(), y))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 6), st.integers(1, 9), st.integers(0, 1000))
def test_csr_and_dense_labels_agree_and_inputs_stay(rows: int, columns: int, seed: int) -> None:
    scores, y = sample(rows, columns, seed)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), y.sum(1).cumsum(0)])
    csr = CSRLabels(offsets, y.nonzero()[:, 1])
    before = scores.clone()
    for name in ("asl", "bce", "focal", "siglip", "ranking"):
        loss = getattr(losses, f"{name}_loss_from_scores")
        assert torch.equal(loss(scores, csr), loss(scores, y))
        assert loss(scores, y).isfinite()
    assert torch.equal(scores, before)


def test_unknown_labels_cost_nothing() -> None:
    scores, _ = sample(2, 4)
    scores.requires_grad_()
    y = torch.tensor([[1, 0, -1, 0], [0, 0, 0, 0]], dtype=torch.int8)
    for name in ("asl", "bce", "ranking"):
        (gradient,) = torch.autograd.grad(
            getattr(losses, f"{name}_loss_from_scores")(scores, y), scores
        )
        assert (gradient[y == 0] == 0).all()
        assert (gradient[0, 0] != 0) or name == "ranking"


def test_bad_arguments_are_named() -> None:
    x, w = torch.randn(2, 3), torch.randn(4, 3)
    with pytest.raises(InputError, match="one width D"):
        losses.bce_loss(x, torch.randn(4, 5), torch.zeros(2, 4))
    with pytest.raises(InputError, match="y has shape"):
        losses.bce_loss(x, w, torch.zeros(2, 5))
    with pytest.raises(InputError, match=r"y is torch.int64: give y\.bool\(\)"):
        losses.bce_loss(x, w, torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(InputError, match="only -1, 0 and 1"):
        losses.bce_loss(x, w, torch.full((2, 4), 2, dtype=torch.int8))
    with pytest.raises(InputError, match="reduction"):
        losses.asl_loss(x, w, torch.zeros(2, 4), reduction="median")
    with pytest.raises(BackendError, match="triton"):
        losses.asl_loss(x, w, torch.zeros(2, 4), backend="triton")
    with pytest.raises(InputError, match="numbered from 0"):
        losses.bce_loss(x, w, CSRLabels(torch.tensor([0, 1, 1]), torch.tensor([4])))
    with pytest.raises(InputError, match="offsets"):
        CSRLabels(torch.tensor([0, 3]), torch.tensor([1]))
