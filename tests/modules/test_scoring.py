"""The final score: its definition, and that everybody who asks for it gets the same one."""

from __future__ import annotations

import pytest
import torch
from support.artifacts import make
from torch import Tensor
from torch.nn import functional as F

from pvp_fast.errors import InputError
from pvp_fast.modules.adapters import DualAdapter
from pvp_fast.modules.scoring import Head, LocalBranch, local_scores, mixture, probability
from pvp_fast.topk import TagIndex


def features(rows: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """z (B, 8), regions (B, 4, 8) and a mask (B, 4)."""
    generator = torch.Generator().manual_seed(seed)
    z = F.normalize(torch.randn(rows, 8, generator=generator), dim=-1)
    regions = F.normalize(torch.randn(rows, 4, 8, generator=generator), dim=-1)
    mask = torch.ones(rows, 4, dtype=torch.bool)
    mask[0, 2:] = False
    return z, regions, mask


def by_hand(head: Head, z: Tensor, regions: Tensor, mask: Tensor | None = None) -> Tensor:
    """METHOD sections 4 and 5 in float64, category by category."""
    a = head.adapter.double()
    z, regions = z.double(), regions.double()
    query = F.normalize(a.query_adapter(z), dim=-1)
    columns = []
    for c in range(len(head)):
        old = F.normalize(a.class_adapter(a.original[c : c + 1])[0], dim=0)
        v = F.normalize(a.visual[c].mean(0), dim=0)
        alpha, beta = a.alpha[c], a.beta[c]
        s = (1 - alpha) * (z @ old)
        s = s + alpha * ((1 - beta) * (query @ a.text[c]) + beta * (query @ v))
        if head.local is not None:
            near = regions @ head.local.vectors[c].double()
            heat = near * head.local.temperature.double()
            if mask is not None:
                heat = heat.masked_fill(~mask, -torch.inf)
            mu = head.local.weight[c].double()
            s = (1 - mu) * s + mu * (heat.softmax(1) * near).sum(1)
        columns.append(s)
    return torch.stack(columns, 1).detach()


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_cosines_are_those_of_the_definition(local: bool, masked: bool) -> None:
    z, regions, mask = features()
    given = mask if masked else None
    expected = by_hand(make(local=local).head.to("cpu"), z, regions, given)
    head = make(local=local).head
    found = head.cosines(z, regions, given)
    assert not found.requires_grad
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=3e-7)
    p = torch.sigmoid(expected * head.platt[:, 0] + head.platt[:, 1])
    torch.testing.assert_close(head.probabilities(found).double(), p, rtol=0, atol=1e-6)
    assert torch.equal(head.accepted(found), p >= head.thresholds)
    assert torch.equal(head.accepted(found, 0.4), p >= 0.4)
    assert head.accepted(found, 0.0).all()
    if local:
        near = head.local_cosines(regions, given)
        assert torch.equal(head.cosines(z, local=near), found)


@pytest.mark.parametrize("local", [False, True])
def test_the_linear_form_is_the_same_score(local: bool) -> None:
    """What an index holds: exactly the stable class vectors times slope and weight."""
    head = make(local=local).head
    z, regions, _ = features(200)
    vectors, intercept, gain = head.linear()
    folded = head.adapter.stable_class_vectors() * head.platt[:, :1]
    if head.local is not None:
        folded = folded * (1 - head.local.weight)[:, None]
    assert torch.equal(vectors, folded)
    assert torch.equal(intercept, head.platt[:, 1])
    best = TagIndex(vectors, normalize=False).topk(
        head.queries(z), 3, torch.full((3,), -torch.inf), intercept
    )
    logits = torch.empty(200, 3).scatter_(1, best.indices, best.scores)
    if gain is not None:
        logits = logits + head.local_cosines(regions) * gain
    cosines = head.cosines(z, regions)
    expected = cosines * head.platt[:, 0] + head.platt[:, 1]
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-6)
    away = (logits - head.cuts()).abs() > 2e-6
    assert away.sum() > 590
    assert torch.equal((logits >= head.cuts())[away], head.accepted(cosines)[away])


@pytest.mark.parametrize("local", [False, True])
def test_a_part_of_a_head_scores_as_the_whole(local: bool) -> None:
    head = make(local=local).head
    z, regions, _ = features()
    part, rows = head.take([2, 0]), [2, 0]
    assert (len(part), part.width) == (2, 8)
    assert torch.equal(part.linear().vectors, head.linear().vectors[rows])
    assert torch.equal(part.thresholds, head.thresholds[rows])
    found, whole = part.cosines(z, regions), head.cosines(z, regions)
    torch.testing.assert_close(found, whole[:, rows], rtol=0, atol=2e-7)


def test_a_copy_shares_nothing() -> None:
    head = make(local=True).head
    z, regions, _ = features()
    before = head.cosines(z, regions)
    copy = head.to("cpu")
    assert copy.local is not None
    with torch.no_grad():
        parts = (copy.local.vectors, copy.local.weight, copy.local.temperature)
        for tensor in (*copy.adapter.state_dict().values(), copy.platt, *parts):
            tensor.zero_()
    assert torch.equal(make(local=True).head.cosines(z, regions), before)
    assert torch.equal(head.to("cpu").cosines(z, regions), before)
    assert float(head.platt.sum()) != 0
    other = head.calibrated(head.platt + 1, head.thresholds)
    assert torch.equal(other.cosines(z, regions), before)
    assert not torch.equal(other.probabilities(before), head.probabilities(before))


def test_uncalibrated_heads_rank_as_their_cosines() -> None:
    head = make().head
    z, regions, _ = features()
    fresh = Head.uncalibrated(head.adapter)
    assert torch.equal(fresh.cosines(z), head.cosines(z, regions))
    assert torch.equal(fresh.probabilities(head.cosines(z)), head.cosines(z).sigmoid())


def test_what_a_head_cannot_use_is_named() -> None:
    head, both = make().head, make(local=True).head
    z, regions, _ = features()
    with pytest.raises(InputError, match=r"regions: None for 5 images"):
        both.cosines(z)
    with pytest.raises(InputError, match=r"regions: \(4, 4, 8\) for 5 images"):
        both.cosines(z, regions[:4])
    with pytest.raises(InputError, match=r"local has shape \(5, 2\); give \(5, 3\)"):
        both.cosines(z, local=torch.zeros(5, 2))
    with pytest.raises(InputError, match="no local branch"):
        head.local_cosines(regions)
    with pytest.raises(InputError, match=r"x has shape \(5, 7\)"):
        head.cosines(z[:, :7])
    with pytest.raises(InputError, match=r"platt has shape \(3,\); give \(3, 2\)"):
        Head(head.adapter, torch.ones(3), head.thresholds)
    with pytest.raises(InputError, match=r"local vectors have shape \(2, 8\)"):
        Head(head.adapter, head.platt, head.thresholds, both.take([0, 1]).local)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weight", torch.ones(2), "shape"),
        ("weight", torch.full((3,), 1.5), "outside 0 to 1"),
        ("weight", torch.full((3,), torch.nan), "outside 0 to 1"),
        ("temperature", torch.ones(2), "shape"),
        ("temperature", torch.zeros(1), "above 0"),
        ("temperature", torch.tensor([torch.nan]), "above 0"),
    ],
)
def test_a_local_branch_of_other_values_is_refused(name: str, value: Tensor, message: str) -> None:
    branch = make(local=True).head.local
    assert branch is not None
    with pytest.raises(InputError, match=message):
        LocalBranch(**{**vars(branch), name: value})


def test_probability_is_the_logistic_of_the_line() -> None:
    p = probability(torch.tensor([[0.5, 0.0]]), torch.tensor([[2.0, -1.0], [3.0, 0.0]]))
    torch.testing.assert_close(p, torch.tensor([[0.5, 0.5]]))


def test_a_mixture_ends_at_its_parts() -> None:
    first, second = torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, 7.0]])
    assert torch.equal(mixture(first, second, torch.tensor([0.0, 1.0])), torch.tensor([[1.0, 7.0]]))
    assert torch.equal(mixture(first, second, torch.tensor([0.5, 0.5])), torch.tensor([[3.0, 4.5]]))


def test_a_head_of_many_categories_keeps_each_ones_bits() -> None:
    generator = torch.Generator().manual_seed(1)
    bank = F.normalize(torch.randn(131, 8, generator=generator), dim=-1)
    adapter = DualAdapter(bank, bank.flip(0), bank[:, None])
    branch = LocalBranch(bank, torch.full((131,), 0.3), torch.tensor([20.0]))
    head = Head.uncalibrated(adapter, branch)
    few = head.take(range(7))
    _, regions, _ = features()
    assert torch.equal(few.linear().vectors, head.linear().vectors[:7])
    assert torch.equal(few.local_cosines(regions), head.local_cosines(regions)[:, :7])
    assert torch.equal(local_scores(regions, bank, 20.0), head.local_cosines(regions))
