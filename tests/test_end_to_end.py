"""From sentences to tags, the whole path: on the pocket model, and on a ViT-B-32 from a file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from pvp_fast import Backbone, Tagger, TrainConfig, Vocabulary, build_corpus, train
from pvp_fast.demo import demo_set
from pvp_fast.sentences import grammar_sentences, read_captions


def few_steps(**sections: dict[str, Any]) -> TrainConfig:
    """The demo's configuration with every stage cut to a handful of steps."""
    config = TrainConfig.demo()
    changes = {}
    for name in ("visual", "text", "adapter"):
        stage = getattr(config, name)
        loop = dataclasses.replace(stage.loop, steps=4, warmup_steps=1, batch_size=32)
        changes[name] = dataclasses.replace(stage, loop=loop, **sections.get(name, {}))
    return dataclasses.replace(config, **changes)


def test_sentences_to_tags_on_the_pocket_model(tmp_path: Path) -> None:
    vocabulary = Vocabulary(["dog", "cat", "car", "pizza"])
    backbone = Backbone.load("pocket")
    corpus = build_corpus(grammar_sentences(vocabulary, 200, seed=0), vocabulary)
    train(backbone, corpus, tmp_path / "run", few_steps(), progress=False)

    tagger = Tagger.load(tmp_path / "run" / "artifact")
    images = sorted(demo_set().glob("*.[jp][pn]g"))[:5]
    results = tagger.tag([*images, tmp_path / "missing.jpg"], top_k=2, threshold=0.0)
    assert [result.error is None for result in results] == [True] * 5 + [False]
    for result in results[:5]:
        assert len(result.tags) == 2
        assert {tag.name for tag in result.tags} <= set(vocabulary.names)
        assert result.tags[0].score >= result.tags[1].score


def test_human_captions_train_the_stages(tmp_path: Path, shared_data: Path) -> None:
    captions = shared_data / "captions" / "captions_val2017.json"
    sentences = [s for _, s in zip(range(400), read_captions(captions), strict=False)]
    corpus = build_corpus(sentences, Vocabulary.builtin("coco80"))
    artifact = train(Backbone.load("pocket"), corpus, tmp_path / "run", few_steps(), progress=False)
    assert len(artifact.head) == 80
    photo = next((shared_data / "photos").glob("*.jpg"))
    (result,) = Tagger.load(tmp_path / "run" / "artifact").tag([photo], top_k=3, threshold=0.0)
    assert len(result.tags) == 3


def test_a_local_vit_b_32_checkpoint_goes_through_train_and_tag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_clip = pytest.importorskip("open_clip")
    # The real architecture, narrower and with fewer layers; random weights.
    config = open_clip.get_model_config("ViT-B-32")
    config["vision_cfg"] |= {"layers": 2, "width": 128}
    config["text_cfg"] |= {"layers": 2, "width": 64, "heads": 2}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", config)
    checkpoint = tmp_path / "vit_b_32.pt"
    generator_state = torch.get_rng_state()
    model = open_clip.create_model("ViT-B-32")
    torch.set_rng_state(generator_state)
    torch.save(model.state_dict(), checkpoint)

    vocabulary = Vocabulary(["dog", "cat", "car"])
    backbone = Backbone.load("ViT-B-32", str(checkpoint))
    assert backbone.embed_dim == 512
    corpus = build_corpus(grammar_sentences(vocabulary, 40, seed=0), vocabulary)
    train(backbone, corpus, tmp_path / "run", few_steps(), progress=False)
    (image,) = sorted(demo_set().glob("*.[jp][pn]g"))[:1]
    (result,) = Tagger.load(tmp_path / "run" / "artifact").tag([image], top_k=3, threshold=0.0)
    assert result.error is None
    assert len(result.tags) == 3
