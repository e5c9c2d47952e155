"""Whole runs: interrupted anywhere and resumed, and with prompts and words learned together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from support.artifacts import every_tensor
from support.training import settings, small
from torch import Tensor

from pvp_fast.artifact import Artifact
from pvp_fast.clip.backbone import Backbone
from pvp_fast.errors import InputError
from pvp_fast.sentences import Corpus
from pvp_fast.training import GapConfig, TrainConfig, train
from pvp_fast.training.adapter import AdapterStage
from pvp_fast.training.local import LocalPromptStage
from pvp_fast.training.text import TextPromptStage
from pvp_fast.training.visual import VisualPromptStage


def together() -> TrainConfig:
    """Everything that draws: pictures that move with the words, sentences that are perturbed."""
    config = settings()
    text = dataclasses.replace(config.text, co_learn=True)
    return dataclasses.replace(config, text=text, gap=GapConfig(0.5, 0.5))


@pytest.fixture(scope="module")
def whole(backbone: Backbone, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return train(backbone, corpus, tmp_path_factory.mktemp("whole"), together(), progress=False)


@pytest.mark.parametrize(
    ("stage", "call"),
    [
        (VisualPromptStage, 3),
        (TextPromptStage, 4),  # in the prompts without transfer
        (TextPromptStage, 7),  # in the transfer, where the pictures move too
        (AdapterStage, 3),
        (LocalPromptStage, 4),
    ],
)
def test_a_run_cut_in_a_stage_and_resumed_gives_the_same_bits(
    whole: Artifact,
    backbone: Backbone,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: type,
    call: int,
) -> None:
    calls, honest = [], stage.losses  # type: ignore[attr-defined]

    def losses(self: object, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        calls.append(len(batch))
        if len(calls) == call:
            raise KeyboardInterrupt
        result: dict[str, Tensor] = honest(self, batch, generator)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(stage, "losses", losses)
        with pytest.raises(KeyboardInterrupt):
            train(backbone, corpus, tmp_path, together(), progress=False)
    resumed = train(backbone, corpus, tmp_path, together(), progress=False)
    found, expected = every_tensor(resumed), every_tensor(whole)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert resumed.metrics == whole.metrics
    assert resumed.version == whole.version


def test_co_learning_moves_the_pictures_with_the_words(
    whole: Artifact, backbone: Backbone, corpus: Corpus, tmp_path: Path
) -> None:
    config = dataclasses.replace(settings(), gap=together().gap)
    apart = train(backbone, corpus, tmp_path, config, progress=False)
    assert torch.equal(apart.training.text_only, whole.training.text_only)
    assert not torch.equal(apart.training.pixels, whole.training.pixels)
    assert not torch.equal(apart.head.adapter.text, whole.head.adapter.text)
    # The stored vectors are those of the stored pictures.
    with torch.no_grad():
        seen = backbone.encode_image(whole.training.pixels.flatten(0, 1))
    torch.testing.assert_close(whole.head.adapter.visual.flatten(0, 1), seen)


def test_the_local_branch_leaves_the_rest_as_it_was(
    backbone: Backbone, corpus: Corpus, tmp_path: Path
) -> None:
    without = train(backbone, corpus, tmp_path / "a", small(), progress=False)
    beside = train(backbone, corpus, tmp_path / "b", settings(), progress=False)
    both = every_tensor(beside)
    for name, value in every_tensor(without).items():
        if name not in ("platt", "thresholds"):  # they follow the final score
            assert torch.equal(both[name], value), name


def test_a_run_from_before_a_field_existed_goes_on(
    backbone: Backbone, corpus: Corpus, tmp_path: Path
) -> None:
    first = train(backbone, corpus, tmp_path, small(), progress=False)
    path = tmp_path / "config.json"
    run = json.loads(path.read_text())
    del run["config"]["local"], run["config"]["local_prompts"]
    path.write_text(json.dumps(run))
    assert train(backbone, corpus, tmp_path, small(), progress=False).version == first.version


def test_images_come_last_and_a_run_that_goes_on_learns_from_them_again(
    backbone: Backbone, corpus: Corpus, tmp_path: Path
) -> None:
    from pvp_fast.demo import demo_set
    from pvp_fast.evaluation import EvalSet, adapt
    from pvp_fast.training.few import FewConfig

    scenes = sorted(demo_set().glob("*.jpg"))
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    labels = torch.full((13, 2), -1, dtype=torch.int8)
    labels[::2, 0] = labels[::3, 1] = 1
    images = EvalSet((*scenes[:12], bad), ("dog", "cat"), labels)
    run, config = tmp_path / "run", small()
    text = train(backbone, corpus, run, config, progress=False)
    with pytest.warns(UserWarning, match=r"bad\.jpg"):
        first = train(
            backbone, corpus, run, config, images=images, unlabelled=scenes[12:20], progress=False
        )
    apart = adapt(
        backbone, text, images, unlabelled=scenes[12:20], config=FewConfig(seed=config.seed)
    ).artifact
    stored, expected = every_tensor(Artifact.load(run / "artifact")), every_tensor(apart)
    assert first.metrics["images"]["count"] == 12
    assert first.metrics["images"] == apart.metrics["images"]
    assert all(torch.equal(stored[name], expected[name]) for name in expected)
    with pytest.raises(InputError, match="unlabelled"):
        train(backbone, corpus, run, config, unlabelled=scenes, progress=False)
