"""Learning from images: better on others, no further than it pays, text stays."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pvp_fast.errors import InputError
from pvp_fast.metrics import mean_average_precision
from pvp_fast.modules.adapters import DualAdapter
from pvp_fast.modules.scoring import Head, LocalBranch
from pvp_fast.training.few import FewConfig, Images, _with_new, adapt_head

C, D = 8, 32
FAST = FewConfig((0.15, 0.6), folds=4, rounds=3)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def head(local: bool = False) -> Head:
    """Class vectors that text taught; images lie around others, :func:`images`."""
    bank = unit(C, D)
    adapter = DualAdapter(bank, F.normalize(bank + 0.1 * unit(C, D, seed=1), dim=1), bank[:, None])
    with torch.no_grad():
        adapter.query_adapter.up.copy_(0.1 * unit(D, len(adapter.query_adapter.down), seed=2))
    branch = LocalBranch(unit(C, D, seed=3), torch.full((C,), 0.3), torch.tensor([20.0]))
    return Head.uncalibrated(adapter, branch if local else None)


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(count, C, generator=generator) < 0.2
    looks = F.normalize(unit(C, D) + 1.5 * unit(C, D, seed=9), dim=1)
    noise = 0.25 * torch.randn(count, D, generator=generator)
    return F.normalize(labels.float() @ looks + noise, dim=1), labels.to(torch.int8) * 2 - 1


def score(h: Head, z: Tensor, labels: Tensor, local: Tensor | None = None) -> float:
    return 100 * mean_average_precision(h.cosines(z, local=local), labels)


def test_it_is_better_on_other_images_and_the_text_stays() -> None:
    old = head()
    before = copy.deepcopy(old)
    found = adapt_head(old, *images(120, 1), config=FAST)
    fresh = images(400, 2)
    assert found.text_weight is not None
    assert found.after > found.before
    assert score(found.head, *fresh) > score(old, *fresh) + 3
    for name in ("original", "text"):
        assert torch.equal(getattr(found.head.adapter, name), getattr(old.adapter, name)), name
    state, unchanged = old.adapter.state_dict(), before.adapter.state_dict()
    assert all(torch.equal(state[name], unchanged[name]) for name in unchanged)
    # Calibrated on left-out images.
    kept = found.head.accepted(found.head.cosines(fresh[0]))
    right = float((kept & (fresh[1] > 0)).sum() / kept.sum())
    assert right > 0.5


def test_images_without_labels_help_the_few_with_labels() -> None:
    old, few, fresh = head(), images(40, 1), images(400, 2)
    alone = adapt_head(old, *few, config=FAST)
    both = adapt_head(old, *few, unlabelled=Images(images(400, 3)[0]), config=FAST)
    assert both.text_weight is not None
    assert score(both.head, *fresh) > max(score(old, *fresh), score(alone.head, *fresh)) + 2


def test_views_of_fewer_images_than_dimensions_do_no_harm() -> None:
    """What only views show has no spread among the images: it must not be blown up."""
    old, (z, labels), fresh = head(), images(24, 1), images(400, 2)
    generator = torch.Generator().manual_seed(3)
    blur = 0.05 * torch.randn(3, *z.shape, generator=generator)
    views = torch.cat([z[None], F.normalize(z + blur, dim=2)])
    plain = adapt_head(old, z, labels, config=FAST)
    seen = adapt_head(old, views, labels, config=FAST)
    assert seen.text_weight is not None
    assert score(seen.head, *fresh) > score(plain.head, *fresh) - 0.5


def test_images_that_tell_nothing_change_nothing() -> None:
    z, labels = images(60, 1)
    shuffled = labels[torch.randperm(60, generator=torch.Generator().manual_seed(5))]
    old = head()
    # Names that are already right: the images have nothing to add.
    single = torch.arange(60) % C
    labels = F.one_hot(single, C).to(torch.int8) * 2 - 1
    found = adapt_head(old, old.adapter.original[single], labels, config=FAST)
    assert found.text_weight is None
    assert found.head is old
    assert found.before == found.after
    assert found.before == 100
    found = adapt_head(old, z, shuffled, config=FAST)
    assert found.after >= found.before


def test_unknown_labels_are_guessed_and_not_taken_for_absent() -> None:
    z, labels = images(200, 1)
    unknown = torch.rand(labels.shape, generator=torch.Generator().manual_seed(4)) < 0.6
    part = labels.masked_fill(unknown, 0)
    part[:, 3] = 0
    old, fresh = head(), images(400, 2)
    found = adapt_head(old, z, part, config=FAST)
    assert found.text_weight is not None
    absent = adapt_head(old, z, torch.where(part > 0, 1, -1).to(torch.int8), config=FAST)
    assert score(found.head, *fresh) > score(absent.head, *fresh)
    # A category of which nothing is known keeps about what text said of it.
    one = [
        100 * mean_average_precision(h.cosines(fresh[0])[:, 3:4], fresh[1][:, 3:4])
        for h in (old, found.head)
    ]
    assert one[1] > one[0] - 3
    assert bool(found.head.platt.isfinite().all())


@pytest.mark.parametrize("length", [0.1, 0.5])
def test_every_vector_becomes_a_mixture_of_unit_ones(length: float) -> None:
    adapter = head().adapter
    kept, new = torch.linspace(0.05, 0.9, C)[:, None], length * unit(C, D, seed=7)
    made = _with_new(adapter, kept, new)
    first = kept * adapter.class_vectors().detach()[:, :D]
    torch.testing.assert_close(
        made.class_vectors().detach(), torch.cat([first, new], 1), atol=2e-3, rtol=0
    )


@pytest.mark.parametrize("local", [False, True])
def test_the_head_computes_the_sum_of_text_and_images(
    local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pvp_fast.training import few

    seen = {}
    composed = few._composed

    def watched(given: Head, rows: few._Rows, fit: few._Fit, learned: few._Learned, *rest: Tensor):
        made = composed(given, rows, fit, learned, *rest)
        scores = fit.scores(learned)[: rows.plain]
        seen["standardised"] = (scores - scores.mean(0)) / scores.std(0)
        seen["platt"] = rest[0]
        return made

    monkeypatch.setattr(few, "_composed", watched)
    z, labels = images(80, 1)
    near = 0.1 * (labels > 0).float() + 0.01 * unit(80, C, seed=4) if local else None
    views = torch.stack([z, F.normalize(z + 0.05 * unit(80, D, seed=8), dim=1)])
    old = head(local)
    found = adapt_head(old, views, labels, local=near, config=FAST)
    assert found.text_weight is not None
    logits = found.head.cosines(z, local=near) * found.head.platt[:, 0] + found.head.platt[:, 1]
    expected = seen["standardised"] * seen["platt"][:, 0] + seen["platt"][:, 1]
    torch.testing.assert_close(logits, expected, atol=0.02, rtol=0.01)


def test_what_cannot_be_learned_from_is_refused() -> None:
    z, labels = images(20, 1)
    for views, y in ((z[:9], labels[:9]), (z, -labels.abs())):
        with pytest.raises(InputError, match="too few"):
            adapt_head(head(), views, y)
    with pytest.raises(InputError, match=r"\(N, 8\)"):
        adapt_head(head(), z, labels[:, :3])
    with pytest.raises(InputError, match="text_weights"):
        FewConfig(())
    with pytest.raises(InputError, match="folds"):
        FewConfig(folds=1)
