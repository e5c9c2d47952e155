"""Symmetric InfoNCE against its definition: blocks, gradients, compile, and the rest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.infonce_cases import check, gradients, labels, sample
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from truth.pooling import infonce as infonce_by_hand

from pvp_fast.errors import BackendError, InputError
from pvp_fast.losses import clip_loss, infonce, native_pairs
from pvp_fast.losses.clip import clip_loss_ref

SHAPES = [(1, 8), (2, 37), (81, 7), (130, 100), (257, 33)]


def blocks_of(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of so many rows, kept where there is only one."""
    monkeypatch.setattr(infonce, "_SIDE", {"cpu": side})
    monkeypatch.setattr(native_pairs, "_PANEL", 0)
    monkeypatch.setattr(native_pairs, "_ROWS", side)
    monkeypatch.setattr(native_pairs, "_KEPT", side * side)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("kind", ["pairs", "soft", "bool", "uint8", "half"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_within_twice_that_of_plain_pytorch(
    shape: tuple[int, int], kind: str, backend: str
) -> None:
    x, w, y = sample(*shape)
    check(x, w, labels(kind, y), 14.0, backend=backend)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("regime", ["chunked", "recompute"])
@pytest.mark.parametrize("kind", ["pairs", "soft", "bool"])
def test_many_blocks(monkeypatch: pytest.MonkeyPatch, kind: str, regime: str, backend: str) -> None:
    blocks_of(50, monkeypatch)
    for n in (49, 50, 51, 130):
        x, w, y = sample(n, 20)
        check(x, w, labels(kind, y), 14.0, regime=regime, backend=backend)
        check(x, w, labels(kind, y), 80.0, regime=regime, backend=backend)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("scale", [0.0, 1.0, -30.0, 80.0, 1000.0])
def test_scales(scale: float, backend: str) -> None:
    x, w, y = sample(67, 24)
    check(x, w, None, scale, backend=backend)
    check(x, w, y, scale, backend=backend)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("side", [8, 1024])
def test_scores_of_plus_and_minus_eighty(
    monkeypatch: pytest.MonkeyPatch, side: int, backend: str
) -> None:
    blocks_of(side, monkeypatch)
    scores = torch.where(
        torch.rand(19, 19, generator=torch.Generator().manual_seed(1)) < 0.5, -80.0, 80.0
    )
    # Every class a column of the identity: the scores are what was asked for, one column all −80.
    scores[:, 3], scores[4] = -80.0, 80.0
    check(scores, torch.eye(19), None, 1.0, normalize=False, backend=backend)
    check(scores, torch.eye(19), sample(19, 2)[2], 1.0, normalize=False, backend=backend)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_evaluated_in_float32(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, backend: str
) -> None:
    x, w, y = sample(60, 40)
    # Where a CPU multiplies it, products that carry gradients back are of bfloat16.
    rounding = 2**-8 if dtype == torch.bfloat16 and backend == "native" else 0.0
    for side in (1024, 25):
        blocks_of(side, monkeypatch)
        how = {"rounding": rounding, "backend": backend}
        check(x.to(dtype), w.to(dtype), None, 50.0, **how)
        check(x.to(dtype), w.to(dtype), y, 5.0, normalize=False, **how)
        check(x.to(dtype), w, y.to(dtype), 5.0, backend=backend)
    assert clip_loss(x.to(dtype), w.to(dtype)).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = clip_loss(x, w)
    assert torch.equal(inside, clip_loss(x, w))


def test_nothing_and_one_pair() -> None:
    x, w = (torch.ones(0, 5, requires_grad=True) for _ in range(2))
    scale = torch.tensor(3.0, requires_grad=True)
    value = clip_loss(x, w, scale=scale)
    assert value == 0
    dx, dw, dscale = torch.autograd.grad(value, (x, w, scale))
    assert dx.shape == dw.shape == (0, 5)
    assert dscale == 0
    x, w = torch.randn(1, 5).requires_grad_(), torch.randn(1, 5).requires_grad_()
    value = clip_loss(x, w, scale=scale)
    assert value.abs() < 1e-6
    assert all((g.abs() < 1e-6).all() for g in torch.autograd.grad(value, (x, w, scale)))
    flat = torch.ones(7, 0, requires_grad=True)
    value = clip_loss(flat, torch.ones(7, 0))
    torch.testing.assert_close(value, torch.tensor(7.0).log())
    assert torch.autograd.grad(value, flat)[0].shape == (7, 0)


def test_a_row_of_zeros_has_finite_values_as_in_the_definition() -> None:
    x, w, _ = sample(5, 8)
    x[2] = 0
    check(x[[0, 1, 3, 4]], w[[0, 1, 3, 4]], None, 10.0)
    torch.testing.assert_close(clip_loss(x, w, scale=10.0), clip_loss_ref(x, w, scale=10.0))
    (dw,) = torch.autograd.grad(clip_loss(x, w.requires_grad_(), scale=10.0), w)
    (truth,) = torch.autograd.grad(clip_loss_ref(x, w, scale=10.0), w)
    torch.testing.assert_close(dw, truth)


def test_a_bias_cancels_and_its_gradient_is_exactly_zero() -> None:
    x, w, y = sample(33, 12)
    x.requires_grad_()
    bias = torch.tensor([-10.0], requires_grad=True)
    for targets in (None, y):
        value = clip_loss(x, w, targets, scale=9.0, bias=bias)
        assert torch.equal(value, clip_loss(x, w, targets, scale=9.0))
        dx, dbias = torch.autograd.grad(value, (x, bias))
        assert torch.equal(dbias, torch.zeros(1))
        (alone,) = torch.autograd.grad(clip_loss(x, w, targets, scale=9.0), x)
        assert torch.equal(dx, alone)


def test_gradients_only_where_they_are_needed() -> None:
    x, w, _ = sample(21, 8)
    whole = gradients(lambda a, b, s: clip_loss(a, b, scale=s), x, w, 6.0)
    for needed in range(3):
        leaves = [x.clone(), w.clone(), torch.tensor(6.0)]
        leaves[needed].requires_grad_()
        clip_loss(leaves[0], leaves[1], scale=leaves[2]).backward()
        assert torch.equal(leaves[needed].grad, whole[needed + 1])
    assert not torch.equal(whole[3], torch.zeros(()))


def test_inputs_are_left_alone_and_may_be_strided() -> None:
    x, w, y = sample(20, 16)
    copies = [t.clone() for t in (x, w, y)]
    a, b = x[:, ::2].requires_grad_(), w.T.contiguous().T[:, 1::2].requires_grad_()
    soft = y.T
    found = torch.autograd.grad(clip_loss(a, b, soft, scale=5.0), (a, b))
    c, d = (t.detach().contiguous().requires_grad_() for t in (a, b))
    expected = torch.autograd.grad(clip_loss(c, d, soft.contiguous(), scale=5.0), (c, d))
    for ours, other in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, other)
    assert all(torch.equal(t, copy) for t, copy in zip((x, w, y), copies, strict=True))


def test_backward_twice_gives_the_same_bits() -> None:
    x, w, _ = sample(40, 8)
    x.requires_grad_()
    value = clip_loss(x, w, scale=10.0)
    first = torch.autograd.grad(value, x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(value, x)[0], first)
    # And the gradient that comes in is a factor.
    (tenth,) = torch.autograd.grad(clip_loss(x, w, scale=10.0) / 10, x)
    torch.testing.assert_close(tenth * 10, first)


def test_float64_and_learned_targets_are_the_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    x, w = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    scale = torch.tensor(3.0, dtype=torch.float64)
    y = torch.rand(4, 4, generator=generator, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (x, w, y, scale)]

    def run(x: Tensor, w: Tensor, y: Tensor, s: Tensor) -> Tensor:
        return clip_loss(x, w, y, scale=s)

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)
    truth = infonce_by_hand(x.detach().numpy(), w.detach().numpy(), 3.0, y.detach().numpy())
    np.testing.assert_allclose(run(*leaves).item(), truth[0])
    learned = y.detach().float().requires_grad_()
    (dy,) = torch.autograd.grad(clip_loss(x.float(), w.float(), learned, scale=3.0), learned)
    (expected,) = torch.autograd.grad(run(*leaves), y)
    torch.testing.assert_close(dy.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("side", [3, 1024])
def test_operators_keep_their_contract(
    monkeypatch: pytest.MonkeyPatch, side: int, backend: str
) -> None:
    blocks_of(side, monkeypatch)
    x, w, y = sample(7, 5)
    scale, bias = torch.tensor(9.0), torch.tensor(0.0)
    for targets in (None, y):
        leaves = [t.clone().requires_grad_() for t in (x, w, scale, bias)]
        arguments = (*leaves[:2], targets, *leaves[2:], True, backend, False)
        torch.library.opcheck(infonce.loss, arguments)
        _, stats, kept = infonce.loss(x, w, targets, scale, bias, True, backend, False)
        assert kept.numel() == (49 if side > 7 else 0)
        torch.library.opcheck(
            infonce.loss_backward,
            (torch.ones(()), x, w, targets, scale, stats, kept, True, backend, False, True, False),
            test_utils=("test_schema", "test_faketensor"),
        )


def test_compiles_without_a_break_checkpoints_and_has_functional_gradients() -> None:
    x, w, _ = sample(12, 8)
    scale = torch.tensor(4.0)
    w.requires_grad_()

    def loss(x: Tensor, w: Tensor, scale: Tensor) -> Tensor:
        return clip_loss(x, w, scale=scale.exp().clamp(max=100.0))

    expected = torch.autograd.grad(loss(x, w, scale), w)[0]
    for dynamic in (False, True):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        torch.testing.assert_close(torch.autograd.grad(compiled(x, w, scale), w)[0], expected)
    again = checkpoint(loss, x, w, scale, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(again, w)[0], expected)
    # PyTorch's functional transforms do not take torch.library operators with a gradient; float64
    # goes without them.
    wide = [t.detach().double() for t in (x, w, scale)]
    functional = torch.func.grad(loss, argnums=1)(*wide)
    torch.testing.assert_close(functional.float(), expected)


def test_a_second_derivative_says_how_to_have_one() -> None:
    x, w, _ = sample(3, 4)
    w.requires_grad_()
    (first,) = torch.autograd.grad(clip_loss(x, w), w, create_graph=True)
    with pytest.raises(BackendError, match="float64"):
        first.sum().backward()


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_memory_is_a_block_not_the_scores(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    blocks_of(64, monkeypatch)
    x, w, _ = sample(1000, 16)
    x.requires_grad_()
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for t in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(t, Tensor):
                    largest = max(largest, t.untyped_storage().nbytes())
            return out

    with Watch():
        torch.autograd.grad(clip_loss(x, w, scale=10.0, backend=backend), x)
    assert largest == 4 * 1000 * 16


def test_errors_name_the_argument() -> None:
    x = torch.ones(3, 4)
    with pytest.raises(InputError, match="pair"):
        clip_loss(x, torch.ones(4, 4))
    with pytest.raises(InputError, match="pair"):
        clip_loss(x, torch.ones(3, 5))
    with pytest.raises(InputError, match="y must be"):
        clip_loss(x, x, torch.ones(3, 4))
    with pytest.raises(InputError, match="scale"):
        clip_loss(x, x, scale=torch.ones(2))
    with pytest.raises(InputError, match="bias"):
        clip_loss(x, x, bias=torch.ones(3))
    with pytest.raises(InputError, match="floating"):
        clip_loss(x.long(), x.long())
    with pytest.raises(InputError, match="backend"):
        clip_loss(x, x, backend="cuda")
    with pytest.raises(InputError, match="regime"):
        clip_loss(x, x, regime="fast")  # type: ignore[arg-type]
    with pytest.raises(BackendError):
        clip_loss(x, x, backend="triton")
