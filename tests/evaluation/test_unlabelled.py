"""Calibration on images without labels: the precision asked for, bounds that hold, refusals."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pvp_fast.artifact import Artifact
from pvp_fast.errors import InputError
from pvp_fast.evaluation import UnlabelledCalibration, calibrate_unlabelled
from pvp_fast.evaluation.unlabelled import LEAST_IMAGES, TAIL
from pvp_fast.modules.adapters import DualAdapter
from pvp_fast.modules.scoring import Head
from pvp_fast.training.thresholds import Target
from pvp_fast.vocabulary.categories import Category, Vocabulary


def scenes(
    rows: int, count: int, *, tilt: float = 1.2, present: float = 0.04, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Scores whose absent upper half falls off as the method supposes, and their labels.

    Those of present categories are drawn from the same values with weights that grow with the
    score, so that the probability of being present is a logistic curve.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(rows, count, generator=generator) < present
    fall = torch.empty(200_000).exponential_(generator=generator).pow(1 / TAIL)
    values = torch.where(torch.rand(len(fall), generator=generator) < 0.5, -0.7 * fall, fall)
    weight = torch.exp(tilt * values.clamp(max=9.0))
    size = rows * count
    absent = values[torch.randint(len(values), (size,), generator=generator)]
    found = values[torch.multinomial(weight, size, replacement=True, generator=generator)]
    return 0.1 * torch.where(labels, found.view_as(labels), absent.view_as(labels)), labels


def artifact(count: int) -> Artifact:
    """Random vectors, and a calibration that means nothing on :func:`scenes`."""
    generator = torch.Generator().manual_seed(1)
    bank = F.normalize(torch.randn(count, 8, generator=generator), dim=-1)
    head = Head.uncalibrated(DualAdapter(bank, bank, bank[:, None]))
    platt = torch.stack([torch.full((count,), 30.0), torch.linspace(-9, -8.5, count)], 1)
    return Artifact(
        Vocabulary([Category(f"thing {i}") for i in range(count)]),
        {"name": "none", "pretrained": None, "fingerprint": "0", "embed_dim": 8},
        head.calibrated(platt, torch.full((count,), 0.5)),
    )


def precision(result: UnlabelledCalibration, scores: Tensor, labels: Tensor) -> float:
    kept = result.artifact.head.accepted(scores)
    return float((kept & labels).sum() / kept.sum())


@pytest.mark.parametrize(("value", "tilt"), [(0.7, 1.2), (0.9, 1.2), (0.8, 1.5)])
def test_the_precision_asked_for_is_kept(value: float, tilt: float) -> None:
    scores, _ = scenes(600, 60, tilt=tilt)
    old = artifact(60)
    before = copy.deepcopy(old)
    result = calibrate_unlabelled(old, scores, Target("precision", value))
    fresh = scenes(600, 60, tilt=tilt, seed=1)
    # Hidden among the absent, some of the present widen their curve: it errs on the safe side.
    assert value - 0.03 <= precision(result, *fresh) <= value + 0.08
    low, high = result.interval
    assert low <= precision(result, *fresh) <= high + 0.02
    assert high - low < 0.35
    assert result.precision == pytest.approx(value, abs=0.02)
    assert result.kept == pytest.approx(float(result.artifact.head.accepted(scores).sum()) / 600)
    for now in (old, result.artifact):  # all but the calibration stays; the old one does too
        for name, tensor in before.head.adapter.state_dict().items():
            assert torch.equal(now.head.adapter.state_dict()[name], tensor), name
    assert torch.equal(old.head.platt, before.head.platt)
    assert torch.equal(old.head.thresholds, before.head.thresholds)


def test_the_order_of_the_logits_stays_and_a_second_time_changes_nothing() -> None:
    scores, _ = scenes(400, 40)
    old = artifact(40)
    once = calibrate_unlabelled(old, scores, Target("precision", 0.8))
    logits = scores.double() * old.head.platt[:, 0].double() + old.head.platt[:, 1].double()
    p = once.artifact.head.probabilities(scores)
    torch.testing.assert_close(
        p.double(), torch.sigmoid(once.scale * logits + once.shift), atol=1e-5, rtol=1e-4
    )
    twice = calibrate_unlabelled(once.artifact, scores, Target("precision", 0.8))
    assert (twice.scale, twice.shift) == pytest.approx((1, 0), abs=0.02)
    kept, again = (r.artifact.head.accepted(scores) for r in (once, twice))
    assert float((kept != again).sum()) <= 0.002 * float(kept.sum())


def test_what_it_came_with_is_judged_too() -> None:
    scores, labels = scenes(600, 60)
    old = artifact(60)
    result = calibrate_unlabelled(old, scores, Target("precision", 0.9))
    kept = old.head.accepted(scores)
    assert result.kept_before == pytest.approx(float(kept.sum()) / 600)
    assert result.precision_before == pytest.approx(
        float((kept & labels).sum() / kept.sum()), abs=0.05
    )


def test_fewer_images_make_wider_bounds_and_a_seed_repeats_them() -> None:
    scores, _ = scenes(1200, 40)
    target = Target("precision", 0.8)
    few, many = (calibrate_unlabelled(artifact(40), scores[:n], target) for n in (120, 1200))
    assert many.interval[1] - many.interval[0] < few.interval[1] - few.interval[0]
    assert calibrate_unlabelled(artifact(40), scores[:120], target).to_dict() == few.to_dict()


def test_the_bulk_tells_another_shape() -> None:
    scores, labels = scenes(600, 40)
    noise = torch.randn(600, 40, generator=torch.Generator().manual_seed(3))
    normal = torch.where(labels, 0.5, 0) + 0.1 * noise
    for data, bulk in ((scores, TAIL), (normal, 1.24)):
        result = calibrate_unlabelled(artifact(40), data, Target("precision", 0.8))
        assert result.bulk == pytest.approx(bulk, abs=0.05)


def test_all_numbers_go_into_the_artifact(tmp_path: Path) -> None:
    scores, _ = scenes(300, 40)
    result = calibrate_unlabelled(artifact(40), scores, Target("precision", 0.8))
    result.artifact.save(tmp_path)
    stored = Artifact.load(tmp_path).metrics["calibration"]
    assert stored == {"unlabelled": True, **json.loads(json.dumps(result.to_dict()))}
    assert stored["images"] == 300
    centres, entries, absent = result.histogram.T
    assert float(entries.sum()) == scores.numel()
    assert bool((centres.diff() > 0).all())
    upper = centres > centres[absent.isnan()].max()
    assert float(absent[upper].sum()) == pytest.approx(0.5 * scores.numel(), rel=0.2)
    assert all(word in result.table() for word in ("before", "after", "between"))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("few", f"at least {LEAST_IMAGES}"),
        ("recall", "not what is missed"),
        ("f1", "not what is missed"),
        ("none present", "stand out"),
        ("most present", "labelled images"),
        ("equal", "equal"),
        ("nan", "row 7"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(case: str, message: str) -> None:
    target = {"recall": Target("recall", 0.8), "f1": Target("f1")}.get(
        case, Target("precision", 0.8)
    )
    present = {"none present": 0.0, "most present": 0.15}.get(case, 0.04)
    scores, _ = scenes(99 if case == "few" else 300, 12, tilt=2.0, present=present)
    if case == "equal":
        scores = torch.zeros_like(scores)
    if case == "nan":
        scores[7, 3] = math.nan
    old = artifact(12)
    if case == "equal":
        head = old.head
        old = dataclasses.replace(
            old, head=head.calibrated(torch.tensor([[1.0, 0.0]]).repeat(12, 1), head.thresholds)
        )
    with pytest.raises(InputError, match=message):
        calibrate_unlabelled(old, scores, target)
