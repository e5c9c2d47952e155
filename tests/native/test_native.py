"""The door to the extension: arrays are taken where they lie, and checked in C++."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

from pvp_fast import native
from pvp_fast.errors import BackendError, InputError


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def topk_arguments(**change: Any) -> dict[str, Any]:
    panels = torch.empty(2, 5, 32)
    native.call("pack", w=randn(40, 5), panels=panels)
    good = {
        "x": randn(3, 5, seed=1), "panels": panels, "categories": 40, "threshold": -1.0,
        "thresholds": None, "bias": None, "scale": 1.0, "scores": np.empty((3, 2), np.float32),
        "indices": np.empty((3, 2), np.int64), "counts": np.empty(3, np.int64), "threads": 1,
    }  # fmt: skip
    return {**good, **change}


def loss_arguments(**change: Any) -> dict[str, Any]:
    good = {
        "products": randn(3, 5), "kind": "bce", "settings": {}, "scale": 1.0, "bias": 0.0,
        "threads": 1, "labels": torch.eye(3, 5) > 0,
    }  # fmt: skip
    return {**good, **change}


def frozen(*shape: int) -> np.ndarray:
    array = np.zeros(shape, np.float32)
    array.flags.writeable = False
    return array


def test_an_array_is_the_memory_of_its_tensor():
    t = randn(4, 6)
    view = native.array(t[::2, 1:])
    view[1, 0] = 7.0
    assert t[2, 1] == 7.0
    half = t.bfloat16().requires_grad_()
    bits = native.array(half)
    assert bits.dtype == np.uint16
    assert bits.ctypes.data == half.data_ptr()
    assert torch.equal(torch.from_numpy(bits.copy()).view(torch.bfloat16), half.detach())
    assert native.array(torch.view_as_complex(t.view(4, 3, 2)).conj().imag)[0, 0] == -t[0, 1]


def test_topk_writes_where_it_was_told():
    arguments = topk_arguments()
    assert native.call("topk", **arguments) == -1
    scores = arguments["x"] @ randn(40, 5).T
    best = scores.topk(2)
    np.testing.assert_allclose(arguments["scores"], best.values, rtol=1e-6)
    np.testing.assert_array_equal(arguments["indices"], best.indices)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": [[1.0]]}, "x is a list; give an array"),
        ({"x": None}, "x is a NoneType"),
        ({"x": np.zeros((3, 5))}, r"x, float64 \(3, 5\), must be float32 \(any, any\)"),
        ({"x": np.zeros((3, 5), ">f4")}, "x, other32"),
        ({"x": np.zeros(5, np.float32)}, r"x, float32 \(5,\), must be"),
        ({"x": np.zeros((3, 0), np.float32)}, "at least one column"),
        ({"x": np.zeros((3, 6), np.float32)}, r"panels, float32 \(2, 5, 32\).*\(2, 6, 32\)"),
        ({"x": np.zeros(61, np.uint8)[1:].view("f4").reshape(3, 5)}, "x.* misaligned"),
        ({"panels": np.zeros((2, 5, 32))}, "panels, float64 .* uint16"),
        ({"categories": 65}, r"panels.*must be float32 \(3, 5, 32\)"),
        ({"categories": 0}, "categories is 0"),
        ({"panels": np.zeros((2, 7, 128), np.int8)}, "vectors is None"),
        ({"thresholds": np.zeros(39, np.float32)}, r"thresholds, float32 \(39,\).*\(40,\)"),
        ({"bias": np.zeros(80, np.float32)[::2]}, "bias.*not contiguous"),
        ({"scores": frozen(3, 2)}, "scores.*read-only"),
        ({"scores": np.zeros((3, 0), np.float32)}, "scores.*at least one column"),
        ({"scores": np.zeros((2, 3), np.float32).T}, "scores.*not contiguous"),
        ({"scores": np.zeros((4, 2), np.float32)}, r"scores, float32 \(4, 2\).*\(3, any\)"),
        ({"indices": np.zeros((3, 2), np.int32)}, r"indices, int32 .* int64 \(3, 2\)"),
        ({"counts": np.zeros(4, np.int64)}, "counts"),
        ({"threads": 0}, "threads is 0"),
        ({"threshold": float("nan")}, "threshold is NaN"),
        ({"scale": 1e300}, "finite in float32"),
    ],
)
def test_topk_says_what_it_takes(change: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        native.call("topk", **topk_arguments(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"products": frozen(3, 5)}, "products.*read-only"),
        ({"products": randn(5, 3).T}, "products.*not contiguous"),
        ({"kind": "hinge"}, "kind is 'hinge'; give asl, bce, focal, ranking or siglip"),
        ({"kind": "asl"}, "settings of asl lack gamma_pos"),
        ({"kind": "ranking", "settings": {"margin": 1.0, "gamma": 2.0}}, "takes 1 settings.*gamma"),
        ({"labels": torch.zeros(3, 4, dtype=torch.bool)}, r"labels, bool \(3, 4\).*\(3, 5\)"),
        ({"labels": torch.zeros(3, 5)}, "labels, float32 .* uint8"),
        ({"labels": torch.zeros(5, 3, dtype=torch.int8).T}, "labels.*gaps"),
        ({"labels": None}, "either labels, or offsets and indices"),
        ({"offsets": torch.zeros(4, dtype=torch.int64)}, "either labels"),
        ({"x_inverse_norm": torch.ones(5)}, r"x_inverse_norm.*\(3,\)"),
        ({"w_inverse_norm": torch.ones(3)}, r"w_inverse_norm.*\(5,\)"),
        ({"weight": torch.ones(10)[::2]}, "weight.*not contiguous"),
        ({"threads": -1}, "threads is -1"),
    ],
)
def test_loss_says_what_it_takes(change: dict[str, Any], message: str):
    native.call("loss", **loss_arguments())
    with pytest.raises(InputError, match=message):
        native.call("loss", **loss_arguments(**change))


@pytest.mark.parametrize(
    ("offsets", "indices", "message"),
    [
        ([0, 2, 1, 3], [1, 2, 3], "offsets.*must ascend"),
        ([0, 1, 2, 4], [1, 2, 3], "offsets.*length of indices"),
        ([-1, 1, 2, 3], [1, 2, 3], "offsets"),
        ([0, 2, 2, 3], [2, 2, 3], "indices.*ascend strictly"),
        ([0, 1, 2, 3], [1, 5, 3], "indices.*below 5"),
    ],
)
def test_lists_of_labels_stay_inside(offsets: list[int], indices: list[int], message: str):
    lists = {"labels": None, "kind": "ranking", "settings": {"margin": 1.0}}
    good = {"offsets": torch.tensor([0, 1, 2, 3]), "indices": torch.tensor([1, 2, 3])}
    native.call("loss", **loss_arguments(**lists, **good))
    bad = {"offsets": torch.tensor(offsets), "indices": torch.tensor(indices)}
    with pytest.raises(InputError, match=message):
        native.call("loss", **loss_arguments(**lists, **bad))


@pytest.mark.parametrize(
    ("offsets", "indices", "expected"),
    [
        ([0], [], True),
        ([0, 2, 2, 3], [0, 4, 0], True),
        ([0, 2, 3], [4, 0, 1], False),
        ([0, 2, 3], [1, 1, 1], False),
        ([0, 1], [5], False),
        ([0, 1], [-1], False),
    ],
)
def test_ascending_lists_are_told(offsets: list[int], indices: list[int], expected: bool):
    lists = {"offsets": torch.tensor(offsets), "indices": torch.tensor(indices, dtype=torch.int64)}
    assert native.call("ascends", **lists, categories=5) is expected
    with pytest.raises(InputError, match=r"offsets.*length of indices"):
        native.call("ascends", **{**lists, "offsets": torch.tensor([0, 9])}, categories=5)


@pytest.mark.parametrize("half", [(), ("gradients",), ("t",), ("gradients", "t")])
def test_project_takes_either_precision(half: tuple[str, ...]):
    both = {"gradients": randn(3, 8), "t": randn(3, 8, seed=1)}
    both = {name: v.bfloat16() if name in half else v for name, v in both.items()}
    g, t = (both[name].double() for name in ("gradients", "t"))
    norm = t.norm(dim=1)
    expected = 0.5 * (g - (g * t).sum(1, keepdim=True) / norm[:, None] ** 2 * t)
    inverse_norm = (1 / norm).float()
    native.call("project", **both, inverse_norm=inverse_norm, factor=0.5, threads=1)
    tolerance = 1e-2 if "gradients" in half else 1e-6
    torch.testing.assert_close(both["gradients"].double(), expected, rtol=0, atol=tolerance)
    with pytest.raises(InputError, match="t, "):
        native.call(
            "project", **{**both, "t": randn(2, 8)}, inverse_norm=None, factor=1.0, threads=1
        )


@pytest.mark.parametrize("half", [False, True])
def test_norms_and_whether_they_are_usual(half: bool):
    t = randn(5, 77)
    t[1] = 0.0
    t[3] *= 1e17
    t = t.bfloat16() if half else t
    norms, inverse = torch.empty(2, 5)
    call = functools.partial(native.call, "norms", inverse=inverse, most=1e15, threads=2)
    assert not call(t=t, norms=norms, least=1e-12, known=False)
    torch.testing.assert_close(norms.double(), t.double().norm(dim=1), rtol=1e-6, atol=0)
    assert torch.equal(inverse, 1 / norms.clamp_min(1e-12))
    usual = torch.tensor([1.0, 2.0, 4.0, 0.5, 0.25])
    assert call(t=t, norms=usual, least=0.25, known=True)
    assert torch.equal(inverse, 1 / usual)
    assert not call(t=t, norms=usual, least=0.3, known=True)
    usual[2] = float("nan")
    assert not call(t=t, norms=usual, least=0.25, known=True)
    assert inverse[2].isnan()


def test_the_instruction_set_is_named(monkeypatch: pytest.MonkeyPatch):
    available = native.call("isas")
    assert native.isa() == available[0]
    for wanted in available:
        monkeypatch.setenv("PVP_FAST_ISA", wanted)
        assert native.isa() == wanted
        for dtype in ("float32", "bfloat16", "int8"):
            assert native.isa(dtype) in available[available.index(wanted) :]
    with pytest.raises(InputError, match="'float16'; give float32, bfloat16 or int8"):
        native.isa("float16")
    monkeypatch.setenv("PVP_FAST_ISA", "z80")
    with pytest.raises(BackendError, match=r"'z80' is not available.*portable.*PVP_FAST_ISA"):
        native.isa()


def test_arguments_have_names():
    w, panels = randn(40, 5).numpy(), np.empty((2, 5, 32), np.float32)
    with pytest.raises(TypeError):
        native.extension().pack(w, panels)


def test_topk_takes_its_arguments_by_position_too():
    named, placed = (
        {key: native.array(a) if isinstance(a, torch.Tensor) else a for key, a in given.items()}
        for given in (topk_arguments(), topk_arguments())
    )
    assert native.call_with_arrays("topk", **named) == -1
    assert native.call_with_arrays("topk", *placed.values()) == -1
    for out in ("scores", "indices", "counts"):
        np.testing.assert_array_equal(placed[out], named[out])
