"""Pseudo visual prompts and text prompts: where they start, and what a gradient can reach."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from torch.nn import functional as F

from pvp_fast.clip.backbone import Backbone, Preprocess
from pvp_fast.errors import InputError
from pvp_fast.modules.prompts import PseudoVisualPrompts, TextPrompts, prompt_ensemble
from pvp_fast.modules.templates import CLIP_TEMPLATES

CONTEXT = 24
NAMES = ["dog", "teddy bear", "fire_hydrant"]
TEXT = {"context_length": CONTEXT, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}


def make(**text: Any) -> Backbone:
    state = torch.get_rng_state()
    torch.manual_seed(3)
    model = open_clip.CLIP(embed_dim=16, vision_cfg=VIT, text_cfg={**TEXT, **text})
    torch.set_rng_state(state)
    tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT)
    return Backbone(model, tokenizer, Preprocess(32))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make()


# --- pseudo visual prompts --------------------------------------------------------------------


def test_visual_prompts_encode_to_unit_rows_of_the_chosen_categories(backbone: Backbone) -> None:
    prompts = PseudoVisualPrompts(5, 32, per_category=2)
    whole = prompts(backbone)
    assert whole.shape == (5, 2, 16)
    torch.testing.assert_close(whole.norm(dim=-1), torch.ones(5, 2))
    some = prompts(backbone, torch.tensor([3, 1]), batch_size=3)
    torch.testing.assert_close(some, whole[[3, 1]], atol=1e-6, rtol=0)
    assert prompts(backbone, []).shape == (0, 2, 16)


def test_only_the_chosen_images_get_a_gradient(backbone: Backbone) -> None:
    prompts = PseudoVisualPrompts(4, (32, 32))
    prompts(backbone, [2, 0])[..., 0].sum().backward()
    moved = prompts.learned.grad.abs().sum(dim=(1, 2, 3, 4)) > 0  # type: ignore[union-attr]
    assert moved.tolist() == [True, False, True, False]
    assert all(p.grad is None for p in backbone.parameters())


@pytest.mark.parametrize(
    ("frequencies", "alike"),
    [
        (0.0, (0.35, 0.6)),  # half of the variance is coarse
        (0.5, (0.8, 1.0)),
        (1.0, (0.7, 0.9)),
    ],
)
def test_noise_has_its_spread_its_seed_and_its_place(
    frequencies: float, alike: tuple[float, float]
) -> None:
    def start(count: int, seed: int) -> torch.Tensor:
        prompts = PseudoVisualPrompts(count, 64, std=0.5, seed=seed, frequencies=frequencies)
        return prompts.pixels.detach()

    before = torch.get_rng_state()
    first = start(8, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.shape == (8, 1, 3, 64, 64)
    assert abs(float(first.square().mean().sqrt()) - 0.5) < 0.05
    torch.testing.assert_close(first, start(9, 1)[:8], atol=1e-6, rtol=0)
    assert not torch.allclose(first, start(8, 2), atol=0.1)
    neighbours = (first[..., :-1] * first[..., 1:]).mean() / first.square().mean()
    assert alike[0] < float(neighbours) < alike[1]


def test_prompts_can_be_looked_at() -> None:
    preprocess = Preprocess(32)
    prompts = PseudoVisualPrompts(2, 32, per_category=3, std=0.0)
    shown = prompts.images(preprocess)
    assert shown.shape == (2, 3, 32, 32, 3)
    assert shown.dtype == torch.uint8
    expected = torch.tensor([round(m * 255) for m in preprocess.mean], dtype=torch.uint8)
    assert bool((shown == expected).all())  # zero in normalised space is the mean colour


@pytest.mark.parametrize(
    ("arguments", "index", "match"),
    [
        ({"n_categories": 0}, None, "n_categories=0"),
        ({"per_category": 0}, None, "per_category=0"),
        ({"std": -1.0}, None, "std=-1.0"),
        ({"frequencies": 1.5}, None, "frequencies=1.5"),
        ({}, [2], "from 0 to 1"),
        ({}, [-1], "from 0 to 1"),
        ({}, torch.tensor([0.5]), "index has dtype"),
        ({}, torch.tensor([True, False]), "index has dtype"),
    ],
)
def test_visual_prompts_refuse(
    backbone: Backbone, arguments: dict[str, Any], index: Any, match: str
) -> None:
    with pytest.raises(InputError, match=match):
        PseudoVisualPrompts(**{"n_categories": 2, "image_size": 32, **arguments})(backbone, index)


# --- text prompts -----------------------------------------------------------------------------


@pytest.mark.parametrize("text", [{}, {"pool_type": "eos", "eos_id": 49407}, {"pool_type": "last"}])
@pytest.mark.parametrize("class_specific", [False, True])
def test_started_from_words_a_prompt_is_the_sentence(
    text: dict[str, Any], class_specific: bool
) -> None:
    backbone = make(**text)
    prompts = TextPrompts(backbone, NAMES, init="a photo of a", class_specific=class_specific)
    assert prompts.n_ctx == 4
    expected = backbone.encode_text([f"a photo of a {n.replace('_', ' ')}." for n in NAMES])
    torch.testing.assert_close(prompts(backbone).detach(), expected, atol=1e-6, rtol=0)


def test_placeholders_stand_where_words_would(backbone: Backbone) -> None:
    prompts = TextPrompts(backbone, NAMES, n_ctx=3)
    ids = backbone.tokenize([f"X X X {n.replace('_', ' ')}." for n in NAMES])
    assert torch.equal(prompts.ids, ids)
    assert torch.equal(prompts.end, backbone.text_end(ids))
    assert prompts.ctx.shape == (3, 32)
    assert list(prompts.state_dict()) == ["ctx"]


@pytest.mark.parametrize("class_specific", [False, True])
def test_a_gradient_reaches_the_context_only(backbone: Backbone, class_specific: bool) -> None:
    prompts = TextPrompts(backbone, NAMES, n_ctx=4, class_specific=class_specific)
    some = prompts(backbone, [2, 1])
    torch.testing.assert_close(some, prompts(backbone)[[2, 1]], atol=1e-6, rtol=0)
    some[:, 0].sum().backward()
    grad = prompts.ctx.grad
    assert grad is not None
    if class_specific:
        assert (grad.abs().sum(dim=(1, 2)) > 0).tolist() == [False, True, True]
    else:
        assert bool((grad.abs().sum(dim=1) > 0).all())
    assert all(p.grad is None for p in backbone.parameters())
    with torch.no_grad():
        assert not prompts(backbone).requires_grad
    assert prompts(backbone, []).shape == (0, 16)


def test_the_context_gradient_is_right_in_float64() -> None:
    backbone = make(layers=1).double()
    prompts = TextPrompts(backbone, ["dog", "cat"], n_ctx=1)

    def features(ctx: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(prompts, {"ctx": ctx}, (backbone,))

    assert prompts.ctx.dtype == torch.float64
    assert torch.autograd.gradcheck(features, prompts.ctx.detach().clone().requires_grad_())


def test_the_context_shrinks_to_what_the_longest_name_leaves(backbone: Backbone) -> None:
    long = "a very long name " * 4
    prompts = TextPrompts(backbone, ["dog", long], n_ctx=16)
    used = int(backbone.text_end(backbone.tokenize([f"{long.strip()}."]))[0]) + 1
    assert prompts.n_ctx == CONTEXT - used
    assert int(prompts.end.max()) == CONTEXT - 1
    with pytest.raises(InputError, match="leaves no room"):
        TextPrompts(backbone, ["dog", long * 3])
    with pytest.raises(InputError, match="fit in the context"):
        TextPrompts(backbone, ["dog", long], init="a photo of a scene with one")


@pytest.mark.parametrize(
    ("names", "options", "match"),
    [
        ([], {}, "names="),
        ("dog", {}, "names='dog'"),
        (["dog", " "], {}, "names holds ' '"),
        (["dog"], {"n_ctx": 0}, "n_ctx=0"),
        (["dog"], {"init": " "}, "has no words"),
    ],
)
def test_text_prompts_refuse(
    backbone: Backbone, names: Any, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        TextPrompts(backbone, names, **options)


def test_seed_decides_the_start_and_moves_no_global_state(backbone: Backbone) -> None:
    before = torch.get_rng_state()
    first, same, other = (TextPrompts(backbone, NAMES, seed=s).ctx for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


# --- the ensemble -----------------------------------------------------------------------------


def test_ensemble_is_the_normalised_mean_over_templates(backbone: Backbone) -> None:
    templates = ("a photo of a {}.", "there is a {} here.")
    got = prompt_ensemble(backbone, NAMES, templates)
    for row, name in zip(got, ["dog", "teddy bear", "fire hydrant"], strict=True):
        texts = [f"a photo of a {name}.", f"there is a {name} here."]
        expected = F.normalize(backbone.encode_text(texts).mean(dim=0), dim=0)
        torch.testing.assert_close(row, expected, atol=1e-6, rtol=0)
    assert not got.requires_grad


def test_templates_have_one_gap_and_are_distinct(backbone: Backbone) -> None:
    assert all(t.count("{}") == 1 for t in CLIP_TEMPLATES)
    assert len(set(CLIP_TEMPLATES)) == len(CLIP_TEMPLATES)
    with pytest.raises(InputError, match="exactly one"):
        prompt_ensemble(backbone, NAMES, ["no gap"])
