"""Symmetric InfoNCE by its Triton kernels, run by tests/kernels/test_kernels.py.

The checks of test_clip_loss.py, through the public function, in both regimes.
"""

import os

import numpy as np
import pytest
import torch
from support.infonce_cases import check, gradients, labels, sample
from truth.pooling import infonce as infonce_by_hand

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from pvp_fast.errors import InputError
from pvp_fast.kernels import infonce as kernels
from pvp_fast.losses import clip_loss, infonce

REGIMES = pytest.mark.parametrize("regime", ["chunked", "recompute"])


def both(*arguments, regime: str, **how) -> None:  # type: ignore[no-untyped-def]
    # Half precision stores are truncated by the interpreter.
    check(*arguments, ulp=2**-7, backend="triton", regime=regime, **how)


@REGIMES
@pytest.mark.parametrize("kind", ["pairs", "soft", "bool"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 81), (67, 33)], ids=str)
def test_shapes(shape: tuple[int, int], kind: str, regime: str) -> None:
    x, w, y = sample(*shape)
    both(x, w, labels(kind, y), 14.0, regime=regime)


@REGIMES
@pytest.mark.parametrize("scale", [0.0, -30.0, 80.0])
def test_scales(scale: float, regime: str) -> None:
    x, w, y = sample(40, 20)
    both(x, w, None, scale, regime=regime)
    both(x, w, y, scale, regime=regime)


@REGIMES
def test_scores_of_plus_and_minus_eighty(regime: str) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.where(torch.rand(19, 19, generator=generator) < 0.5, -80.0, 80.0)
    scores[:, 3], scores[4] = -80.0, 80.0
    both(scores, torch.eye(19), None, 1.0, normalize=False, regime=regime)


@pytest.mark.parametrize("side", [7, 129])
@pytest.mark.parametrize("kind", ["pairs", "soft"])
def test_many_blocks(monkeypatch: pytest.MonkeyPatch, kind: str, side: int) -> None:
    monkeypatch.setattr(infonce, "_SIDE", {"cpu": side})
    x, w, y = sample(131, 6) if side > 7 else sample(17, 12)
    both(x, w, labels(kind, y), 14.0, regime="chunked")
    both(x.half(), w.half(), labels(kind, y), 14.0, regime="chunked")


@REGIMES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, regime: str) -> None:
    x, w, y = sample(60, 40)
    both(x.to(dtype), w.to(dtype), None, 50.0, regime=regime)
    both(3 * x.to(dtype), w.to(dtype), y, 0.1, normalize=False, regime=regime)
    both(x.to(dtype), w, y.to(dtype), 5.0, regime=regime)


@REGIMES
def test_unnormalised_rows_of_any_length_in_half_precision(regime: str) -> None:
    # Beyond float16's range, had they not been scaled.
    x, w, _ = sample(20, 24)
    x, w = (2.0**20 * x).bfloat16(), (2.0**-20 * w).bfloat16()
    truth = infonce_by_hand(x.double().numpy(), w.double().numpy(), 0.5, normalize=False)

    def ours(a, b, s):  # type: ignore[no-untyped-def]
        return clip_loss(a, b, scale=s, normalize=False, backend="triton", regime=regime)

    for found, exact in zip(gradients(ours, x, w, 0.5), truth, strict=True):
        error = np.abs(found.double().numpy() - exact).max()
        assert error <= 2**-7 * np.abs(exact).max()


@REGIMES
def test_strided_inputs_and_single_gradients(regime: str) -> None:
    x, w, y = sample(21, 16)

    def ours(a, b, s):  # type: ignore[no-untyped-def]
        return clip_loss(a, b, y.T, scale=s, backend="triton", regime=regime)

    whole = gradients(lambda a, b, s: ours(a[:, ::2], b[:, 1::2], s), x, w, 6.0)
    rest = gradients(ours, x[:, ::2].contiguous(), w[:, 1::2].contiguous(), 6.0)
    torch.testing.assert_close(whole[0], rest[0])
    torch.testing.assert_close(whole[1][:, ::2], rest[1])
    torch.testing.assert_close(whole[2][:, 1::2], rest[2])
    for needed in range(3):
        leaves = [x.clone(), w.clone(), torch.tensor(6.0)]
        leaves[needed].requires_grad_()
        ours(leaves[0][:, ::2], leaves[1][:, 1::2], leaves[2]).backward()
        assert torch.equal(leaves[needed].grad, whole[needed + 1])


@REGIMES
def test_nothing(regime: str) -> None:
    for shape in ((0, 5), (7, 0)):
        leaf = torch.ones(shape, requires_grad=True)
        value = clip_loss(leaf, torch.ones(shape), backend="triton", regime=regime)
        torch.testing.assert_close(value, torch.tensor(max(1.0, shape[0])).log())
        assert torch.autograd.grad(value, leaf)[0].shape == shape


def test_scores_may_be_rows_of_a_wider_matrix_and_gradients_may_overwrite_them() -> None:
    wide = torch.randn(5, 200, generator=torch.Generator().manual_seed(2))
    scale, s = torch.tensor([3.0]), wide[:, 3:140]
    found = kernels.block_fwd(s, scale, None, None, shift=-2)
    again = kernels.block_fwd(s.contiguous(), scale, None, None, shift=-2)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    aimed = torch.tensor([6 * s[i, i + 2] for i in range(5)])
    torch.testing.assert_close(found.target, aimed)
    torch.testing.assert_close(found.rows[0] + found.rows[1].log(), (3 * s).logsumexp(1))
    torch.testing.assert_close(found.cols[0] + found.cols[1].log(), (3 * s).logsumexp(0))
    expected = (3 * s).softmax(1) + (3 * s).softmax(0)
    expected[range(5), range(2, 7)] -= 2
    before = wide.clone()
    by_scale = (expected * s).sum()
    along = kernels.block_bwd(s, scale, None, None, found.rows, found.cols, s, shift=-2)
    torch.testing.assert_close(along, by_scale)
    torch.testing.assert_close(s, expected)
    assert torch.equal(wide[:, :3], before[:, :3])
    assert torch.equal(wide[:, 140:], before[:, 140:])


def test_offsets_beyond_32_bits() -> None:
    """Row 2 of scores, gradients and labels begins 2³¹ elements after row 0: 4 KiB of each is used.

    The pages between are never touched, so that nothing holds them.
    """
    stride = 2**30
    rows, cols = 3, 20
    dense = torch.randn(rows, cols, generator=torch.Generator().manual_seed(3))
    soft = torch.rand(rows, cols, generator=torch.Generator().manual_seed(4))
    s, y = (
        torch.empty(2 * stride + cols, dtype=torch.float32).as_strided((rows, cols), (stride, 1))
        for _ in range(2)
    )
    s.copy_(dense)
    y.copy_(soft)
    sums = soft.sum(1).reciprocal(), soft.sum(0).reciprocal()
    scale = torch.tensor([2.0])
    far, near = (kernels.Targets(t, *sums) for t in (y, soft))
    found = kernels.block_fwd(s, scale, None, far)
    expected = kernels.block_fwd(dense, scale, None, near)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    kernels.block_bwd(s, scale, None, far, found.rows, found.cols, s)
    kernels.block_bwd(dense, scale, None, near, found.rows, found.cols, dense)
    assert torch.equal(s, dense)


def test_errors_name_the_argument() -> None:
    x, one = torch.ones(3, 4), torch.ones(1)
    norms = kernels.Norms(torch.ones(3), torch.ones(3))
    with pytest.raises(InputError, match="contiguous columns"):
        kernels.block_fwd(x.T, one, None, None)
    with pytest.raises(InputError, match="scale"):
        kernels.block_fwd(x, torch.ones(2), None, None)
    with pytest.raises(InputError, match="norms"):
        kernels.block_fwd(x, one, norms, None)
    with pytest.raises(InputError, match="targets"):
        kernels.block_fwd(x, one, None, kernels.Targets(x.T, torch.ones(3), torch.ones(4)))
    with pytest.raises(InputError, match="row_sums"):
        kernels.block_bwd(x, one, None, None, torch.ones(2, 4), torch.ones(2, 4), x)
    with pytest.raises(InputError, match="N pairs"):
        kernels.tile_fwd(x, torch.ones(4, 4), one, norms, None)
    with pytest.raises(InputError, match="contiguous"):
        kernels.tile_fwd(torch.ones(4, 3).T, x, one, norms, None)
    with pytest.raises(InputError, match="float32"):
        kernels.tile_fwd(x.double(), x, one, norms, None)
    wide = torch.ones(3, 4, dtype=torch.float64)
    with pytest.raises(InputError, match="backend='triton'"):
        clip_loss(wide, wide, backend="triton")
