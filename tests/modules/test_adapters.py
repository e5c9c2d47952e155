"""The dual adapter: its formula, its start, its factorisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pvp_fast.errors import InputError
from pvp_fast.modules.adapters import DualAdapter


def unit(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def make(count: int = 5, width: int = 8, prompts: int = 2, **options: Any) -> DualAdapter:
    return DualAdapter(
        unit(count, width, seed=1),
        unit(count, width, seed=2),
        unit(count, prompts, width, seed=3),
        **options,
    )


def trained(adapter: DualAdapter) -> DualAdapter:
    """Move every parameter off its start."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter))
    return adapter


def formula(m: DualAdapter, x: torch.Tensor) -> torch.Tensor:
    """METHOD section 5, term by term."""

    def adapt(side: Any, rows: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(rows @ side.down.T) @ side.up.T
        return F.normalize(rows + side.residual * inner, dim=-1)

    v = F.normalize(m.visual.mean(dim=1), dim=-1)
    a = adapt(m.query_adapter, x)
    new = (1 - m.beta) * (a @ m.text.T) + m.beta * (a @ v.T)
    return (1 - m.alpha) * (x @ adapt(m.class_adapter, m.original).T) + m.alpha * new


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 6),
    width=st.integers(2, 9),
    prompts=st.integers(1, 3),
    bottleneck=st.integers(1, 5),
)
def test_scores_follow_the_formula_and_factor_into_one_product(
    count: int, width: int, prompts: int, bottleneck: int
) -> None:
    adapter = trained(make(count, width, prompts, bottleneck=bottleneck))
    x = unit(4, width, seed=4)
    scores = adapter(x)
    assert scores.shape == (4, count)
    torch.testing.assert_close(scores, formula(adapter, x))
    assert torch.equal(scores, adapter.queries(x) @ adapter.class_vectors().T)
    assert adapter.queries(x).shape == (4, 2 * width)
    assert adapter.class_vectors().shape == (count, 2 * width)


def test_starts_as_the_plain_mixture_of_the_banks() -> None:
    alpha = torch.tensor([0.1, 0.5, 0.9, 0.3, 0.7], dtype=torch.float64)
    adapter = make(alpha=alpha, beta=0.25)
    x = unit(3, 8, seed=4)
    v = F.normalize(adapter.visual.mean(dim=1), dim=-1)
    new = 0.75 * (x @ adapter.text.T) + 0.25 * (x @ v.T)
    expected = (1 - alpha) * (x @ adapter.original.T) + alpha * new
    torch.testing.assert_close(adapter(x), expected)


@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_an_edge_is_nearly_one_branch_and_can_still_learn(edge: float) -> None:
    adapter = make(alpha=edge, beta=edge)
    assert bool(((adapter.alpha - edge).abs() <= 0.001 + 1e-9).all())
    adapter(unit(3, 8, seed=4))[:, 1:].sum().backward()
    for logit in (adapter.alpha_logit, adapter.beta_logit):
        assert bool(logit.grad[1:].abs().gt(0).all())  # type: ignore[index]
        assert bool(logit.grad[:1].eq(0).all())  # type: ignore[index]


def test_gradients_are_right_and_reach_the_query() -> None:
    adapter = trained(make(count=3, width=4, bottleneck=2))
    parameters = dict(adapter.named_parameters())
    names = list(parameters)

    def scores(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(adapter, dict(zip(names, values, strict=True)), (x,))

    values = [p.detach().clone().requires_grad_() for p in parameters.values()]
    assert torch.autograd.gradcheck(scores, (unit(2, 4, seed=4).requires_grad_(), *values))


def test_banks_are_copies_and_take_no_gradient() -> None:
    original = unit(2, 4, seed=1)
    adapter = DualAdapter(original, unit(2, 4, seed=2), unit(2, 1, 4, seed=3))
    original.zero_()
    assert bool((adapter.original.norm(dim=-1) > 0.9).all())
    assert not any(bank.requires_grad for bank in (adapter.original, adapter.text, adapter.visual))


def test_state_dict_round_trip_with_and_without_banks() -> None:
    adapter = trained(make(bottleneck=3, residual=0.35))
    state = adapter.state_dict()
    banks = (adapter.original, adapter.text, adapter.visual)
    small = {k: v for k, v in state.items() if k not in ("original", "text", "visual")}
    x = unit(3, 8, seed=4)
    for chosen in (state, small):
        assert torch.equal(DualAdapter.from_state(*banks, chosen)(x), adapter(x))
    with pytest.raises(InputError, match="does not fit"):
        DualAdapter.from_state(*(bank[:2] for bank in banks), small)
    with pytest.raises(InputError, match="query_adapter"):
        DualAdapter.from_state(*banks, {})


def test_extended_keeps_every_bit_of_what_was_there() -> None:
    adapter = trained(make(bottleneck=3, residual=0.35))
    before = {name: value.clone() for name, value in adapter.state_dict().items()}
    addition = (unit(2, 8, seed=11), unit(2, 8, seed=12), unit(2, 2, 8, seed=13))
    larger = adapter.extended(*addition, alpha=0.8, beta=0.2)
    state = larger.state_dict()
    for name, value in before.items():
        assert torch.equal(adapter.state_dict()[name], value)
        assert torch.equal(state[name][: len(value)] if value.ndim else state[name], value)
    assert torch.equal(larger.visual[5:], addition[2])
    torch.testing.assert_close(larger.alpha[5:], torch.full((2,), 0.8, dtype=torch.float64))
    x = unit(3, 8, seed=4)
    torch.testing.assert_close(larger(x)[:, :5], adapter(x))
    with pytest.raises(InputError, match="3 prompts a category"):
        adapter.extended(*addition[:2], unit(2, 3, 8, seed=13))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"original": torch.zeros(5)}, "original has shape"),
        ({"text": torch.zeros(4, 8)}, "text has shape"),
        ({"visual": torch.zeros(5, 8)}, "visual has shape"),
        ({"visual": torch.zeros(5, 0, 8)}, "visual has shape"),
        ({"text": torch.full((5, 8), 3.0)}, "text has rows"),
        ({"text": torch.full((5, 8), float("nan"))}, "text has rows"),
        ({"alpha": 1.5}, "alpha="),
        ({"beta": float("nan")}, "beta="),
        ({"alpha": torch.zeros(3)}, "alpha has shape"),
        ({"bottleneck": 0}, "bottleneck=0"),
    ],
)
def test_refusals_name_the_argument(change: dict[str, Any], match: str) -> None:
    good = {
        "original": unit(5, 8, seed=1),
        "text": unit(5, 8, seed=2),
        "visual": unit(5, 2, 8, seed=3),
    }
    with pytest.raises(InputError, match=match):
        DualAdapter(**{**good, **change})
    with pytest.raises(InputError, match=r"give \(B, 8\)"):
        DualAdapter(**good)(torch.zeros(2, 7))


def test_stable_class_vectors_do_not_depend_on_the_number_of_categories() -> None:
    generator = torch.Generator().manual_seed(4)
    bank = F.normalize(torch.randn(21, 64, generator=generator), dim=-1)
    mix = torch.rand(21, generator=generator)

    def first(count: int) -> DualAdapter:
        part = bank[:count]
        adapter = DualAdapter(part, part, part[:, None], alpha=mix[:count], beta=mix[:count])
        with torch.no_grad():
            adapter.class_adapter.up.fill_(0.02)
        return adapter

    whole = first(21).stable_class_vectors(tile=8)
    torch.testing.assert_close(whole, first(21).class_vectors().detach())
    for count in range(1, 21):
        assert torch.equal(first(count).stable_class_vectors(tile=8), whole[:count])
