"""A sigmoid model's own scale and bias as the start of calibration: right where they are right."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.towers import save_transformers
from torch import nn

from pvp_fast.artifact import Artifact
from pvp_fast.cli import run
from pvp_fast.clip.backbone import Backbone
from pvp_fast.demo import demo_set
from pvp_fast.errors import ArtifactError, InputError
from pvp_fast.evaluation import Features, calibrate_own, encode_set, read_folder
from pvp_fast.evaluation.own import TEMPLATE, own_probabilities
from pvp_fast.modules.prompts import prompt_ensemble
from pvp_fast.names.zero_shot import centred, head_of, one_line
from pvp_fast.training.thresholds import Target, fit_platt
from pvp_fast.vocabulary.categories import Category, Vocabulary


@pytest.fixture(scope="module")
def scenes(pocket: Backbone) -> Features:
    return encode_set(pocket, read_folder(demo_set()))


@pytest.fixture(scope="module")
def sigmoid(pocket: Backbone, scenes: Features) -> Backbone:
    """The pocket model with a scale and bias that are right on the demo's drawings."""
    texts = prompt_ensemble(pocket, scenes.names, (TEMPLATE,))
    cosines = (scenes.z @ texts.T).reshape(-1, 1)
    slope, intercept = fit_platt(cosines, (scenes.labels > 0).reshape(-1, 1))[0]
    model: Any = copy.deepcopy(pocket.model)
    model.logit_scale = nn.Parameter(slope.log())
    model.logit_bias = nn.Parameter(intercept)
    return Backbone(model, pocket._tokenizer, pocket.preprocess)


def artifact_of(sigmoid: Backbone, scenes: Features, *, centre: bool) -> Artifact:
    """Names whose cosines are the model's own, or centred and better; wrongly calibrated."""
    names = prompt_ensemble(sigmoid, scenes.names, (TEMPLATE,))
    vectors = centred(names, names.mean(0)) if centre else names
    head = one_line(head_of(vectors, vectors, alpha=0.0), 1.0, 0.0, 0.5)
    words = Vocabulary([Category(name) for name in scenes.names])
    return Artifact(words, sigmoid.record(), head)


@pytest.fixture(scope="module")
def artifact(sigmoid: Backbone, scenes: Features) -> Artifact:
    return artifact_of(sigmoid, scenes, centre=True)


def part(scenes: Features, start: int, step: int = 2) -> Features:
    return Features(scenes.z[start::step], scenes.labels[start::step], scenes.names, ())


def blind(scenes: Features) -> Features:
    return Features(scenes.z, torch.zeros(len(scenes.z), 0, dtype=torch.int8), (), ())


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("value", [0.3, 0.5])
def test_the_precision_asked_for_is_met_without_a_label(
    sigmoid: Backbone, scenes: Features, value: float, centre: bool
) -> None:
    artifact = artifact_of(sigmoid, scenes, centre=centre)
    before = copy.deepcopy(artifact.head)
    given, other = part(scenes, 0), part(scenes, 1)
    found = calibrate_own(sigmoid, artifact, blind(given), Target("precision", value))
    assert found.precision == pytest.approx(value, abs=0.02)
    head = found.artifact.head
    kept = head.accepted(head.cosines(other.z))
    right = float((kept & (other.labels > 0)).sum() / kept.sum())
    # What ranks better than the names alone is right more often than their probabilities say.
    assert value - 0.12 < right < (1 if centre else value + 0.12)
    assert found.kept == float(head.accepted(head.cosines(given.z)).sum() / len(given.z))
    assert torch.equal(artifact.head.platt, before.platt)
    assert found.artifact.metrics["calibration"] == {"own": True, **found.to_dict()}
    assert f"scale {sigmoid.logit_record.scale:.4g}" in found.table()
    assert f"expected precision {100 * found.precision:.1f} %" in found.table()


def test_own_probabilities_are_the_models(sigmoid: Backbone, scenes: Features) -> None:
    names = scenes.names[:3]
    found = own_probabilities(sigmoid, names, scenes.z[:4])
    texts = sigmoid.encode_text([f"a photo of a {name}." for name in names])
    model: Any = sigmoid.model
    logits = scenes.z[:4] @ texts.T * model.logit_scale.exp() + model.logit_bias
    torch.testing.assert_close(found.float(), torch.sigmoid(logits).detach(), atol=1e-5, rtol=1e-4)


def test_few_images_do_and_a_recall_can_be_asked_for(
    sigmoid: Backbone, artifact: Artifact, scenes: Features
) -> None:
    few = part(scenes, 0, 40)
    low, high = (
        calibrate_own(sigmoid, artifact, few, Target("recall", value)) for value in (0.3, 0.8)
    )
    assert low.kept < high.kept
    assert low.images == len(few.z) < 20


def test_what_has_no_probabilities_of_its_own_is_refused(
    pocket: Backbone, sigmoid: Backbone, artifact: Artifact, scenes: Features
) -> None:
    with pytest.raises(InputError, match="softmax over texts"):
        own_probabilities(pocket, scenes.names, scenes.z)
    with pytest.raises(ArtifactError):
        calibrate_own(pocket, artifact, scenes, Target("precision", 0.5))
    with pytest.raises(InputError, match="without labels"):
        calibrate_own(sigmoid, artifact, scenes, Target("f1"))


def test_the_command_says_what_it_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", minversion="5")
    (tmp_path / "model").mkdir()
    save_transformers("siglip", tmp_path / "model")
    model = Backbone.load(f"transformers:{tmp_path / 'model'}")
    vectors = model.encode_text(["a dog", "two cats"])
    head = one_line(head_of(vectors, vectors, alpha=0.0), 1.0, 0.0, 0.5)
    Artifact(Vocabulary([Category("dog"), Category("cats")]), model.record(), head).save(
        tmp_path / "a"
    )
    command = ["calibrate", str(tmp_path / "a"), "--out", str(tmp_path / "b")]
    photos = [
        "--unlabelled",
        str(demo_set()),
        "--most",
        "12",
        "--target",
        "recall=0.5",
        "--device",
        "cpu",
    ]
    assert run([*command, *photos, "--own", "--json", str(tmp_path / "own.json")]) == 0
    scale, bias, _ = model.logit_record
    assert f"own sigmoid, scale {scale:.4g} and bias {bias:.4g}" in capsys.readouterr().out
    saved = Artifact.load(tmp_path / "b").metrics["calibration"]
    assert saved == {"own": True, **json.loads((tmp_path / "own.json").read_text())}
    assert run([*command, "--own"]) == 1
    assert "--own goes with --unlabelled" in capsys.readouterr().err
