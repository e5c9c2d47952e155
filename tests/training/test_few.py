"""Learning from labelled images: better on others, no further than it pays, text stays."""

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
from pvp_fast.training.few import FewConfig, _with_new, adapt_head

C, D = 8, 32
FAST = FewConfig(pulls=(0.03, 0.3), folds=3, steps=20)


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


def score(h: Head, z: Tensor, labels: Tensor) -> float:
    return 100 * mean_average_precision(h.global_cosines(z), labels)


@pytest.mark.parametrize("loss", ["bce", "asl"])
def test_it_is_better_on_other_images_and_the_text_stays(loss: str) -> None:
    old = head()
    before = copy.deepcopy(old)
    found = adapt_head(old, *images(120, 1), config=FewConfig((0.03, 0.3), 3, loss, steps=20))
    fresh = images(400, 2)
    assert found.pull is not None
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


def test_images_that_tell_nothing_change_nothing() -> None:
    z, labels = images(60, 1)
    shuffled = labels[torch.randperm(60, generator=torch.Generator().manual_seed(5))]
    old = head()
    # Names that are already right: the images have nothing to add.
    single = torch.arange(60) % C
    labels = F.one_hot(single, C).to(torch.int8) * 2 - 1
    found = adapt_head(old, old.adapter.original[single], labels, config=FAST)
    assert found.pull is None
    assert found.head is old
    assert found.before == found.after
    assert found.before == 100
    found = adapt_head(old, z, shuffled, config=FAST)
    assert found.after >= found.before


def test_unknown_labels_have_no_part() -> None:
    z, labels = images(80, 1)
    unknown = torch.rand(labels.shape, generator=torch.Generator().manual_seed(4)) < 0.4
    part = labels.masked_fill(unknown, 0)
    part[:, 3] = 0
    old = head()
    found = adapt_head(old, z, part, config=FAST)
    assert found.pull is not None
    # A category of which nothing is known keeps its vector.
    a, b = (h.adapter.class_vectors().detach()[3] for h in (old, found.head))
    assert float(F.cosine_similarity(a, b, dim=0)) > 0.9999
    assert torch.equal(found.head.platt, adapt_head(old, z, part.clone(), config=FAST).head.platt)


@pytest.mark.parametrize("length", [0.1, 0.9, 3.0])
def test_every_vector_becomes_a_mixture_of_unit_ones(length: float) -> None:
    adapter = head().adapter
    alpha = adapter.alpha.detach()[:, None]
    new = length * unit(C, D, seed=7)
    made = _with_new(adapter, new, alpha)
    first, wanted = adapter.class_vectors().detach()[:, :D], made.class_vectors().detach()
    expected = torch.cat([first, new], 1)
    scale = wanted.norm(dim=1, keepdim=True) / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(wanted, expected * scale, atol=2e-3, rtol=0)
    assert bool((scale <= 1 + 1e-3).all())


def test_views_and_a_local_branch_go_along() -> None:
    z, labels = images(60, 1)
    old = head(local=True)
    near = 0.1 * (labels > 0).float()
    views = torch.stack([z, F.normalize(z + 0.05 * unit(60, D, seed=8), dim=1)])
    found = adapt_head(old, views, labels, local=near, config=FAST)
    assert found.before == pytest.approx(
        100 * mean_average_precision(old.cosines(z, local=near), labels)
    )
    assert found.head.local is old.local


def test_what_cannot_be_learned_from_is_refused() -> None:
    z, labels = images(20, 1)
    for views, y in ((z[:9], labels[:9]), (z, -labels.abs())):
        with pytest.raises(InputError, match="too few"):
            adapt_head(head(), views, y)
    with pytest.raises(InputError, match=r"\(N, 8\)"):
        adapt_head(head(), z, labels[:, :3])
    with pytest.raises(InputError, match="asl"):
        FewConfig(loss="hinge")
    with pytest.raises(InputError, match="folds"):
        FewConfig(folds=1)
