"""Stages with some of the categories in a step: what a step meets, resumed runs, and their size."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from support.artifacts import every_tensor
from support.training import small
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pvp_fast.artifact import Artifact
from pvp_fast.clip.backbone import Backbone
from pvp_fast.errors import ArtifactError, InputError
from pvp_fast.sentences import Corpus, build_corpus
from pvp_fast.threads import budget
from pvp_fast.training import TrainConfig, parts, train
from pvp_fast.training import features as features_module
from pvp_fast.training.features import Sentences, label_lists
from pvp_fast.training.gap import Perturbation
from pvp_fast.training.sampled import (
    SampledTextPrompts,
    SampledVisualPrompts,
    _Step,
    step_width,
)
from pvp_fast.training.thresholds import best_f1_thresholds, calibrate_many, fit_platt
from pvp_fast.vocabulary.categories import Vocabulary


def some_a_step(count: int) -> TrainConfig:
    config = small()
    sections = {
        name: dataclasses.replace(getattr(config, name), categories_per_step=count)
        for name in ("visual", "text")
    }
    return dataclasses.replace(config, **sections)


def test_all_of_few_and_some_of_many() -> None:
    assert step_width(70, 0) == 70
    assert step_width(70, 24) == 24
    assert step_width(70, 100) == 70
    assert step_width(10_000, 0) == 128


def test_a_step_encodes_what_its_sentences_mention(backbone: Backbone, corpus: Corpus) -> None:
    x = backbone.encode_text(corpus.sentences).half().numpy()
    lists, count = label_lists(corpus.labels), len(corpus.vocabulary)
    data = Sentences(x, lists, count, gap=Perturbation(0.5, 0.5))
    bank = torch.randn(count, x.shape[1])
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        batch = torch.randint(len(data), (2,), generator=generator)
        step = _Step(data, torch.arange(count), 2, batch, 2, generator)
        assert len(step.fresh) == 2
        assert torch.equal(step.chosen[step.places], step.fresh)
        named = set(step.y.any(0).nonzero()[:, 0].tolist())
        assert len(named & set(step.places.tolist())) == min(2, len(named))
        fresh = torch.zeros(2, x.shape[1])
        vectors = step.vectors(bank, fresh)
        assert not vectors[step.places].any()
        assert not bank[step.fresh].any()
        assert torch.equal(vectors, bank[step.chosen])


@pytest.mark.parametrize(
    ("stage", "call", "streams"),
    [(SampledVisualPrompts, 4, 2), (SampledTextPrompts, 4, 1), (SampledTextPrompts, 8, 2)],
)
def test_a_run_cut_and_resumed_gives_the_same_bits(
    backbone: Backbone,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: Any,
    call: int,
    streams: int,
) -> None:
    monkeypatch.setattr(parts, "LEAST", 1)
    monkeypatch.setattr(budget, "_said", streams)
    whole = train(backbone, corpus, tmp_path / "whole", some_a_step(2), progress=False)
    calls, honest = [], stage.losses

    def losses(self: object, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        calls.append(len(batch))
        if len(calls) == call:  # behind a step that no checkpoint has
            raise KeyboardInterrupt
        result: dict[str, Tensor] = honest(self, batch, generator)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(stage, "losses", losses)
        with pytest.raises(KeyboardInterrupt):
            train(backbone, corpus, tmp_path / "cut", some_a_step(2), progress=False)
    resumed = train(backbone, corpus, tmp_path / "cut", some_a_step(2), progress=False)
    found, expected = every_tensor(resumed), every_tensor(whole)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert resumed.training.pixels.shape == (4, 1, 3, 32, 32)


class Shapes(TorchDispatchMode):
    """The shapes of all tensors that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, Tensor):
                self.seen.add(tuple(value.shape))
        return out


def test_nothing_has_the_size_of_all_labels_or_all_images(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_module, "WHOLE", 1 << 10)
    monkeypatch.setattr("pvp_fast.training.pipeline.WHOLE", 1 << 10)
    monkeypatch.setattr(features_module, "JUDGED_CATEGORIES", 50)
    names = [f"kind{i} lamp" for i in range(530)]
    corpus = build_corpus(
        [f"a {a} beside a {b}" for a, b in zip(names, names[3:] + names[:3], strict=True)],
        Vocabulary(names),
        templates=["a {}", "the {}"],
    )
    with Shapes() as shapes:
        artifact = train(backbone, corpus, tmp_path, small(), progress=False)
    seen, judging = artifact.metrics["sentences"], artifact.metrics["held_out"]
    count = len(names)
    assert all(not {count, size} <= set(shape) for shape in shapes.seen for size in (seen, judging))
    assert not [shape for shape in shapes.seen if shape.count(count) > 1]
    assert not [shape for shape in shapes.seen if count in shape and shape[-2:] == (32, 32)]
    assert torch.isfinite(artifact.head.platt).all()
    assert len(set(artifact.head.thresholds.tolist())) > 1
    loaded = Artifact.load(tmp_path / "artifact")
    assert loaded.version == artifact.version
    with pytest.raises(ArtifactError, match="no training state"):
        _ = loaded.training
    config = dataclasses.replace(small(), text=dataclasses.replace(small().text, co_learn=True))
    with pytest.raises(InputError, match="530 categories"):
        train(backbone, corpus, tmp_path / "b", config, progress=False)


def test_calibration_in_parts_is_that_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(600, 300, generator=generator) < torch.linspace(0.02, 0.4, 300)
    scores = 0.1 * torch.randn(600, 300, generator=generator) + 0.2 * labels
    platt = fit_platt(scores, labels)
    found, thresholds = calibrate_many(
        lambda index: (scores[:, index], labels[:, index]), (scores, labels), 300
    )
    chance, expected = ((scores * line[:, 0] + line[:, 1]).sigmoid() for line in (found, platt))
    torch.testing.assert_close(chance, expected, atol=0.01, rtol=0)
    torch.testing.assert_close(
        thresholds, best_f1_thresholds(scores, labels, platt), atol=0.02, rtol=0
    )
