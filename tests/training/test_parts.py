"""A step's images and prompts by streams: the vectors and gradients of one call, nothing left."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from pvp_fast.clip.backbone import Backbone
from pvp_fast.modules.prompts import PseudoVisualPrompts, TextPrompts
from pvp_fast.threads.budget import set_budget
from pvp_fast.training import parts
from pvp_fast.training.parts import activation_bytes, in_parts
from pvp_fast.training.visual import Translation, image_vectors

NAMES = tuple(f"{size} {kind}" for size in ("small", "big") for kind in ("dog", "cat", "car"))
Vectors = Callable[[Backbone], tuple[Tensor, Tensor]]


@pytest.fixture(params=[2, 3], ids=["two", "three"])
def several(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(parts, "LEAST", 1)
    set_budget(request.param)
    yield
    set_budget(None)


def learned_images(backbone: Backbone) -> tuple[Tensor, Tensor]:
    prompts = PseudoVisualPrompts(7, backbone.image_size, per_category=2)
    prompts.to(backbone.dtype)
    move, some = Translation(4, 1, -2), torch.tensor([0, 2, 3, 7])
    return image_vectors(backbone, prompts, move, some), prompts.learned


def contexts(backbone: Backbone) -> tuple[Tensor, Tensor]:
    prompts = TextPrompts(backbone, NAMES, class_specific=True, init="a photo of a")
    words = parts.in_parts(
        lambda ctx, own: prompts(backbone, own, ctx), prompts.ctx, torch.arange(len(NAMES))
    )
    return words, prompts.ctx


def step(make: Vectors, backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Vectors, and the gradient of something that each of their numbers enters in its own way."""
    with torch.enable_grad():
        vectors, learned = make(backbone)
        weight = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))
        (gradient,) = torch.autograd.grad((vectors * weight.to(vectors.dtype)).sum(), learned)
    return vectors.detach(), gradient


@pytest.mark.parametrize("make", [learned_images, contexts])
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "again"])
def test_vectors_and_gradients_are_those_of_one_call(
    backbone: Backbone,
    several: None,
    monkeypatch: pytest.MonkeyPatch,
    make: Vectors,
    keep: bool,
) -> None:
    if not keep:  # the activations of three items at most
        plain = in_parts
        monkeypatch.setattr(parts, "BUDGET", 3)
        for place in ("visual", "parts"):
            monkeypatch.setattr(
                f"pvp_fast.training.{place}.in_parts", lambda *given: plain(*given, each=1)
            )
    exact = Backbone(
        copy.deepcopy(backbone.model).double(), backbone._tokenizer, backbone.preprocess
    )
    found, truth = step(make, backbone), step(make, exact)
    streams = {t.name for t in threading.enumerate() if t.name.startswith("pvp-fast-stream")}
    assert streams
    set_budget(1)
    monkeypatch.setattr(parts, "BUDGET", 1 << 28)
    alone, exact_alone = step(make, backbone), step(make, exact)
    for one, other in zip(truth, exact_alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    for one, plain_one, true in zip(found, alone, truth, strict=True):
        error, usual = ((value - true).abs().max() for value in (one, plain_one))
        assert error <= 2 * usual + 1e-7, (error, usual)


def test_modes_are_the_callers_and_nothing_is_left_changed(several: None) -> None:
    seen = []

    def encode(x: Tensor) -> Tensor:
        modes = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_num_threads()
        seen.append((threading.current_thread().name, *modes))
        return x @ torch.eye(4)

    x = torch.randn(12, 4, requires_grad=True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
            out = in_parts(encode, x)
        assert out.dtype == torch.bfloat16
        assert {entry[1:] for entry in seen} == {(True, True, 1)}
        seen.clear()
        with torch.no_grad():
            assert not in_parts(encode, x).requires_grad
        assert {entry[1:] for entry in seen} == {(False, False, 1)}
        assert threading.current_thread().name not in {entry[0] for entry in seen}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_few_items_and_those_of_a_stream_stay_where_they_are() -> None:
    names: list[str] = []

    def encode(x: Tensor) -> Tensor:
        names.append(threading.current_thread().name)
        return x

    def streams_within(x: Tensor) -> Tensor:
        return in_parts(encode, x)

    set_budget(2)
    try:
        in_parts(encode, torch.zeros(7, 1))
        assert names == [threading.current_thread().name]
        names.clear()
        in_parts(streams_within, torch.zeros(32, 1))  # would wait for each other
    finally:
        set_budget(None)
    assert len(names) == 2
    assert threading.current_thread().name not in names


def test_an_error_of_a_part_is_raised_and_the_next_step_works(several: None) -> None:
    def encode(x: Tensor, number: Tensor) -> Tensor:
        if 3 in number:
            raise ValueError("the part with the fourth")
        return x.square()

    x, numbers = torch.ones(6, 2, requires_grad=True), torch.arange(6)
    with torch.enable_grad():
        with pytest.raises(ValueError, match="fourth"):
            in_parts(encode, x, numbers)
        out = in_parts(encode, x, numbers + 4)
        (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient, 2 * x.detach())


def test_activations_are_bounded_and_gradients_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    sizes: list[int] = []

    def encode(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return torch.nn.functional.normalize((x @ weight).relu(), dim=-1)

    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    each = activation_bytes(encode, x)
    assert 64 * 4 <= each < 64 * 64 * 4  # of an item, not the weight

    def gradient() -> Tensor:
        sizes.clear()
        with torch.enable_grad():
            (found,) = torch.autograd.grad(in_parts(encode, x, each=each)[:, 0].sum(), x)
        return found

    try:
        set_budget(1)
        whole = gradient()
        assert sizes == [40]
        monkeypatch.setattr(parts, "BUDGET", 7 * each)
        for streams, most, count in ((1, 7, 6), (2, 3, 14)):
            set_budget(streams)
            torch.testing.assert_close(gradient(), whole)
            assert (max(sizes), len(sizes)) == (most, 2 * count)  # once more for the gradient
    finally:
        set_budget(None)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_process_has_streams_of_its_own() -> None:
    code = (
        "import os, torch, warnings; warnings.simplefilter('ignore')\n"
        "from pvp_fast.threads.budget import Streams\n"
        "from pvp_fast.threads.streams import side_by_side\n"
        "work = lambda: side_by_side(lambda i: i * i, range(4), Streams(2, 1))\n"
        "work()\n"
        "child = os.fork()\n"
        "if not child: os._exit(0 if work() == [0, 1, 4, 9] else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0 and work() == [0, 1, 4, 9]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
