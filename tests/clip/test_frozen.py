"""Frozen layers with a gradient to their input: torch's own are the truth."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pvp_fast.clip import frozen

HEADS, WIDTH, LENGTH, COUNT = 3, 24, 7, 4


def chance(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def attention(bias: bool = True, **options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    made = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, bias=bias, **options)
    return made.eval().requires_grad_(False)


def ours(module: nn.Module) -> Any:
    changed = nn.Sequential(copy.deepcopy(module))
    frozen.for_inputs(changed)
    return changed[0]


def masks() -> dict[str, Tensor | None]:
    causal = torch.full((LENGTH, LENGTH), float("-inf")).triu(1)
    per_head = torch.zeros(COUNT * HEADS, LENGTH, LENGTH)
    per_head[:, :, 4:] = -2 * chance(COUNT * HEADS, LENGTH, 3).abs()
    return {"none": None, "causal": causal, "per head": per_head}


def result(layer: Any, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The output, and the gradient of the input under random weights of the output."""
    x = x.clone().requires_grad_()
    out = layer(x, x, x, need_weights=False, attn_mask=mask)[0]
    (gradient,) = torch.autograd.grad((out * chance(*out.shape, seed=9).to(out)).sum(), x)
    return out.detach(), gradient


@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("bias", [True, False])
def test_attention_and_its_gradient_are_torchs(mask: str, bias: bool) -> None:
    layer, x = attention(bias), chance(COUNT, LENGTH, WIDTH)
    for got, expected in zip(
        result(ours(layer), x, masks()[mask]), result(layer, x, masks()[mask]), strict=True
    ):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("short", [0, 256])
@pytest.mark.parametrize("mask", masks())
def test_half_precision_is_no_worse_than_torchs(
    monkeypatch: pytest.MonkeyPatch, mask: str, short: int
) -> None:
    monkeypatch.setattr(frozen, "_SHORT", short)
    layer, x = attention().bfloat16(), chance(COUNT, LENGTH, WIDTH).bfloat16()
    added = masks()[mask]
    half = None if added is None else added.bfloat16()
    truth = result(
        copy.deepcopy(layer).double(), x.double(), None if half is None else half.double()
    )
    own, plain = result(ours(layer), x, half), result(layer, x, half)
    for got, other, right in zip(own, plain, truth, strict=True):
        assert got.dtype == torch.bfloat16
        error = (got.double() - right).abs().max()
        assert error <= 2 * (other.double() - right).abs().max() + 1e-4


class Calls(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_no_token_gets_a_copy_of_the_weights() -> None:
    x = chance(COUNT, LENGTH, WIDTH)

    def products(layer: Any) -> list[str]:
        with Calls() as calls:
            result(layer, x, None)
        return [name for name in calls.names if name.startswith(("bmm", "baddbmm"))]

    assert products(attention())  # torch's: what this is for; if it fails, the class can go
    assert not products(ours(attention()))


def test_without_a_gradient_nothing_changes() -> None:
    layer, x = attention(), chance(COUNT, LENGTH, WIDTH)
    with torch.no_grad():
        for added in masks().values():
            expected = layer(x, x, x, need_weights=False, attn_mask=added)[0]
            got = ours(layer)(x, x, x, need_weights=False, attn_mask=added)[0]
            assert torch.equal(got, expected)


def test_what_it_does_not_know_is_left_to_torch() -> None:
    x, other = chance(COUNT, LENGTH, WIDTH), chance(COUNT, LENGTH + 2, WIDTH, seed=1)
    layer = attention()
    look = torch.ones(LENGTH, LENGTH).triu(1).bool()  # True: not to be looked at
    padding = torch.zeros(COUNT, LENGTH, dtype=torch.bool)
    padding[:, -2:] = True
    cases: list[tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]] = [
        ((x, x, x), {"need_weights": True}),
        ((x, x, x), {"need_weights": False, "attn_mask": look}),
        ((x, x, x), {"need_weights": False, "key_padding_mask": padding}),
        ((x, other, other), {"need_weights": False}),
    ]
    for inputs, options in cases:
        given = [t.clone().requires_grad_() for t in inputs[:1]] + list(inputs[1:])
        torch.testing.assert_close(ours(layer)(*given, **options), layer(*given, **options))
    for unlike in (attention(kdim=8, vdim=8), attention(add_bias_kv=True)):
        assert type(ours(unlike)) is nn.MultiheadAttention
    assert type(ours(layer)).__name__ == type(layer).__name__  # a fingerprint reads the name


@pytest.mark.parametrize("size", [(12, 16), (13, 19)])
@pytest.mark.parametrize("bias", [True, False])
def test_patches_are_the_convolution(size: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, 4, 4, bias=bias).double().requires_grad_(False)
    x = chance(2, 3, *size).double().requires_grad_()
    got, expected = ours(layer)(x), layer(x)
    torch.testing.assert_close(got, expected)
    weight = chance(*got.shape, seed=3).double()
    torch.testing.assert_close(
        torch.autograd.grad((got * weight).sum(), x),
        torch.autograd.grad((expected * weight).sum(), x),
    )
    with torch.no_grad():
        assert torch.equal(ours(layer)(x), layer(x))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "stride": 2},
        {"kernel_size": 1},
        {"kernel_size": 4, "stride": 4, "padding": 1},
        {"kernel_size": 4, "stride": 4, "padding": "valid", "groups": 3},
        {"kernel_size": 4, "stride": 4, "dilation": 2},
    ],
)
def test_other_convolutions_stay(options: dict[str, Any]) -> None:
    assert type(ours(nn.Conv2d(3, 6, **options))) is nn.Conv2d
