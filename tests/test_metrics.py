"""Metrics against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvp_fast.errors import InputError
from pvp_fast.metrics import (
    average_precision,
    check_scores,
    counts_at_threshold,
    f1_at_threshold,
    f1_at_topk,
    mean_average_precision,
    reliability,
)


def ap_by_hand(scores: list[float], labels: list[bool]) -> float:
    """Σ over distinct thresholds of (recall gained) · (precision of all that reach it)."""
    total, before, positives = 0.0, 0, sum(labels)
    for threshold in sorted(set(scores), reverse=True):
        chosen = [label for score, label in zip(scores, labels, strict=True) if score >= threshold]
        total += (sum(chosen) - before) * sum(chosen) / len(chosen)
        before = sum(chosen)
    return total / positives if positives else math.nan


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 1000))
def test_average_precision_is_the_loop(n: int, c: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 5, (n, c), generator=generator).float()  # with ties
    scores[scores == 0], scores[scores == 4] = -math.inf, math.inf
    labels = torch.rand(n, c, generator=generator) < 0.4
    found = average_precision(scores, labels)
    for column in range(c):
        expected = ap_by_hand(scores[:, column].tolist(), labels[:, column].tolist())
        assert found[column].item() == pytest.approx(expected, nan_ok=True)
    # The order of the samples cannot matter.
    mixed = torch.randperm(n, generator=generator)
    assert torch.allclose(average_precision(scores[mixed], labels[mixed]), found, equal_nan=True)


@pytest.mark.parametrize("first", [True, False], ids=["positives first", "positives last"])
@pytest.mark.parametrize("value", [0.25, 0.0, -math.inf, math.inf])
def test_equal_scores_give_the_prevalence(first: bool, value: float) -> None:
    labels = torch.zeros(1000, 1, dtype=torch.bool)
    labels[: 100 if first else None] = True
    labels[: 0 if first else 900] = False
    assert mean_average_precision(torch.full((1000, 1), value), labels) == pytest.approx(0.1)


def test_half_precision_ties_do_not_depend_on_the_order_of_a_sorted_file() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(20000, 1, generator=generator) < 0.1).sort(dim=0, descending=True).values
    logits = torch.randn(20000, 1, generator=generator) + 9  # sigmoids near 1: few halves left
    halves = logits.sigmoid().half()
    assert len(halves.unique()) < 40
    expected = ap_by_hand(halves[:, 0].tolist(), labels[:, 0].tolist())
    assert mean_average_precision(halves, labels) == pytest.approx(expected, abs=1e-12)
    assert mean_average_precision(halves.flip(0), labels.flip(0)) == pytest.approx(expected)
    assert expected < 0.12


@pytest.mark.parametrize(
    "scores",
    [
        torch.tensor([3, -1, 3, 0, -1, 2], dtype=torch.int8),
        torch.tensor([3, 0, 3, 0, 255, 2], dtype=torch.uint8),
        torch.tensor([True, False, True, True, False, False]),
        torch.tensor([0.0, -0.0, 0.0, -0.0, 1.0, -1.0]),  # two zeros that are one
        torch.tensor([math.inf, -math.inf, math.inf, 0.0, -math.inf, 1.0]),
        torch.tensor([1.0, 1.0, 1.0, 1.001, 1.002, 0.99]).bfloat16(),  # 1.001 and 1.002 are 1
    ],
    ids=["signed", "unsigned", "bool", "signed zeros", "infinities", "bfloat16"],
)
def test_ties_of_every_kind_are_one_threshold(scores: torch.Tensor) -> None:
    for labels in ([1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 1, 1]):
        present = torch.tensor(labels, dtype=torch.bool)
        expected = ap_by_hand(scores.double().tolist(), present.tolist())
        found = average_precision(scores[:, None], present[:, None])
        assert found.item() == pytest.approx(expected, abs=1e-12)


def test_difficult_entries_stand_in_no_tie() -> None:
    # Ignored: what is left of the tie is one present and one absent.
    labels = torch.tensor([[0], [1], [0], [-1]], dtype=torch.int8)
    for value in (0.5, -math.inf):
        assert mean_average_precision(torch.full((4, 1), value), labels) == 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_average_precision_is_scikit_learns(dtype: torch.dtype) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(1)
    scores = (torch.randn(500, 20, generator=generator) * 3).sigmoid().mul(64).round().div(64)
    labels = torch.rand(500, 20, generator=generator) < 0.15
    found = average_precision(scores.to(dtype), labels)
    for column in range(20):
        expected = sklearn.average_precision_score(labels[:, column], scores[:, column])
        assert found[column].item() == pytest.approx(expected, abs=1e-12)


def test_a_nan_score_names_its_row_and_category() -> None:
    scores = torch.rand(4, 3)
    scores[2, 1] = math.nan
    labels = torch.rand(4, 3) < 0.5
    for measure in (average_precision, mean_average_precision, f1_at_topk, reliability):
        with pytest.raises(InputError, match=r"row 2, category 1 is NaN \(1 of 12"):
            measure(scores, labels)
    for measure in (f1_at_threshold, counts_at_threshold):
        with pytest.raises(InputError, match="row 2, category 1 is NaN"):
            measure(scores, labels, 0.5)
        with pytest.raises(InputError, match="threshold: NaN"):
            measure(labels.float(), labels, math.nan)
    with pytest.raises(InputError, match="row 2, category 'dog'"):
        check_scores(scores, ["cat", "dog", "cow"])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32])
def test_unsigned_labels_are_0_and_1(dtype: torch.dtype) -> None:
    scores = torch.tensor([[0.9], [0.1]])
    assert mean_average_precision(scores, torch.tensor([[0], [1]]).to(dtype)) == 0.5
    with pytest.raises(InputError, match="may hold 0 and 1 only"):
        mean_average_precision(scores, torch.tensor([[0], [255]]).to(dtype))


def test_arrays_that_are_no_tensors_are_told() -> None:
    labels = torch.tensor([[True], [False]])
    with pytest.raises(InputError, match="scores is a ndarray; give a torch tensor"):
        average_precision(labels.float().numpy(), labels)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="labels is a list"):
        average_precision(labels.float(), labels.tolist())  # type: ignore[arg-type]


def test_no_sample_and_no_positive_are_nan() -> None:
    assert average_precision(torch.zeros(0, 2), torch.zeros(0, 2, dtype=torch.bool)).isnan().all()
    assert math.isnan(mean_average_precision(torch.rand(3, 2), torch.zeros(3, 2, dtype=torch.bool)))


def test_of_equal_scores_the_first_categories_are_the_best() -> None:
    labels = torch.tensor([[True, True, False, False]])
    assert f1_at_topk(torch.zeros(1, 4), labels, 2).of1 == 1


def test_difficult_labels_follow_the_convention() -> None:
    scores = torch.tensor([[3.0], [2.0], [1.0]])
    labels = torch.tensor([[0], [1], [-1]], dtype=torch.int8)
    assert mean_average_precision(scores, labels) == 1.0
    assert mean_average_precision(scores, labels, difficult="negative") == 0.5
    assert mean_average_precision(scores, labels, difficult="positive") == 1.0
    with pytest.raises(InputError, match="difficult"):
        mean_average_precision(scores, labels, difficult="perhaps")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float32])
def test_plain_zero_one_labels_in_a_signed_dtype_are_refused(dtype: torch.dtype) -> None:
    scores = torch.tensor([[3.0], [2.0], [1.0]])
    labels = torch.tensor([[0], [1], [0]])
    plain = labels.to(dtype)
    for measure in (average_precision, mean_average_precision, f1_at_topk):
        with pytest.raises(InputError, match=r"labels\.bool\(\)"):
            measure(scores, plain)
    with pytest.raises(InputError, match=r"labels\.bool\(\)"):
        f1_at_threshold(scores, plain, 0.5)
    # The two readings that the message offers differ, which is why it does not choose.
    assert mean_average_precision(scores, plain.bool()) == 0.5
    assert mean_average_precision(scores, labels.to(torch.uint8)) == 0.5
    assert mean_average_precision(scores, plain, difficult="ignore") == 1.0
    assert mean_average_precision(scores, plain, difficult="negative") == 0.5
    # With one −1 the convention is clear.
    assert mean_average_precision(scores, torch.tensor([[0], [1], [-1]]).to(dtype)) == 1.0


def test_other_label_values_are_refused() -> None:
    for bad in (torch.tensor([[2], [-1]]), torch.tensor([[0.5], [-1.0]])):
        with pytest.raises(InputError, match="−1, 0 and 1"):
            average_precision(torch.zeros(2, 1), bad)


def test_f1_of_known_counts() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.7, 0.6]])
    labels = torch.tensor([[True, False, False], [False, True, True]])
    found = f1_at_threshold(scores, labels, 0.5)
    # Category precisions 1, 1/2, 1 and recalls 1, 1, 1; three hits of four picked, three present.
    precision = (1 + 0.5 + 1) / 3
    assert found.cf1 == pytest.approx(2 * precision / (precision + 1))
    assert found.of1 == pytest.approx(2 * 3 / (4 + 3))
    top = f1_at_topk(scores, labels, 1)
    assert top.of1 == pytest.approx(2 * 2 / (2 + 3))
    assert f1_at_topk(scores, labels, 50).of1 == pytest.approx(2 * 3 / (6 + 3))


def test_shapes_must_agree() -> None:
    with pytest.raises(InputError, match=r"\(N, C\)"):
        average_precision(torch.zeros(2, 3), torch.zeros(3, 2, dtype=torch.bool))
