"""The shared loop, the three stages as one run, and a category added later."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.artifacts import every_tensor
from support.training import Toy, config, rows, small
from torch import Tensor

from pvp_fast.artifact import Artifact
from pvp_fast.clip.backbone import Backbone
from pvp_fast.errors import ArtifactError, InputError, TrainingDiverged
from pvp_fast.losses.clip import clip_loss_ref
from pvp_fast.modules.prompts import prompt_ensemble
from pvp_fast.sentences import Corpus
from pvp_fast.training import LoopConfig, TrainConfig, add_category, train
from pvp_fast.training.adapter import AdapterConfig, AdapterStage
from pvp_fast.training.checkpoint import NAME
from pvp_fast.training.features import Sentences, label_lists
from pvp_fast.training.loop import Stage, run_stage
from pvp_fast.training.text import TextPromptConfig, TextPromptStage
from pvp_fast.training.thresholds import best_f1_thresholds, fit_platt


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, optimizer: str) -> None:
    settings = config(optimizer=optimizer)
    whole = Toy()
    run_stage(whole, settings, tmp_path / "whole", progress=False)
    with pytest.raises(KeyboardInterrupt):
        run_stage(Toy(stop=7), settings, tmp_path / "cut", progress=False)
    resumed = Toy()
    run_stage(resumed, settings, tmp_path / "cut", progress=False)
    assert resumed.calls == 8  # steps 5 to 12: the checkpoint was at 4
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, resumed.module.state_dict()[name])
    # Steps 5 and 6 were logged before the interruption, and appear once.
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert rows(tmp_path / "cut")[0] == ["step", "loss", "map", "lr", "fit", "decay"]


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    score = run_stage(Toy(), config(), tmp_path, progress=False)
    again = Toy()
    assert run_stage(again, config(), tmp_path, progress=False) == score
    assert again.calls == 0


def test_a_term_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged) as caught:
        run_stage(Toy(broken=7), config(), tmp_path, progress=False)
    assert caught.value.step == 6
    assert caught.value.term == "decay"
    resumed = Toy()
    run_stage(resumed, config(), tmp_path, progress=False)
    assert resumed.calls == 8


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    run_stage(Toy(), config(), tmp_path, progress=False)
    (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[:40])
    with pytest.raises(ArtifactError, match="damaged"):
        run_stage(Toy(), config(), tmp_path, progress=False)


def test_the_loop_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    toy = _quiet()
    run_stage(toy, config(), tmp_path, progress=False)
    assert toy.calls == 12
    assert torch.equal(torch.get_rng_state(), before)


def _quiet() -> Toy:
    state = torch.get_rng_state()
    toy = Toy()
    torch.set_rng_state(state)
    return toy


def test_configs_round_trip_and_name_bad_fields() -> None:
    demo = TrainConfig.demo(seed=3)
    assert TrainConfig.from_dict(demo.to_dict()) == demo
    with pytest.raises(InputError, match=r"visual\.loop.*stepz"):
        TrainConfig.from_dict({"visual": {"loop": {"stepz": 3}}})
    with pytest.raises(InputError, match="rankin"):
        TrainConfig.from_dict({"text": {"loss": "rankin"}})
    with pytest.raises(InputError, match=r"LoopConfig\.steps"):
        LoopConfig(steps=0)


def test_platt_and_thresholds_follow_the_labels() -> None:
    labels = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=torch.bool)
    scores = torch.where(labels, 0.4, 0.1)
    platt = fit_platt(scores, labels)
    assert bool((platt[:, 0] > 0).all())
    thresholds = best_f1_thresholds(scores, labels, platt)
    chances = torch.sigmoid(scores * platt[:, 0] + platt[:, 1])
    assert torch.equal(chances >= thresholds, labels)


def test_without_tensorboard_the_table_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as where it is not installed
    run_stage(Toy(), config(), tmp_path, progress=False)
    assert rows(tmp_path)
    assert not list(tmp_path.glob("events.*"))


@pytest.fixture(scope="module")
def trained(
    backbone: Backbone, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Artifact, Path]:
    folder = tmp_path_factory.mktemp("run")
    return train(backbone, corpus, folder, small(), progress=False), folder


def test_a_run_leaves_logs_and_an_artifact(trained: tuple[Artifact, Path]) -> None:
    artifact, folder = trained
    for stage in ("visual", "text_only", "text", "adapter"):
        assert rows(folder / stage)[-1][0] == "4"
        assert list((folder / stage).glob("events.*"))
    assert Artifact.load(folder / "artifact").version == artifact.version
    assert set(artifact.metrics["held_out_map"]) == {"visual", "text_only", "text", "adapter"}
    assert artifact.training.pixels.shape == (4, 1, 3, 32, 32)


def test_a_second_call_reuses_the_run_and_refuses_another(
    trained: tuple[Artifact, Path], backbone: Backbone, corpus: Corpus
) -> None:
    artifact, folder = trained
    again = train(backbone, corpus, folder, small(), progress=False)
    assert again.version == artifact.version
    with pytest.raises(InputError, match="another config"):
        train(backbone, corpus, folder, small().with_seed(5), progress=False)
    with pytest.raises(InputError, match="already holds a run"):
        train(backbone, corpus, folder, small(), progress=False, resume=False)


def test_an_added_category_changes_nothing_learned(
    trained: tuple[Artifact, Path], backbone: Backbone
) -> None:
    artifact, _ = trained
    grown = add_category(backbone, artifact, "castle", ["fortress"], steps=2)
    assert grown.vocabulary.names == (*artifact.vocabulary.names, "castle")
    more, few = every_tensor(grown), every_tensor(artifact)
    assert set(more) == set(few)
    for name, old in few.items():
        new = more[name]
        same = new if new.shape == old.shape else new[: len(old)]
        assert torch.equal(same, old), name
    x = backbone.encode_text(["a dog and a car", "a castle"])
    before, after = artifact.head.cosines(x), grown.head.cosines(x)
    torch.testing.assert_close(after[:, :4], before)
    with pytest.raises(InputError):
        add_category(backbone, grown, "castle", steps=1)


@pytest.mark.parametrize("stage", ["text", "adapter"])
@pytest.mark.parametrize("loss", ["ranking", "asl"])
def test_fused_losses_give_the_learning_curve_of_their_definitions(
    backbone: Backbone,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    loss: str,
    stage: str,
) -> None:
    features = backbone.encode_text(list(corpus.sentences)).half().numpy()
    sentences = Sentences(features, label_lists(corpus.labels), len(corpus.vocabulary))
    generator = torch.Generator().manual_seed(0)
    visual = torch.randn(len(corpus.vocabulary), 1, features.shape[1], generator=generator)
    visual = torch.nn.functional.normalize(visual, dim=-1)
    names = corpus.vocabulary.names
    bank = prompt_ensemble(backbone, names)

    def build() -> Stage:
        if stage == "adapter":
            settings = AdapterConfig(config(), loss=loss)
            return AdapterStage(bank, bank.flip(0), visual, sentences, sentences, settings)
        text = TextPromptConfig(config(), loss=loss)
        return TextPromptStage(backbone, names, sentences, sentences, text, visual=visual)

    def curve(name: str) -> list[float]:
        run_stage(build(), config(), tmp_path / name, progress=False)
        return [float(row[1]) for row in rows(tmp_path / name)[1:]]

    fused = curve("fused")
    calls = 0

    def counted(reference: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*args: object, **options: object) -> Tensor:
            nonlocal calls
            calls += 1
            return reference(*args, **options)

        return run

    reference = counted(getattr(importlib.import_module("pvp_fast.losses"), f"{loss}_loss_ref"))
    monkeypatch.setitem(
        importlib.import_module("pvp_fast.training.features")._LOSSES, loss, reference
    )
    monkeypatch.setattr("pvp_fast.training.text.clip_loss", counted(clip_loss_ref))
    assert curve("reference") == pytest.approx(fused, rel=1e-4)
    # Stage 2 has the contrastive loss as well.
    assert calls == config().steps * (2 if stage == "text" else 1)
    assert fused[-1] < fused[0]
