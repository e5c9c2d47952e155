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
    f1_at_threshold,
    f1_at_topk,
    mean_average_precision,
)


def ap_by_hand(scores: list[float], labels: list[bool]) -> float:
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    hits, total = 0, 0.0
    for rank, i in enumerate(order, 1):
        if labels[i]:
            hits += 1
            total += hits / rank
    return total / hits if hits else math.nan


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 1000))
def test_average_precision_is_the_loop(n: int, c: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 5, (n, c), generator=generator).float()  # with ties
    labels = torch.rand(n, c, generator=generator) < 0.4
    found = average_precision(scores, labels)
    for column in range(c):
        expected = ap_by_hand(scores[:, column].tolist(), labels[:, column].tolist())
        assert found[column].item() == pytest.approx(expected, nan_ok=True)


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
