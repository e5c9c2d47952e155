"""The compiled pass under the losses, by every instruction set it is compiled for."""

from __future__ import annotations

import pytest
import torch
from support.fused_cases import check, evaluate, leaves, make_labels
from torch import Tensor

from pvp_fast import losses
from pvp_fast.errors import BackendError, InputError
from pvp_fast.losses import CSRLabels, fused, native_steps

KINDS = ["asl", "bce", "focal", "siglip", "ranking"]
NATIVE = {"backend": "native", "learn_weight": False}


@pytest.fixture
def tiny_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles in both directions."""
    monkeypatch.setattr(fused, "_TILE", {"cpu": 160})
    monkeypatch.setattr(fused, "_ROWS", {"cpu": 16})


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("labels", ["bool", "uint8", "partial", "lists"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_and_label(kind: str, labels: str) -> None:
    check(kind, leaves(37, 300, 20), make_labels(labels, 37, 300), **NATIVE)
    check(kind, leaves(5, 9, 3), make_labels(labels, 5, 9), normalize=False, **NATIVE)


@pytest.mark.usefixtures("tiny_tiles")
@pytest.mark.parametrize("labels", ["bool", "partial", "lists"])
@pytest.mark.parametrize("kind", KINDS)
def test_several_tiles(kind: str, labels: str) -> None:
    check(kind, leaves(37, 83, 20), make_labels(labels, 37, 83), **NATIVE)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_80(kind: str) -> None:
    check(kind, leaves(7, 80, 5, scale=80.0), make_labels("bool", 7, 80), **NATIVE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind: str, dtype: torch.dtype) -> None:
    check(kind, leaves(19, 81, 40, dtype=dtype), make_labels("bool", 19, 81), **NATIVE)


def gradients(loss, x: Tensor, w: Tensor, y, **options) -> list[Tensor]:
    x, w = (t.detach().clone().requires_grad_() for t in (x, w))
    value = loss(x, w, y, **options)
    return [value.detach(), *torch.autograd.grad(value, (x, w))]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.7, 4.0, 9.0])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_settings_of_asl(gamma: float, clip: float, detach: bool) -> None:
    x, w, *_ = leaves(11, 70, 8)
    options = {"gamma_neg": gamma, "gamma_pos": gamma, "clip": clip, "reduction": "sum"}
    options |= {"detach_focal_weight": detach, "scale": 9.0}
    y = make_labels("bool", 11, 70)
    ours = gradients(losses.asl_loss, x, w, y, backend="native", **options)
    exact = gradients(losses.asl_loss_ref, x.double(), w.double(), y, **options)
    for mine, right in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=2e-5)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.25])
@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_settings_of_focal(gamma: float, alpha: float) -> None:
    x, w, *_ = leaves(11, 70, 8)
    y, options = make_labels("bool", 11, 70), {"gamma": gamma, "alpha": alpha, "scale": 9.0}
    ours = gradients(losses.focal_loss, x, w, y, backend="native", reduction="sum", **options)
    exact = gradients(losses.focal_loss_ref, x.double(), w.double(), y, reduction="sum", **options)
    for mine, right in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=2e-5)


def test_rows_of_any_length() -> None:
    """Products of x and w as they are would overflow, vanish, or be 0/0."""
    x, w, *_ = leaves(6, 30, 8)
    x, w = x.detach().clone(), w.detach().clone()
    x[0] *= 1e18
    x[1] = 0.0
    x[2] *= 1e-17
    w[:3] *= 1e18
    w[3] = 0.0
    y = make_labels("bool", 6, 30)
    ours = gradients(losses.asl_loss, x, w, y, backend="native", scale=5.0)
    plain = gradients(losses.asl_loss_ref, x, w, y, scale=5.0)
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)


def test_labels_are_read_where_they_lie() -> None:
    x, w, *_ = leaves(12, 20, 8)
    wide = torch.rand(40, 30, generator=torch.Generator().manual_seed(1)) < 0.2
    for y in (wide[:12, 5:25], wide[::3, ::1][:12, :20], wide.T[:12, :20]):
        ours = gradients(losses.bce_loss, x, w, y, backend="native")
        same = gradients(losses.bce_loss, x, w, y.contiguous(), backend="native")
        assert all(map(torch.equal, ours, same))
    repeated = CSRLabels(torch.tensor([0, 3, 3] + [5] * 10), torch.tensor([7, 2, 7, 0, 19]))
    ours = gradients(losses.bce_loss, x, w, repeated, backend="native")
    same = gradients(losses.bce_loss, x, w, repeated.dense(20), backend="native")
    assert all(map(torch.equal, ours, same))
    with pytest.raises(InputError, match="20"):
        losses.bce_loss(x, w, CSRLabels(torch.tensor([0] * 12 + [1]), torch.tensor([20])))
    with pytest.raises(InputError, match="int8"):
        losses.bce_loss(x, w, torch.full((12, 20), 2, dtype=torch.int8))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("gamma", [0.0, 2.0, 2.5])
@pytest.mark.parametrize("kind", ["asl", "bce", "focal", "ranking"])
def test_nan_stays_nan(kind: str, gamma: float) -> None:
    x, w, *_ = leaves(3, 20, 4)
    settings = {"asl": {"gamma_neg": gamma, "gamma_pos": gamma}, "focal": {"gamma": gamma}}
    for place in (x, w):
        broken = place.detach().clone()
        broken[1, 1] = float("nan")
        pair = (broken, w) if place is x else (x, broken)
        loss = getattr(losses, f"{kind}_loss")
        none, every = (torch.full((3, 20), value) for value in (False, True))
        for y in (none, torch.eye(3, 20).bool()) if kind == "ranking" else (none, every):
            assert loss(*pair, y, backend="native", **settings.get(kind, {})).isnan()


def test_ranking_at_scale_0() -> None:
    """Its gradient of the scale is made of cosines, which scores of 0 do not tell."""
    x, w, *_ = leaves(6, 30, 8)
    y = make_labels("bool", 6, 30)
    scales = [torch.zeros((), dtype=d, requires_grad=True) for d in (torch.float32, torch.float64)]
    ours = losses.ranking_loss(x, w, y, scale=scales[0], margin=0.5, backend="native")
    exact = losses.ranking_loss(x.double(), w.double(), y, scale=scales[1], margin=0.5)
    for value, right, s, t in ((ours, exact, *scales),):
        torch.testing.assert_close(value.double(), right)
        g, h = torch.autograd.grad(value, s)[0], torch.autograd.grad(right, t)[0]
        torch.testing.assert_close(g.double(), h, rtol=1e-5, atol=1e-5)


def test_the_same_bits_with_any_number_of_threads() -> None:
    tensors, y, before = leaves(64, 700, 16), make_labels("bool", 64, 700), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(evaluate(losses.bce_loss, tensors, y, **NATIVE)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_auto_takes_it_and_an_explicit_request_runs_or_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, w, _, _, weight = leaves(4, 9, 5)
    y = make_labels("bool", 4, 9)
    assert torch.equal(losses.asl_loss(x, w, y), losses.asl_loss(x, w, y, backend="native"))
    soft = make_labels("soft", 4, 9)
    for loss, labels, options, reason in (
        (losses.asl_loss, soft, {}, "soft"),
        (losses.asl_loss, y, {"weight": weight}, "weight"),
        (losses.asl_loss, y, {"eps": 0.0}, "eps"),
    ):
        assert loss(x, w, labels, **options).isfinite()
        with pytest.raises(BackendError, match=reason):
            loss(x, w, labels, backend="native", **options)
    with pytest.raises(InputError, match="float64"):
        losses.asl_loss(x.double(), w.double(), y, backend="native")
    monkeypatch.setattr(native_steps, "WIDEST_RANKING", 8)
    with pytest.raises(BackendError, match="up to 8 categories"):
        losses.ranking_loss(x, w, y, backend="native")
    monkeypatch.setenv("PVP_FAST_ISA", "mmx")
    with pytest.raises(BackendError, match="mmx"):
        losses.asl_loss(x, w, y)
