"""Class vectors from listed labels: what a step meets, what it learns, and how much memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pvp_fast.errors import InputError
from pvp_fast.training.features import Labelled, Sentences, label_lists, sample
from pvp_fast.training.gap import Perturbation
from pvp_fast.training.vectors import VectorConfig, judged_map, learn_vectors

CLEAN = Perturbation(0.5, 0.5)


def listed(features: np.ndarray, rows: Any, categories: int) -> Sentences:
    return Sentences(features, label_lists(rows), categories, gap=CLEAN)


def sentences(
    categories: int, count: int, width: int = 16, seed: int = 0
) -> tuple[Sentences, torch.Tensor]:
    """Sentences about two categories each, and names that lie off what the sentences say."""
    generator = torch.Generator().manual_seed(seed)
    truth = F.normalize(torch.randn(categories, width, generator=generator), dim=-1)
    labels = torch.randint(categories, (count, 2), generator=generator)
    noise = torch.randn(count, width, generator=generator) * 0.1
    x = F.normalize(truth[labels].sum(1) + noise, dim=-1)
    names = F.normalize(truth + 0.3 * torch.randn(categories, width, generator=generator), dim=-1)
    rows = [sorted(set(row)) for row in labels.tolist()]
    return listed(x.half().numpy(), rows, categories), names


def test_rows_and_pairs_are_those_of_the_lists() -> None:
    features = np.eye(3, dtype=np.float16)
    data = listed(features, [(4,), (), (1, 7)], 8)
    x, row, category = data.rows(torch.tensor([2, 0, 1, 2]))
    assert torch.equal(x, torch.eye(3)[[2, 0, 1, 2]])
    assert row.tolist() == [0, 0, 1, 3, 3]
    assert category.tolist() == [1, 7, 4, 1, 7]


def test_a_mixed_sentence_has_the_labels_of_both() -> None:
    data = dataclasses.replace(
        listed(np.eye(2, dtype=np.float16), [(0,), (5,)], 6), gap=Perturbation(0.0, 1.0)
    )
    generator = torch.Generator().manual_seed(0)
    x, row, category = data.draw(torch.tensor([0, 1]), generator, 2)
    assert torch.allclose(x, torch.full((2, 2), 0.5**0.5), atol=1e-3)
    assert sorted(zip(row.tolist(), category.tolist(), strict=True)) == [
        (0, 0),
        (0, 5),
        (1, 0),
        (1, 5),
    ]


@pytest.mark.parametrize("count", [3, 6, 40, 1000])
def test_a_step_meets_what_it_mentions_and_some_others(count: int) -> None:
    known = torch.arange(0, 100, 2)
    row, category = torch.tensor([0, 0, 1, 2]), torch.tensor([8, 4, 98, 8])
    named, generator = torch.unique(category), torch.Generator().manual_seed(0)
    chosen = sample(named, known, count, generator)
    y = Labelled(torch.zeros(3, 1), row, category).among(chosen)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert {4, 8, 98} <= set(chosen.tolist()) <= set(known.tolist())
    assert len(chosen) <= max(3, min(count, 50))
    assert [chosen[line].tolist() for line in y] == [[4, 8], [98], [8]]


def test_learned_vectors_rank_better_and_the_unmentioned_keep_their_names() -> None:
    data, names = sentences(40, 3000)
    judged, _ = sentences(40, 500)
    extended = torch.cat([names, names[:1]])  # the last one is never mentioned
    config = VectorConfig(epochs=5, batch_size=64, sampled=24, lr=1e-2)
    found = learn_vectors(data, judged, extended, config)
    assert found.learned_map > found.names_map + 5
    assert torch.equal(found.w[-1], extended[-1])
    assert torch.allclose(found.w.norm(dim=-1), torch.ones(41), atol=1e-5)
    again = learn_vectors(data, judged, extended, config)
    assert torch.equal(found.w, again.w)


def test_a_sampled_vocabulary_learns_what_a_whole_one_does() -> None:
    data, names = sentences(60, 4000)
    judged, _ = sentences(60, 800)
    whole, part = (
        learn_vectors(data, judged, names, VectorConfig(5, 64, 1e-2, count)).learned_map
        for count in (60, 45)
    )
    assert part == pytest.approx(whole, abs=2)


def test_no_array_has_the_size_of_sentences_times_categories() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple | list) else [out]:
                if isinstance(value, torch.Tensor) and not value.is_sparse:
                    self.elements = max(self.elements, value.numel())
            return out

    data, names = sentences(6000, 3000)
    with Largest() as largest:
        learn_vectors(data, data, names, VectorConfig(0.1, 64, 1e-3, 256))
    # The (C, D) state and the (3000, 512) block that judges; (N, C) would be 18 million.
    assert largest.elements <= 3000 * 512


def test_settings_and_data_are_checked() -> None:
    with pytest.raises(InputError, match="above 0"):
        VectorConfig(epochs=0)
    data = listed(np.zeros((0, 4), np.float16), [], 4)
    with pytest.raises(InputError, match="no sentence"):
        learn_vectors(data, data, torch.eye(4))


def test_judging_looks_at_sentences_alone() -> None:
    data, _ = sentences(10, 200)
    assert judged_map(data, torch.eye(16)[:10]) < judged_map(data, sentences(10, 1)[1])
