"""Products of bfloat16 rows with float32 results, by MKL where it has them fast, and widened."""

from __future__ import annotations

import pytest
import torch

from pvp_fast.losses import exact


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (33, 20, 100), (70, 129, 768)], ids=str)
@pytest.mark.parametrize("widened", [False, True])
def test_products_round_once(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], widened: bool
) -> None:
    if widened:
        monkeypatch.setattr(exact, "_gemm", lambda: None)
    m, n, k = shape
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(rows, k, generator=generator).bfloat16() for rows in (m, n))
    before = a.clone(), b.clone()
    out = torch.full((m, n), float("nan"))
    assert exact.product(exact.operand(a), exact.operand(b), out) is out
    size = a.double().abs() @ b.double().T.abs()
    # Of bfloat16's own rounding 4e-3 of the product would be left.
    assert ((out - a.double() @ b.double().T).abs() <= 1e-6 * size).all()
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


def test_products_of_float32_and_of_nothing() -> None:
    a, b = torch.randn(3, 4), torch.randn(5, 4)
    assert torch.equal(exact.product(a, b, torch.empty(3, 5)), a @ b.T)
    assert exact.operand(a) is a
    none = torch.empty(3, 0).bfloat16()
    assert torch.equal(exact.product(none, none[:2], torch.ones(3, 2)), torch.zeros(3, 2))
    assert exact.product(none[:0], none, torch.empty(0, 3)).shape == (0, 3)
