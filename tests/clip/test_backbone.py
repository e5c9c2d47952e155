"""The frozen backbone: open_clip's own numbers, differentiable inputs, untouched global state."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from pvp_fast.clip.backbone import Backbone, Preprocess
from pvp_fast.errors import BackboneError, InputError
from pvp_fast.pictures import OPEN_CLIP

CONTEXT = 24
VIT = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
TEXT = {"context_length": CONTEXT, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
TEXTS = ["a dog", "a cat sits on the mat with another cat", "", "teddy bear"]


def make(kind: type = open_clip.CLIP, precision: str = "float32", **text: Any) -> Backbone:
    state = torch.get_rng_state()
    torch.manual_seed(3)
    model = kind(embed_dim=16, vision_cfg=VIT, text_cfg={**TEXT, **text})
    torch.set_rng_state(state)
    tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT)
    return Backbone(model, tokenizer, Preprocess(32), precision=precision)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make()


def pixels(count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


TOWERS = [
    (open_clip.CLIP, {}),
    (open_clip.CustomTextCLIP, {}),
    (open_clip.CustomTextCLIP, {"pool_type": "eos", "eos_id": 49407}),
    (open_clip.CustomTextCLIP, {"pool_type": "last", "no_causal_mask": True, "proj_bias": True}),
    (open_clip.CustomTextCLIP, {"pool_type": "argmax", "no_causal_mask": True}),
    (open_clip.CLIP, {"pool_type": "last"}),
]


@pytest.mark.parametrize(("kind", "text"), TOWERS)
def test_text_features_are_open_clips(kind: type, text: dict[str, Any]) -> None:
    backbone = make(kind, **text)
    ids = backbone.tokenize(TEXTS)
    expected = backbone.model.encode_text(ids, normalize=True)
    got = backbone.encode_text(TEXTS)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    embedded = backbone.encode_embedded(backbone.embed_tokens(ids), backbone.text_end(ids))
    torch.testing.assert_close(embedded, expected, atol=1e-6, rtol=0)


def test_the_end_of_a_text_is_its_last_real_token() -> None:
    rows = {
        "padded with 0": [[49406, 7, 49407, 0, 0], [49406, 7, 8, 9, 49407]],
        "padded with the end marker 1": [[7, 1, 1, 1, 1], [7, 8, 9, 4, 1]],
    }
    last = make(open_clip.CustomTextCLIP, pool_type="last", no_causal_mask=True)
    assert last.text_end(torch.tensor(rows["padded with 0"])).tolist() == [2, 4]
    assert last.text_end(torch.tensor(rows["padded with the end marker 1"])).tolist() == [1, 4]
    assert last.text_end(torch.tensor([[1, 1, 1], [0, 0, 0]])).tolist() == [0, 0]
    assert make().text_end(torch.tensor(rows["padded with 0"])).tolist() == [2, 4]


def test_batches_do_not_change_the_text_features(backbone: Backbone) -> None:
    whole = backbone.encode_text(TEXTS)
    torch.testing.assert_close(backbone.encode_text(TEXTS, batch_size=1), whole, atol=1e-6, rtol=0)
    assert backbone.encode_text([]).shape == (0, 16)
    features, mask = backbone.encode_text_tokens([])
    assert features.shape == (0, CONTEXT, 16)
    assert mask.shape == (0, CONTEXT)


def test_token_features_hold_the_text_feature_at_the_end(backbone: Backbone) -> None:
    features, mask = backbone.encode_text_tokens(TEXTS, batch_size=3)
    end = mask.sum(dim=1) - 1
    at_end = features[torch.arange(len(TEXTS)), end]
    torch.testing.assert_close(at_end, backbone.encode_text(TEXTS), atol=1e-6, rtol=0)
    assert mask[2].sum() == 2  # an empty text: the start and end markers
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(TEXTS), CONTEXT))


def test_image_features_are_open_clips_and_unit(backbone: Backbone) -> None:
    x = pixels()
    got = backbone.encode_image(x)
    assert torch.equal(got, backbone.model.encode_image(x, normalize=True))
    torch.testing.assert_close(got.norm(dim=-1), torch.ones(2))
    assert backbone.embed_dim == 16
    assert backbone.image_size == (32, 32)
    assert math.isclose(backbone.logit_scale, 1 / 0.07, rel_tol=1e-5)


def test_gradients_reach_inputs_and_no_weight(backbone: Backbone) -> None:
    x = pixels().requires_grad_()
    backbone.encode_image(x)[:, 0].sum().backward()
    assert x.grad is not None
    assert bool(x.grad.abs().sum() > 0)
    ids = backbone.tokenize(TEXTS)
    embedded = backbone.embed_tokens(ids).requires_grad_()
    backbone.encode_embedded(embedded, backbone.text_end(ids))[:, 0].sum().backward()
    assert embedded.grad is not None
    assert bool(embedded.grad.abs().sum() > 0)
    assert all(not p.requires_grad and p.grad is None for p in backbone.parameters())


def test_gradients_are_right_in_float64() -> None:
    backbone = make().double()
    rows = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    base = pixels(1).double()

    def moved(t: torch.Tensor) -> torch.Tensor:
        patch = torch.nn.functional.pad(t, (8, 21, 8, 21))
        return backbone.encode_image(base + patch)

    assert torch.autograd.gradcheck(moved, rows.expand(1, 3, 3, 3).clone().requires_grad_())


@pytest.mark.parametrize("outer", [True, False])
def test_grad_mode_is_the_callers_and_left_alone(backbone: Backbone, outer: bool) -> None:
    x = pixels().requires_grad_()
    with torch.set_grad_enabled(outer):
        image = backbone.encode_image(x)
        text = backbone.encode_text(TEXTS)
        backbone.encode_text_tokens(TEXTS)
        assert torch.is_grad_enabled() is outer
    assert image.requires_grad is outer
    assert not text.requires_grad
    with torch.no_grad():
        # torch's attention takes another kernel without a graph: equal up to rounding.
        torch.testing.assert_close(image.detach(), backbone.encode_image(x), atol=1e-6, rtol=0)


def test_stays_frozen_inside_a_training_parent() -> None:
    parent = torch.nn.Sequential(make()).train()
    assert not any(module.training for module in parent[0].modules())


def test_bfloat16_autocast_returns_float32_close_to_float32(backbone: Backbone) -> None:
    half = make(precision="bfloat16")
    for got, exact in (
        (half.encode_image(pixels()), backbone.encode_image(pixels())),
        (half.encode_text(TEXTS), backbone.encode_text(TEXTS)),
        (half.encode_regions(pixels()), backbone.encode_regions(pixels())),
    ):
        assert got.dtype == torch.float32
        assert bool(((got * exact).sum(dim=-1) > 0.99).all())
    assert not torch.is_autocast_enabled("cpu")
    with pytest.raises(InputError, match="precision='half'"):
        make(precision="half")


def test_activation_checkpointing_keeps_value_and_gradient() -> None:
    plain, saving = make(), make()
    saving.checkpoint_activations()
    grads = []
    for backbone in (plain, saving):
        x = pixels().requires_grad_()
        backbone.encode_image(x)[:, 0].sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


def test_fingerprint_follows_weights_and_architecture_only() -> None:
    first = make()
    assert first.fingerprint == make(precision="bfloat16").fingerprint
    assert len(first.fingerprint) == 64
    assert make(pool_type="last").fingerprint != first.fingerprint
    changed = make()
    with torch.no_grad():
        changed.model.logit_scale.add_(1e-6)
    assert changed.fingerprint != first.fingerprint


def test_bad_inputs_say_what_would_work(backbone: Backbone) -> None:
    with pytest.raises(InputError, match=r"give \(B, 3, 32, 32\)"):
        backbone.encode_image(torch.zeros(1, 3, 31, 32))
    with pytest.raises(InputError, match="list of strings"):
        backbone.encode_text("a dog")
    with pytest.raises(InputError, match="int"):
        backbone.encode_text([3])  # type: ignore[list-item]
    with pytest.raises(InputError, match="batch_size=0"):
        backbone.encode_text(TEXTS, batch_size=0)
    with pytest.raises(InputError, match="embedded has shape"):
        backbone.encode_embedded(torch.zeros(1, 3, 32), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(InputError, match="end has shape"):
        backbone.encode_embedded(torch.zeros(1, CONTEXT, 32), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(BackboneError, match="they must be the same"):
        Backbone(backbone.model, backbone._tokenizer, Preprocess(64))


class _OpaqueText(torch.nn.Module):
    """Stands for a Hugging Face tower: it maps ids to features and shows nothing inside."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.EmbeddingBag(49408, 16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table(ids)


def test_an_opaque_text_tower_encodes_but_takes_no_prompts() -> None:
    model = open_clip.CustomTextCLIP(embed_dim=16, vision_cfg=VIT, text_cfg=TEXT)
    model.text = _OpaqueText()
    tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT)
    backbone = Backbone(model, tokenizer, Preprocess(32))
    assert backbone.encode_text(TEXTS).shape == (4, 16)
    for call in (
        lambda: backbone.encode_text_tokens(TEXTS),
        lambda: backbone.embed_tokens(backbone.tokenize(TEXTS)),
    ):
        with pytest.raises(BackboneError, match="takes token embeddings"):
            call()


# --- loading ----------------------------------------------------------------------------------


def tiny_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    from open_clip import factory

    config = {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny-for-tests", config)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_local_checkpoint_loads_to_the_same_fingerprint(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_architecture(monkeypatch)
    source = make()
    path = tmp_path / f"weights{suffix}"
    state = {k: v.contiguous() for k, v in source.model.state_dict().items()}
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    before = torch.get_rng_state()
    loaded = Backbone.load("tiny-for-tests", str(path))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(loaded.encode_text(TEXTS), source.encode_text(TEXTS))
    assert loaded.fingerprint == source.fingerprint


def test_random_weights_are_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_architecture(monkeypatch)
    first = Backbone.load("tiny-for-tests", "random")
    assert first.fingerprint == Backbone.load("tiny-for-tests", "random").fingerprint


class _Boom:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was executed",))


def test_loading_refuses_with_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_architecture(monkeypatch)
    with pytest.raises(BackboneError, match="ViT-B-32"):
        Backbone.load("ViT-B-23", "openai")
    with pytest.raises(BackboneError, match="openai"):
        Backbone.load("ViT-B-32")
    with pytest.raises(BackboneError, match="neither a tag"):
        Backbone.load("ViT-B-32", "openia")
    with pytest.raises(BackboneError, match=r"no such file.*safetensors"):
        Backbone.load("ViT-B-32", str(tmp_path / "missing.pt"))
    with pytest.raises(BackboneError, match="no such folder"):
        Backbone.load(f"local-dir:{tmp_path / 'nothing'}")
    with pytest.raises(BackboneError, match="one set of weights"):
        Backbone.load("pocket", "openai")
    with pytest.raises(BackboneError, match="device="):
        Backbone.load("tiny-for-tests", "random", device="no-such-device")
    (tmp_path / "weights.npz").write_bytes(b"x")
    with pytest.raises(BackboneError, match="no file of a kind"):
        Backbone.load("tiny-for-tests", str(tmp_path / "weights.npz"))


def test_damaged_foreign_and_hostile_checkpoints_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_architecture(monkeypatch)
    torch.save({"weights": _Boom()}, tmp_path / "hostile.pt")
    torch.save({"other": torch.zeros(2)}, tmp_path / "other.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.bin").write_bytes(b"hello there")
    for name in ("hostile.pt", "other.pt", "cut.safetensors", "empty.pt", "text.bin"):
        with pytest.raises(BackboneError, match="cannot be loaded"):
            Backbone.load("tiny-for-tests", str(tmp_path / name))


# --- preprocessing ----------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.integers(1, 40) | st.tuples(st.integers(1, 40), st.integers(1, 40)),
    mode=st.sampled_from(["RGB", "L", "RGBA", "P", "CMYK", "1", "LA"]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    resize_mode=st.sampled_from(["shortest", "squash", "longest"]),
    fill=st.sampled_from([0, 117]),
    seed=st.integers(0, 1000),
)
def test_preprocess_is_open_clips_bit_for_bit(
    width: int,
    height: int,
    size: int | tuple[int, int],
    mode: str,
    interpolation: str,
    resize_mode: str,
    fill: int,
    seed: int,
) -> None:
    if max(width, height) > 32 * min(width, height):
        width = height  # those are trimmed first, see the next test
    ours = Preprocess(size, interpolation=interpolation, resize_mode=resize_mode, fill=fill)
    plan = ours.plan(width, height)
    assume(plan.trim is None)
    if resize_mode == "longest":  # open_clip rounds to no pixels at all, and fails
        ratio = max(height / ours.sides[0], width / ours.sides[1])
        assume(min(round(width / ratio), round(height / ratio)) > 0)
    elif resize_mode == "shortest" and not isinstance(ours.size, int):
        assume(interpolation == "bicubic")  # open_clip 3.3 forgets the other there
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode)
    # RGB first and then resized, in every mode: a palette cannot be resized smoothly.
    rgb = image.convert("RGB")
    theirs = open_clip.image_transform(
        size,
        fill_color=fill,
        is_train=False,
        mean=ours.mean,
        std=ours.std,
        interpolation=interpolation,
        resize_mode=resize_mode,
    )
    assert torch.equal(ours(image), theirs(rgb))
    assert torch.equal(ours(image, OPEN_CLIP), theirs(rgb))


def test_a_ribbon_of_an_image_stays_small() -> None:
    ribbon = Image.new("RGB", (1, 40001), (200, 10, 10))
    seen = Preprocess(32)(ribbon)
    assert seen.shape == (3, 32, 32)
    assert bool((seen == seen[:, :1, :1]).all())
    assert max(Preprocess((32, 64)).plan(1, 40001).resized) < 3000
    assert Preprocess(32, resize_mode="longest").plan(1, 40001).resized == (1, 32)
    assert Preprocess((20, 20)) == Preprocess(20)


def test_denormalize_undoes_the_normalisation() -> None:
    preprocess = Preprocess(16)
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    back = preprocess.denormalize(preprocess(Image.fromarray(noise)))
    assert np.array_equal(back.mul(255).round().byte().permute(1, 2, 0).numpy(), noise)
    with pytest.raises(InputError, match="pixels has shape"):
        preprocess.denormalize(torch.zeros(4, 4))


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"interpolation": "nearest"},
        {"std": (0.0, 1.0, 1.0)},
        {"resize_mode": "x"},
        {"fill": 256},
        {"size": (8, 0)},
        {"size": (8, 8, 8)},
    ],
)
def test_preprocess_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Preprocess(**{"size": 8, **wrong})
