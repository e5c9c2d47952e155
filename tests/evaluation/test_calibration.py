"""Calibration: targets reached on data that was not used; artifacts that stay what they were."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.artifacts import every_tensor
from support.training import small
from torch import Tensor

from pvp_fast.artifact import Artifact
from pvp_fast.cli import run
from pvp_fast.clip.backbone import Backbone
from pvp_fast.demo import demo_set
from pvp_fast.errors import InputError
from pvp_fast.evaluation import encode_set, read_folder
from pvp_fast.evaluation.calibrate import (
    Scored,
    calibrate,
    score_images,
    score_sentences,
    unseen,
)
from pvp_fast.metrics import (
    counts_at_threshold,
    expected_calibration_error,
    reliability,
)
from pvp_fast.modules.scoring import probability
from pvp_fast.sentences import Corpus, build_corpus, grammar_sentences
from pvp_fast.tagging.tagger import Tagger
from pvp_fast.training import train
from pvp_fast.training.thresholds import Target, cross_fit, fit_platt, thresholds_for


def logistic(rows: int, categories: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scores and labels drawn from a Platt model, with an intercept of each category's own."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows, categories, generator=generator)
    bias = -8 + torch.randn(categories, generator=generator)
    chance = torch.sigmoid(12 * scores + bias)
    return scores, torch.rand(rows, categories, generator=generator) < chance


# --- metrics ----------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 1000))
def test_ece_is_the_loop(rows: int, bins: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    p = torch.randint(0, 11, (rows, 2), generator=generator).double() / 10
    y = torch.rand(rows, 2, generator=generator) < p
    pairs = list(zip(p.flatten().tolist(), y.flatten().tolist(), strict=True))
    total = 0.0
    for b in range(bins):
        inside = [(c, t) for c, t in pairs if min(int(c * bins), bins - 1) == b]
        total += abs(sum(c for c, _ in inside) - sum(t for _, t in inside))
    assert expected_calibration_error(p, y, bins=bins) == pytest.approx(total / len(pairs))


def test_difficult_entries_count_nowhere() -> None:
    p = torch.tensor([[0.9], [0.9], [0.1]])
    y = torch.tensor([[1], [0], [-1]], dtype=torch.int8)
    found = counts_at_threshold(p, y, 0.5)
    assert (int(found.kept), int(found.right), int(found.present)) == (1, 1, 1)
    assert int(reliability(p, y).count.sum()) == 2
    assert expected_calibration_error(p, y) == pytest.approx(0.1)


def test_counts_and_their_ratios() -> None:
    p = torch.tensor([[0.9, 0.8], [0.6, 0.1], [0.2, 0.1]])
    y = torch.tensor([[1, 0], [0, 0], [1, 0]], dtype=torch.bool)
    found = counts_at_threshold(p, y, torch.tensor([0.5, 0.9]))
    assert (found.kept.tolist(), found.right.tolist()) == ([2, 0], [1, 0])
    assert (found.precision, found.macro_precision, found.recall) == (0.5, 0.5, 0.5)
    assert math.isnan(counts_at_threshold(p, y, 1.0).precision)


@pytest.mark.parametrize("bad", [-0.1, 1.5, float("nan")])
def test_only_probabilities_have_a_reliability(bad: float) -> None:
    with pytest.raises(InputError, match=r"between 0 and 1|is NaN"):
        reliability(torch.tensor([[bad]]), torch.tensor([[True]]))
    with pytest.raises(InputError, match="bins"):
        reliability(torch.tensor([[0.5]]), torch.tensor([[True]]), bins=0)


# --- targets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize(
    ("kind", "value"), [("precision", 0.8), ("precision", 0.9), ("recall", 0.9)]
)
def test_a_target_holds_on_rows_that_were_not_used(kind: str, value: float, common: bool) -> None:
    scores, labels = logistic(1500, 20, seed=1)
    half = len(scores) // 2
    target = Target(kind, value)
    platt = fit_platt(scores[:half], labels[:half])
    least = thresholds_for(target, scores[:half], labels[:half], platt, common=common)
    found = counts_at_threshold(probability(scores[half:], platt), labels[half:], least)
    assert getattr(found, kind) == pytest.approx(value, abs=0.03)
    held = cross_fit(target, scores, labels, common=common)
    again = counts_at_threshold(held.chances, labels, held.thresholds)
    assert getattr(again, kind) == pytest.approx(value, abs=0.03)


def test_a_target_holds_where_the_logistic_curve_does_not_fit() -> None:
    scores, labels = logistic(3000, 10, seed=6)
    bent = scores.pow(4)  # the same ranking, another shape
    target = Target("precision", 0.8)
    held = cross_fit(target, bent, labels)
    found = counts_at_threshold(held.chances, labels, held.thresholds)
    assert found.precision == pytest.approx(0.8, abs=0.03)
    # What the probabilities promise is wrong there, so they alone would not do.
    chances = probability(bent, fit_platt(bent, labels))
    promised = chances[held.chances >= held.thresholds].mean()
    assert abs(float(promised) - found.precision) > 0.02


def test_f1_beats_every_other_common_threshold() -> None:
    scores, labels = logistic(400, 5, seed=2)
    platt = fit_platt(scores, labels)
    chances = probability(scores, platt)
    least = thresholds_for(Target("f1"), scores, labels, platt, common=True)

    def f1(cut: float | Tensor) -> float:
        c = counts_at_threshold(chances, labels, cut)
        return 2 * int(c.right.sum()) / int((c.kept + c.present).sum())

    assert f1(least) >= max(f1(t / 50) for t in range(1, 50))


def test_a_target_out_of_reach_asks_for_it_of_each_image() -> None:
    scores = torch.rand(50, 2, generator=torch.Generator().manual_seed(3))
    platt = torch.tensor([[1.0, -3.0], [1.0, -3.0]])
    least = thresholds_for(Target("precision", 0.9), scores, scores > 2, platt)
    assert least.tolist() == pytest.approx([0.9, 0.9])


def test_unknown_labels_change_nothing() -> None:
    scores, labels = logistic(200, 4, seed=4)
    known = torch.rand(scores.shape, generator=torch.Generator().manual_seed(5)) < 0.7
    known[:, 3] = False
    flipped = torch.where(known, labels, ~labels)
    for kind, value in (("precision", 0.8), ("recall", 0.8), ("f1", None)):
        for common in (False, True):
            results = []
            for y in (labels, flipped):
                platt = fit_platt(scores, y & known, known)
                results.append(
                    thresholds_for(Target(kind, value), scores, y, platt, known, common=common)
                )
            assert torch.equal(*results)
            assert bool(results[0].isfinite().all())


@pytest.mark.parametrize("text", ["precision", "precision=1.5", "recall=0", "f1=0.5", "x=0.5", "="])
def test_bad_targets_say_what_would_work(text: str) -> None:
    with pytest.raises(InputError, match=r"target.*(0\.9|f1|precision)"):
        Target.parse(text)


def test_targets_read_as_they_print() -> None:
    for text in ("precision=0.9", "recall=0.75", "f1"):
        assert str(Target.parse(text)) == text


# --- artifacts --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(
    backbone: Backbone, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    return train(backbone, corpus, tmp_path_factory.mktemp("run"), small(), progress=False)


def test_only_platt_and_thresholds_change(
    trained: Artifact, backbone: Backbone, corpus: Corpus, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in every_tensor(trained).items()}
    data = score_sentences(backbone, trained, corpus)
    result = calibrate(trained, data, Target("precision", 0.8))
    result.artifact.save(tmp_path)
    loaded = Artifact.load(tmp_path)
    now, after = every_tensor(trained), every_tensor(loaded)
    assert set(after) == set(before)
    for name, value in before.items():
        assert torch.equal(now[name], value), name
        if name not in ("platt", "thresholds"):
            assert torch.equal(after[name], value), name
    assert not torch.equal(after["platt"], before["platt"])
    assert loaded.metrics["calibration"]["target"] == "precision=0.8"
    assert loaded.version != trained.version
    Tagger(loaded, backbone)


def test_what_training_held_out_is_found_again(
    trained: Artifact, backbone: Backbone, corpus: Corpus
) -> None:
    part, known = unseen(trained, corpus)
    assert known
    assert len(part) == trained.metrics["held_out"]
    other = build_corpus(grammar_sentences(corpus.vocabulary, 20, seed=8), corpus.vocabulary)
    assert unseen(trained, other) == (other, False)
    if len(part) >= 10:  # training calibrated the same scores for the best F1
        result = calibrate(trained, score_sentences(backbone, trained, part), Target("f1"))
        torch.testing.assert_close(
            result.artifact.head.platt, trained.head.platt, atol=0.05, rtol=0.05
        )


def test_too_little_to_calibrate_on(trained: Artifact) -> None:
    count = len(trained.vocabulary)
    for rows, sign in ((9, 1), (50, -1)):
        labels = torch.full((rows, count), sign, dtype=torch.int8)
        with pytest.raises(InputError, match="too few"):
            calibrate(trained, Scored(torch.rand(rows, count), labels), Target("f1"))


# --- the command ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pocket")
    line = ["train", "--vocabulary", "pocket70", "--grammar", "1500", "--quiet", "--preset", "demo"]
    assert run([*line, "--steps", "visual=5,text=10,adapter=5", "--out", str(out)]) == 0
    return out / "artifact"


def test_precision_is_reached_on_held_out_sentences(
    pocket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["calibrate", str(pocket), "--target", "precision=0.8", "--grammar", "1500", "--seed"]
    options = ["--json", str(tmp_path / "n.json"), "--out", str(tmp_path / "new")]
    assert run([*line, "77", *options]) == 0
    found = json.loads((tmp_path / "n.json").read_text())
    assert found["after"]["precision"] == pytest.approx(0.8, abs=0.03)
    assert len(found["categories"]) == 70
    assert sum(c["right"] for c in found["categories"]) > 500
    out, err = capsys.readouterr()
    assert "macro" in out
    assert "these numbers are of sentences" in err
    assert out.splitlines()[-1] == str(tmp_path / "new")
    # The same thresholds on sentences of yet another seed, which no fold has seen.
    artifact = Artifact.load(tmp_path / "new")
    vocabulary = artifact.vocabulary
    fresh = build_corpus(grammar_sentences(vocabulary, 800, seed=78), vocabulary, templates=False)
    data = score_sentences(Backbone.load("pocket"), artifact, fresh)
    counts = counts_at_threshold(
        artifact.head.probabilities(data.scores), data.labels, artifact.head.thresholds
    )
    assert counts.precision == pytest.approx(0.8, abs=0.04)
    assert run([*line[:-1], "--seed", "0", *options]) == 0
    assert "held out" in capsys.readouterr().out


def test_labelled_images_mend_what_sentences_cannot_know(pocket: Path, tmp_path: Path) -> None:
    artifact = Artifact.load(pocket)
    features = encode_set(Backbone.load("pocket"), read_folder(demo_set()), artifacts=[artifact])
    data = score_images(artifact, features)
    half = Scored(data.scores[::2], data.labels[::2])
    result = calibrate(artifact, half, Target("precision", 0.7), common=True)
    rest, truth = data.scores[1::2], data.labels[1::2]
    before = expected_calibration_error(artifact.head.probabilities(rest), truth)
    after = expected_calibration_error(result.artifact.head.probabilities(rest), truth)
    assert after < before / 2
    assert len(set(result.artifact.head.thresholds.tolist())) == 1


def test_images_by_the_command_and_its_errors(
    pocket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["calibrate", str(pocket), "--images", str(demo_set()), "--out", str(tmp_path / "new")]
    pytest.importorskip("matplotlib")
    assert run([*line, "--target", "f1", "--plots", str(tmp_path / "plots")]) == 0
    for name in ("reliability.png", "categories.png"):
        assert (tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert run([*line, "--grammar", "10"]) == 1
    assert "--images" in capsys.readouterr().err
    assert run([*line, "--target", "precision=2"]) == 1
    assert run(["calibrate", str(tmp_path / "none"), "--out", str(tmp_path / "x")]) == 1
    assert not (tmp_path / "x").exists()


def test_images_without_labels_by_the_command(
    pocket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["calibrate", str(pocket), "--unlabelled", str(demo_set()), "--out"]
    options = ["--target", "precision=0.6", "--most", "140", "--json", str(tmp_path / "n.json")]
    pytest.importorskip("matplotlib")
    assert run([*line, str(tmp_path / "new"), *options, "--plots", str(tmp_path / "plots")]) == 0
    out = capsys.readouterr().out
    assert "140 of 150 images without labels; target precision=0.6" in out
    assert out.splitlines()[-1] == str(tmp_path / "new")
    assert (tmp_path / "plots" / "scores.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "n.json").read_text())
    artifact = Artifact.load(tmp_path / "new")
    assert artifact.metrics["calibration"] == {"unlabelled": True, **found}
    features = encode_set(Backbone.load("pocket"), read_folder(demo_set()))
    data = score_images(artifact, features)
    kept = artifact.head.accepted(data.scores)
    right = float((kept & (data.labels > 0)).sum() / kept.sum())
    low, high = found["interval"]
    assert low - 0.1 <= right <= high + 0.1  # five steps of training are few
    # Refused: what does not go together, and too few images.
    assert run([*line, str(tmp_path / "x"), "--images", str(demo_set())]) == 1
    assert "--unlabelled" in capsys.readouterr().err
    assert run([*line, str(tmp_path / "x"), "--most", "50"]) == 1
    assert "at least 100" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_adapting_to_labelled_images_by_the_command(
    pocket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["adapt", str(pocket), "--images", str(demo_set()), "--out", str(tmp_path / "new")]
    assert run([*line, "--views", "1"]) == 0
    out = capsys.readouterr().out
    assert "150 images; mAP on left-out ones" in out
    old, new = Artifact.load(pocket), Artifact.load(tmp_path / "new")
    found = new.metrics["images"]
    assert found["count"] == 150
    assert found["map_after"] > found["map_before"] + 1
    assert torch.equal(new.head.adapter.text, old.head.adapter.text)


def test_without_matplotlib_the_extra_is_named(
    pocket: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    line = ["calibrate", str(pocket), "--plots", str(tmp_path / "p"), "--out", str(tmp_path / "n")]
    assert run(line) == 1
    assert "pvp_fast[plots]" in capsys.readouterr().err
    assert not (tmp_path / "n").exists()
