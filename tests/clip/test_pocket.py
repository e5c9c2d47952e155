"""The pocket model: sprites, scenes, pairs, weights and the trainer."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch.nn import functional as F

from pocket.demo import render_demo
from pocket.pairs import PairSource
from pocket.scenes import SceneRenderer
from pocket.sprites import Style, load_sprites, rasterise, read_styles
from pvp_fast.clip.backbone import Backbone
from pvp_fast.clip.pocket import CompactVocabulary, build_model, load_model, save_weights, tokenizer
from pvp_fast.demo import demo_set
from pvp_fast.errors import BackboneError, InputError
from pvp_fast.evaluation import encode_set, read_dataset
from pvp_fast.metrics import mean_average_precision
from pvp_fast.modules.prompts import prompt_ensemble
from pvp_fast.vocabulary.categories import Vocabulary

DISC = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8">'
    '<circle cx="4" cy="4" r="3" fill="{}"/></svg>'
)
CATEGORIES = Vocabulary.builtin("pocket70").names


@pytest.fixture
def style() -> Style:
    pytest.importorskip("resvg_py")
    colours = ["red", "lime", "blue", "white", "black"]
    icons = {c: (DISC.format(colours[i % 5]),) for i, c in enumerate(CATEGORIES)}
    return Style("discs", "made here", "CC0-1.0", "this test", icons)


def test_a_sprite_is_premultiplied_with_a_clear_rim(style: Style) -> None:
    sprite = rasterise(style.icons["person"][0])
    assert sprite.shape == (4, 64, 64)
    assert sprite[:, 0].abs().max() == 0
    assert torch.allclose(sprite[:, 32, 32], torch.tensor([1.0, 0.0, 0.0, 1.0]), atol=0.02)
    assert (sprite[:3] <= sprite[3:] + 1e-6).all()


def test_oversized_and_broken_sources_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    for svg in ("x" * 300_000, "<svg"):
        with pytest.raises(InputError, match="svg"):
            rasterise(svg)
    with pytest.raises(InputError, match=r"no \*\.json"):
        read_styles(tmp_path)
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(InputError, match="not a style"):
        read_styles(tmp_path)


def test_scenes_repeat_with_the_seed_and_show_their_sprites(style: Style) -> None:
    renderer = SceneRenderer(load_sprites([style], CATEGORIES))
    sets = [[0], [1, 2], [0, 1, 2, 3, 4]]
    state = torch.get_rng_state()

    def render(seed: int) -> torch.Tensor:
        return renderer.render(sets, torch.Generator().manual_seed(seed))

    assert torch.equal(render(3), render(3))
    assert not torch.equal(render(3), render(4))
    assert torch.equal(state, torch.get_rng_state())
    scenes = render(3)
    assert scenes.shape == (3, 3, 64, 64)
    assert 0 <= scenes.min() <= scenes.max() <= 1
    # Without jitter a red disc must be somewhere in the scene.
    plain = renderer.render([[0]], torch.Generator().manual_seed(0), jitter=0.0)[0]
    red = (plain[0] > 0.7) & (plain[1] < 0.4) & (plain[2] < 0.4)
    assert red.float().mean() > 0.02


def test_a_sentence_mentions_exactly_its_scene() -> None:
    vocabulary = Vocabulary.builtin("pocket70")
    captions = ["A dog on a skateboard.", "Nothing to see.", "Two cats and a pizza"]
    source = PairSource(vocabulary, captions, random.Random(0))
    assert [s for s, _ in source.captions] == [captions[0], captions[2]]
    sentences, sets = source.draw(60, easy=0.5)
    assert {len(s) for s in sets} <= {1, 2, 3, 4, 5}
    assert all(vocabulary.label(s) == y for s, y in zip(sentences, sets, strict=True))


def test_weights_come_back_close_to_what_was_saved(tmp_path: Path) -> None:
    ids = torch.tensor([5, 320, 1929, 49406, 49407])
    vocabulary = CompactVocabulary(ids)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(vocabulary.size).eval()
    save_weights(model.state_dict(), vocabulary, tmp_path, {})
    loaded, config = load_model(tmp_path)
    assert config["image_size"] == 64
    tokens = tokenizer()(["a photo of a dog"])
    with torch.no_grad():
        pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        images = [m.encode_image(pixels, normalize=True) for m in (model, loaded)]
        known = model.encode_text(vocabulary.compact(tokens), normalize=True)
        texts = loaded.encode_text(tokens, normalize=True)
    assert ((images[0] * images[1]).sum(1) > 0.999).all()
    assert ((known * texts).sum(1) > 0.999).all()
    path = tmp_path / "pocket.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BackboneError, match="cannot be read"):
        load_model(tmp_path)


def test_the_shipped_model_sees_the_demo_set_above_chance() -> None:
    backbone = Backbone.load("pocket")
    features = encode_set(backbone, read_dataset("folder", demo_set()))
    scores = features.z @ prompt_ensemble(backbone, features.names).T
    chance = (features.labels == 1).float().mean().item()
    assert mean_average_precision(scores, features.labels) > 3 * chance


def test_the_trainer_resumes_where_it_was(style: Style, tmp_path: Path) -> None:
    from pocket.train import PocketConfig, PocketTrainer

    folder = tmp_path / "pictograms"
    folder.mkdir()
    data = {
        "style": "discs",
        "artwork": "here",
        "licence": "CC0-1.0",
        "source": "test",
        "categories": {c: {"disc": svgs[0]} for c, svgs in style.icons.items()},
    }
    (folder / "discs.json").write_text(json.dumps(data))
    config = PocketConfig(max_steps=3, batch_size=8, warmup_steps=1, evaluation_scenes=20)

    def trainer(name: str) -> PocketTrainer:
        (tmp_path / name).mkdir(exist_ok=True)
        return PocketTrainer(folder, [], tmp_path / name, config)

    whole = trainer("whole")
    losses = [whole.advance() for _ in range(3)]
    first = trainer("parts")
    assert not first.resume()
    assert [first.advance() for _ in range(2)] == losses[:2]
    first.save()
    second = trainer("parts")
    assert second.resume()
    assert second.advance() == losses[2]
    metrics = second.export(tmp_path / "weights")
    assert set(metrics) == {"seen"}
    load_model(tmp_path / "weights")
    with pytest.raises(ValueError, match="other settings"):
        PocketTrainer(folder, [], tmp_path / "parts", dataclasses.replace(config, lr=1.0)).resume()


def test_share_alike_art_is_not_rendered_for_shipping(style: Style, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="share-alike"):
        render_demo(dataclasses.replace(style, licence="CC-BY-SA-4.0"), tmp_path, count=1)
    render_demo(style, tmp_path, count=3)
    assert len(read_dataset("folder", tmp_path).paths) == 3
    assert "made here" in (tmp_path / "CREDITS.md").read_text()


def test_the_vit_begins_where_the_pocket_model_is(tmp_path: Path) -> None:
    from pocket.vit import build, load, wrapped

    pocket, model = Backbone.load("pocket"), build()
    begun = wrapped(model)
    paths = read_dataset("folder", demo_set()).paths[:20]
    pixels = torch.stack([pocket.preprocess(Image.open(path)) for path in paths])
    with torch.no_grad():
        near = begun.encode_image(pixels) @ pocket.encode_image(pixels).T
        regions = begun.encode_regions(pixels).view(len(pixels), 2, 2, 2, 2, -1).mean((2, 4))
        theirs = pocket.encode_regions(pixels)
    assert near.diagonal().mean() > 0.8  # one query for all images, not the mean of each
    assert (near.argmax(1) == torch.arange(len(near))).sum() >= 18
    quarters = F.normalize(regions.flatten(1, 2), dim=-1)
    assert (quarters * theirs).sum(-1).mean() > 0.85

    tensors = {name: value.contiguous() for name, value in model.visual.state_dict().items()}
    (tmp_path / "vit.safetensors").write_bytes(save(tensors))
    again = load(tmp_path / "vit.safetensors")
    assert again.fingerprint == begun.fingerprint
