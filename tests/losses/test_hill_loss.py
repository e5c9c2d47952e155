"""Hill loss against its formula in float64 NumPy, its gradients, and the engines without it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.fused_cases import LABELS, arrays, evaluate, leaves, make_labels

from pvp_fast.errors import BackendError
from pvp_fast.losses import HillLoss, fused, hill_loss, hill_loss_from_scores, hill_loss_ref

SETTINGS = [{}, {"lamb": 1.2, "margin": 0.0, "gamma": 1.0}]


def truth(
    s: np.ndarray, y: np.ndarray, lamb: float = 1.5, margin: float = 1.0, gamma: float = 2.0
) -> np.ndarray:
    """The formula, and nothing of ours."""
    p, present = 1 / (1 + np.exp(-s)), 1 / (1 + np.exp(margin - s))
    return -y * np.log(present) * (1 - present) ** gamma + (1 - y) * (lamb - p) * p**2


@pytest.fixture
def tiny_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles in both directions."""
    monkeypatch.setattr(fused, "_TILE", {"cpu": 640})
    monkeypatch.setattr(fused, "_ROWS", {"cpu": 16})


@pytest.mark.usefixtures("tiny_tiles")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("regime", ["small", "chunked", "recompute"])
def test_error_within_twice_that_of_plain_pytorch(
    regime: str, labels: str, settings: dict[str, float]
) -> None:
    tensors, y = leaves(37, 83, 20), make_labels(labels, 37, 83)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    options = settings | {"reduction": "sum"}
    exact = evaluate(hill_loss_ref, wide, y, **options)
    x, w, scale, bias, weight = (t.detach() for t in wide)
    x, w = (t / t.norm(dim=1, keepdim=True) for t in (x, w))
    targets, known = arrays(y, len(w))
    entries = truth((scale * x @ w.T + bias).numpy(), targets, **settings) * known * weight.numpy()
    assert exact[0].item() == pytest.approx(entries.sum(), rel=1e-9)
    same = evaluate(hill_loss_ref, tensors, y, **options)
    runs = [evaluate(hill_loss, tensors, y, regime=regime, **options) for _ in range(2)]
    for ours, again, p, t in zip(*runs, same, exact, strict=True):
        assert torch.equal(ours, again)
        error, bound = (ours.double() - t).abs().max(), 2 * (p.double() - t).abs().max()
        assert error <= bound + 1e-4 * max(1.0, float(t.abs().max()))


def test_gradients_in_float64_and_scores_of_80() -> None:
    x, w, scale, bias, _ = (t.detach().double().requires_grad_() for t in leaves(3, 7, 5))
    y = make_labels("partial", 3, 7)
    assert torch.autograd.gradcheck(
        lambda x, w, scale, bias: hill_loss(x, w, y, scale=scale, bias=bias), (x, w, scale, bias)
    )
    saturated = torch.tensor([[80.0, -80.0, 80.0, -80.0]], requires_grad=True)
    loss = hill_loss_from_scores(saturated, torch.tensor([[True, True, False, False]]))
    (gradient,) = torch.autograd.grad(loss, saturated)
    assert gradient.isfinite().all()
    # A lost positive counts in full; an absent category at p = 1 is taken for a missing label.
    torch.testing.assert_close(gradient, torch.tensor([[0.0, -0.25, 0.0, 0.0]]))


def test_module_compilation_and_engines_without_it() -> None:
    x, w, *_ = leaves(4, 9, 5)
    y = make_labels("lists", 4, 9)
    value = HillLoss(gamma=1.0)(x, w, y, scale=7.0)
    assert torch.equal(value, hill_loss(x, w, y, scale=7.0, gamma=1.0, backend="torch"))
    dense = make_labels("bool", 4, 9)
    compiled = torch.compile(hill_loss, fullgraph=True, backend="aot_eager")(x, w, dense)
    torch.testing.assert_close(compiled, hill_loss_ref(x, w, dense))
    for backend in ("native", "triton"):
        with pytest.raises(BackendError, match="it has no hill loss"):
            hill_loss(x, w, y, backend=backend)
