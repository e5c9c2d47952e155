"""The local branch: from token features to regions, in training, artifact, ladder and tagger."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from support.artifacts import every_tensor, make
from support.training import TEXT, VIT, settings
from torch import Tensor

from pvp_fast.artifact import Artifact
from pvp_fast.clip.backbone import Backbone, Preprocess
from pvp_fast.errors import BackboneError, InputError
from pvp_fast.evaluation import EvalSet, Features, encode_set, ladder
from pvp_fast.loaders import ImageStream
from pvp_fast.modules.scoring import LOCAL_TILE, local_scores
from pvp_fast.sentences import Corpus
from pvp_fast.tagging.tagger import Tagger
from pvp_fast.training import LocalPromptConfig, LoopConfig, TrainConfig, add_category, train
from pvp_fast.training.features import TokenSentences, label_lists
from pvp_fast.training.local import LocalPromptStage, choose_weight
from pvp_fast.training.loop import run_stage


@pytest.fixture(scope="module")
def trained(
    backbone: Backbone, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Artifact, Path]:
    folder = tmp_path_factory.mktemp("local")
    return train(backbone, corpus, folder, settings(weight=0.4), progress=False), folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(5)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return paths


def tokens_of(backbone: Backbone, corpus: Corpus) -> TokenSentences:
    tokens, mask = backbone.encode_text_tokens(corpus.sentences)
    return TokenSentences(
        tokens.half().numpy(), mask.numpy(), label_lists(corpus.labels), len(corpus.vocabulary)
    )


def stage(backbone: Backbone, corpus: Corpus, steps: int, **loop: Any) -> LocalPromptStage:
    options: dict[str, Any] = {"steps": steps, "lr": 0.02, "batch_size": 32, "warmup_steps": 1}
    config = LocalPromptConfig(LoopConfig(**{**options, **loop}))
    data = tokens_of(backbone, corpus)
    return LocalPromptStage(backbone, corpus.vocabulary.names, data, data, config)


def losses(folder: Path) -> list[float]:
    with open(folder / "log.csv", newline="") as stream:
        return [float(row["loss"]) for row in csv.DictReader(stream)]


def test_the_stage_learns(tmp_path: Path, backbone: Backbone, corpus: Corpus) -> None:
    learner = stage(backbone, corpus, 30)
    before = learner.evaluate()
    after = run_stage(learner, learner.config.loop, tmp_path, progress=False)
    course = losses(tmp_path)
    assert course[-1] < course[0]
    chance = 100 * corpus.multi_hot().float().mean().item()
    assert after > max(before, chance + 5)


def test_resumed_in_the_middle_equals_uninterrupted(
    tmp_path: Path, backbone: Backbone, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = stage(backbone, corpus, 6, checkpoint_every=2)
    run_stage(whole, whole.config.loop, tmp_path / "whole", progress=False)
    cut = stage(backbone, corpus, 6, checkpoint_every=2)
    calls, honest = [], cut.losses

    def stop(batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        calls.append(batch)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return honest(batch, generator)

    monkeypatch.setattr(cut, "losses", stop)
    with pytest.raises(KeyboardInterrupt):
        run_stage(cut, cut.config.loop, tmp_path / "cut", progress=False)
    resumed = stage(backbone, corpus, 6, checkpoint_every=2)
    run_stage(resumed, resumed.config.loop, tmp_path / "cut", progress=False)
    assert torch.equal(resumed.vectors(), whole.vectors())


@pytest.mark.parametrize("loss", ["ranking", "asl", "bce"])
def test_padding_has_no_influence(backbone: Backbone, corpus: Corpus, loss: str) -> None:
    learner = stage(backbone, corpus, 1)
    learner.config = dataclasses.replace(learner.config, loss=loss)
    data = learner.train
    noisy = data.tokens.copy()
    noisy[~data.mask] = 7.0
    other = stage(backbone, corpus, 1)
    other.config = learner.config
    other.train = other.held_out = dataclasses.replace(data, tokens=noisy)
    rows, generator = torch.arange(12), torch.Generator()
    found = [s.losses(rows, generator)[loss] for s in (learner, other)]
    assert torch.equal(*found)
    assert torch.equal(learner.held_out_scores(), other.held_out_scores())


def test_scores_keep_their_bits_when_categories_are_added() -> None:
    generator = torch.Generator().manual_seed(0)
    regions = torch.randn(3, 5, 16, generator=generator)
    vectors = torch.randn(2 * LOCAL_TILE + 3, 16, generator=generator)
    full = local_scores(regions, vectors, 50.0)
    assert full.shape == (3, len(vectors))
    for count in (1, 7, LOCAL_TILE, LOCAL_TILE + 1):
        assert torch.equal(local_scores(regions, vectors[:count], 50.0), full[:, :count])
    assert local_scores(regions, vectors[:0], 50.0).shape == (3, 0)


def test_the_weight_is_the_smallest_of_the_best() -> None:
    labels = torch.tensor([[1, 0], [0, 1]], dtype=torch.bool)
    good, bad = labels.float(), (~labels).float()
    assert choose_weight(good, bad, labels) == 0
    assert choose_weight(good, good, labels) == 0
    assert choose_weight(bad, good, labels) > 0.5


def test_the_artifact_holds_the_branch_and_round_trips(
    trained: tuple[Artifact, Path], tmp_path: Path
) -> None:
    artifact, folder = trained
    assert artifact.has_local
    assert artifact.head.local.vectors.shape == (4, 16)
    assert artifact.metrics["held_out_map"]["local"] > 0
    assert (folder / "local" / "log.csv").is_file()
    artifact.save(tmp_path)
    loaded = Artifact.load(tmp_path)
    assert loaded.version == artifact.version
    z = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded.head.local_cosines(z), artifact.head.local_cosines(z))
    assert TrainConfig.from_dict(loaded.config) == settings(weight=0.4)


def test_artifacts_without_it_still_load_and_say_so(tmp_path: Path) -> None:
    make().save(tmp_path)
    old = Artifact.load(tmp_path)
    assert not old.has_local
    with pytest.raises(InputError, match="no local branch"):
        old.head.local_cosines(torch.ones(1, 2, 8))


def test_the_ladder_ends_with_what_the_tagger_does(
    trained: tuple[Artifact, Path], backbone: Backbone, images: list[Path]
) -> None:
    artifact, _ = trained
    labels = torch.full((5, 4), -1, dtype=torch.int8)
    labels[torch.arange(5), torch.arange(5) % 4] = 1
    dataset = EvalSet(tuple(images), artifact.vocabulary.names, labels)
    features = encode_set(backbone, dataset, artifacts=[artifact], batch_size=2)
    result = ladder([artifact], features)
    assert [rung.name for rung in result.rungs][-2:] == ["+ dual adapter", "+ local"]
    assert "+ local" in result.table()

    with torch.no_grad(), ImageStream(images, backbone.preprocess) as stream:
        (batch,) = stream
        pixels = batch.pixels
        regions, z = artifact.head.regions(backbone, pixels), backbone.encode_image(pixels)
        assert regions is not None
        near = artifact.head.local_cosines(regions)
        torch.testing.assert_close(features.local[artifact.version], near)
        expected = artifact.head.probabilities(artifact.head.cosines(z, regions))
    tagger = Tagger(artifact, backbone)
    everything = tagger.tag(images, top_k=None, threshold=0.0)
    for result_, row in zip(everything, expected, strict=True):
        assert len(result_.tags) == 4
        for tag in result_.tags:
            assert tag.score == pytest.approx(row[tag.index].item(), abs=1e-4)
    best = tagger.tag(images, top_k=2, threshold=0.0)
    assert [r.tags for r in best] == [r.tags[:2] for r in everything]
    ranked = sorted(tag.score for result_ in everything for tag in result_.tags)
    least = (ranked[9] + ranked[10]) / 2
    some = tagger.tag(images, top_k=None, threshold=least)
    kept = [tuple(t for t in r.tags if t.score >= least) for r in everything]
    assert [r.tags for r in some] == kept
    assert sum(map(len, kept)) == 10

    bare = Features(features.z, features.labels, features.names, ())
    with pytest.raises(InputError, match="encode_set"):
        ladder([artifact], bare)
    with pytest.raises(InputError, match="regions"):
        tagger.tag_features(z)
    with pytest.raises(InputError, match="regions"):
        tagger.tag_features(z, regions[:2])


@pytest.mark.parametrize("specific", [True, False])
def test_an_added_category_keeps_every_other_bit(
    backbone: Backbone, corpus: Corpus, images: list[Path], tmp_path: Path, specific: bool
) -> None:
    config = settings(weight=0.4, class_specific=specific)
    artifact = train(backbone, corpus, tmp_path, config, progress=False)
    grown = add_category(backbone, artifact, "castle", ["fortress"], steps=2)
    changed, kept = every_tensor(grown), every_tensor(artifact)
    assert set(changed) == set(kept)
    for name, old in kept.items():
        new = changed[name]
        assert torch.equal(new if new.shape == old.shape else new[: len(old)], old), name
    assert grown.head.local.vectors.shape == (5, 16)
    assert grown.head.local.weight[4] == pytest.approx(0.4)
    learned = float(grown.head.local.vectors[4].norm())
    assert learned == pytest.approx(1.0, abs=1e-4)
    few = Tagger(artifact, backbone).tag(images, top_k=None, threshold=0.0)
    more = Tagger(grown, backbone).tag(images, top_k=None, threshold=0.0)
    for a, b in zip(few, more, strict=True):
        assert a.tags == tuple(t for t in b.tags if t.name != "castle")
        assert len(b.tags) == 5


def test_patches_of_a_backbone_without_regions_are_refused_at_once(
    trained: tuple[Artifact, Path], corpus: Corpus, tmp_path: Path
) -> None:
    state = torch.get_rng_state()
    vision = {**VIT, "attentional_pool": "parallel"}
    model = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=TEXT)
    torch.set_rng_state(state)
    blind = Backbone(model, open_clip.SimpleTokenizer(context_length=40), Preprocess(32))
    config = settings()
    patches = dataclasses.replace(config.local_prompts, tile=0.0)
    config = dataclasses.replace(config, local_prompts=patches)
    with pytest.raises(BackboneError, match=r"local=True.*attentional"):
        train(blind, corpus, tmp_path / "run", config, progress=False)
    assert not (tmp_path / "run").exists()
    artifact = dataclasses.replace(
        trained[0], backbone={**trained[0].backbone, "fingerprint": blind.fingerprint}
    )
    assert Tagger(artifact, blind).artifact is artifact  # tiles are images of their own
    branch = artifact.head.local
    assert branch is not None
    head = dataclasses.replace(artifact.head, local=dataclasses.replace(branch, tile=0.0))
    with pytest.raises(BackboneError, match="local branch"):
        Tagger(dataclasses.replace(artifact, head=head), blind)


def test_settings_are_checked() -> None:
    with pytest.raises(InputError, match="temperature"):
        LocalPromptConfig(temperature=0)
    with pytest.raises(InputError, match="share"):
        LocalPromptConfig(weight=1.2)
    with pytest.raises(InputError, match="rankin"):
        LocalPromptConfig(loss="rankin")
