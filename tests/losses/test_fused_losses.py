"""The fused losses: their bar of error, their regimes, their memory, and what wraps them."""

from __future__ import annotations

import pytest
import torch
from support.fused_cases import KINDS, LABELS, check, evaluate, leaves, make_labels
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from pvp_fast import losses, spatial_softmax_pool
from pvp_fast.errors import BackendError, InputError
from pvp_fast.losses import CSRLabels, fused
from pvp_fast.losses.asl import ASL
from pvp_fast.losses.ranking import RANKING

SHAPES = [(1, 1, 3), (2, 20, 37), (3, 81, 70), (7, 80, 33), (40, 1000, 24)]
REGIMES = ["small", "chunked", "recompute"]


@pytest.fixture
def tiny_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles in both directions."""
    monkeypatch.setattr(fused, "_TILE", {"cpu": 640})
    monkeypatch.setattr(fused, "_ROWS", {"cpu": 16})


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_error_within_twice_that_of_plain_pytorch(kind: str, shape: tuple[int, int, int]) -> None:
    check(kind, leaves(*shape), make_labels("bool", *shape[:2]))


@pytest.mark.usefixtures("tiny_tiles")
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("kind", KINDS)
def test_label_kinds_in_every_regime(kind: str, regime: str, labels: str) -> None:
    check(kind, leaves(37, 83, 20), make_labels(labels, 37, 83), regime=regime)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_80_and_rows_that_are_not_normalised(kind: str) -> None:
    check(kind, leaves(7, 80, 5, scale=80.0), make_labels("bool", 7, 80))
    check(kind, leaves(7, 80, 5, scale=1.0), make_labels("partial", 7, 80), normalize=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind: str, dtype: torch.dtype) -> None:
    check(kind, leaves(19, 81, 40, dtype=dtype), make_labels("bool", 19, 81))
    tensors = leaves(3, 8, 5, dtype=dtype)
    assert evaluate(losses.asl_loss, tensors, make_labels("bool", 3, 8))[0].dtype == torch.float32


@pytest.mark.parametrize(
    "settings",
    [
        {"detach_focal_weight": False},
        {"detach_focal_weight": False, "clip": 0.0},
        {"detach_focal_weight": False, "gamma_neg": 0.5, "gamma_pos": 0.3},
        {"detach_focal_weight": False, "gamma_neg": 1.0},
        {"gamma_neg": 0.0, "gamma_pos": 0.0},
        {"gamma_neg": 3.0, "clip": 0.0},
        {"gamma_neg": 2.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("scale", [3.0, 80.0])
def test_asymmetric_settings(settings: dict[str, float], scale: float) -> None:
    tensors, y = leaves(9, 30, 12, scale=scale), make_labels("bool", 9, 30)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    found = evaluate(losses.asl_loss, tensors, y, **settings)
    exact = evaluate(losses.asl_loss_ref, wide, y, **settings)
    plain = evaluate(losses.asl_loss_ref, tensors, y, **settings)
    for ours, p, t in zip(found, plain, exact, strict=True):
        assert (ours - t).abs().max() <= 2 * (p - t).abs().max() + 1e-5
    saturated = torch.tensor([[80.0], [-80.0]], requires_grad=True)
    loss = losses.asl_loss(
        saturated, torch.ones(1, 1), torch.tensor([[0], [1]]).bool(), normalize=False, **settings
    )
    (gradient,) = torch.autograd.grad(loss, saturated)
    assert gradient.isfinite().all()
    # σ < ε on the lost positive: exactly no gradient but the focal one.
    if settings.get("detach_focal_weight", True):
        assert gradient[1] == 0


@pytest.mark.parametrize("alpha", [-1.0, 0.6])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 3.0])
def test_focal_settings(alpha: float, gamma: float) -> None:
    tensors, y = leaves(9, 30, 12), make_labels("partial", 9, 30)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    found = evaluate(losses.focal_loss, tensors, y, alpha=alpha, gamma=gamma)
    exact = evaluate(losses.focal_loss_ref, wide, y, alpha=alpha, gamma=gamma)
    for ours, t in zip(found, exact, strict=True):
        torch.testing.assert_close(ours.double(), t, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_at_all_and_reductions(kind: str, regime: str) -> None:
    loss = getattr(losses, f"{kind}_loss")
    for rows, cols, width in ((0, 5, 3), (4, 0, 3), (0, 0, 3)):
        tensors = leaves(rows, cols, width)
        y = torch.zeros(rows, cols, dtype=torch.bool)
        value, *grads = evaluate(loss, tensors, y, regime=regime)
        assert value == 0
        assert not any(g.any() for g in grads)
    x, w, *_ = leaves(6, 7, 3)
    y = make_labels("bool", 6, 7)
    total = loss(x, w, y, reduction="sum", regime=regime)
    rows = loss(x, w, y, reduction="batchmean", regime=regime)
    torch.testing.assert_close(rows, total / 6)
    mean = loss(x, w, y, reduction="mean", regime=regime)
    torch.testing.assert_close(mean, rows if kind == "ranking" else total / 42)


def test_gradients_only_where_they_are_needed() -> None:
    x, w, scale, bias, weight = leaves(5, 9, 4)
    y = make_labels("bool", 5, 9)
    both = torch.autograd.grad(losses.bce_loss(x, w, y), (x, w))
    assert torch.equal(torch.autograd.grad(losses.bce_loss(x.detach(), w, y), w)[0], both[1])
    assert torch.equal(torch.autograd.grad(losses.bce_loss(x, w.detach(), y), x)[0], both[0])
    frozen = x.detach(), w.detach()
    for name, value in (("scale", scale), ("bias", bias), ("weight", weight)):
        (g,) = torch.autograd.grad(losses.bce_loss(*frozen, y, **{name: value}), value)
        assert g.any()
    *_, dx, dw, _, _, _ = fused.similarity_loss(
        *frozen, y, None, None, torch.ones(()), None, None, "bce", [], True, "torch", "chunked",
        [False] * 5, 1.0,
    )  # fmt: skip
    assert dx.numel() == dw.numel() == 0


class Largest(TorchDispatchMode):
    """Elements of the largest tensor any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.numel())
        return out


@pytest.mark.parametrize("regime", ["chunked", "recompute"])
@pytest.mark.parametrize("kind", ["asl", "ranking"])
def test_a_million_categories(kind: str, regime: str) -> None:
    rows, cols, width = 24, 1_000_000, 2
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=generator, requires_grad=True)
    w = torch.randn(cols, width, generator=generator, requires_grad=True)
    y = CSRLabels(torch.arange(rows + 1) * 2, torch.randint(cols, (2 * rows,), generator=generator))
    loss, known = getattr(losses, f"{kind}_loss"), {"asl": ASL, "ranking": RANKING}[kind]
    with Largest() as seen:
        # The operator is one call to a dispatch mode; its inside is what is to be seen.
        value = fused.evaluate(
            fused.Problem(
                known, known.settings(), x.detach(), w.detach(), y, torch.tensor(5.0),
                None, None, True,
            ),
            fused.Needs(True, True, False, False, False),
            "torch",
            regime,
        )  # fmt: skip
    # w and its gradient; the scores would be 24 million.
    assert seen.numel == cols * width
    found = loss(x, w, y, scale=5.0, reduction="sum", regime=regime)
    torch.testing.assert_close(found, value.loss)
    dx, dw = torch.autograd.grad(found, (x, w))
    picked = torch.cat([y.indices, torch.randint(cols, (500,), generator=generator)]).unique()
    if kind == "asl":
        few = w.detach()[picked].double().requires_grad_()
        dense = torch.stack([torch.isin(picked, y.indices[2 * b : 2 * b + 2]) for b in range(rows)])
        part = losses.asl_loss_ref(x.double(), few, dense, scale=5.0, reduction="sum")
        torch.testing.assert_close(
            dw[picked].double(), torch.autograd.grad(part, few)[0], rtol=1e-4, atol=1e-5
        )
    assert dx.isfinite().all()


def test_operators_keep_their_contract() -> None:
    x, w, scale, bias, weight = leaves(3, 7, 5)
    y = make_labels("lists", 3, 7)
    for kind, settings in (("bce", []), ("ranking", [1.0])):
        for labels in ((make_labels("bool", 3, 7), None, None), (None, y.offsets, y.indices)):
            for regime, needs in (("chunked", [True] * 5), ("recompute", [False] * 5)):
                torch.library.opcheck(
                    fused.similarity_loss,
                    (
                        x,
                        w,
                        *labels,
                        scale,
                        bias,
                        weight,
                        kind,
                        settings,
                        True,
                        "torch",
                        regime,
                        needs,
                        0.5,
                    ),
                )


@pytest.mark.parametrize("regime", ["chunked", "recompute"])
@pytest.mark.parametrize("kind", ["asl", "ranking"])
def test_compiles_without_a_break_checkpoints_and_ignores_autocast(kind: str, regime: str) -> None:
    x, w, scale, bias, weight = leaves(5, 9, 6)
    y, lists = make_labels("bool", 5, 9), make_labels("lists", 5, 9)
    fused = getattr(losses, f"{kind}_loss")

    def run(x: Tensor, w: Tensor, scale: Tensor) -> Tensor:
        return fused(x, w, y, scale=scale.exp(), bias=bias, weight=weight, regime=regime)

    scale = torch.tensor(1.0, requires_grad=True)
    expected = torch.autograd.grad(run(x, w, scale), (x, w, scale))
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    again = checkpoint(run, x, w, scale, use_reentrant=False)
    with torch.autocast("cpu", torch.bfloat16):
        inside = run(x, w, scale)
    for value in (compiled(x, w, scale), again, inside):
        for got, want in zip(torch.autograd.grad(value, (x, w, scale)), expected, strict=True):
            torch.testing.assert_close(got, want)

    def listed(x: Tensor, w: Tensor, offsets: Tensor, indices: Tensor) -> Tensor:
        return fused(x, w, CSRLabels(offsets, indices), regime=regime)

    whole = fused(x, w, y, regime=regime)
    torch.testing.assert_close(listed(x, w, lists.offsets, lists.indices), whole)


def _every_operator(x: Tensor, w: Tensor, scale: Tensor) -> list[Tensor]:
    """Values and gradients of one loss of each operator."""
    y = make_labels("bool", 5, 5)
    values = [
        losses.asl_loss(x, w, y, scale=scale),
        losses.ranking_loss(x, w, make_labels("lists", 5, 5), scale=scale, regime="recompute"),
        losses.clip_loss(x, w, scale=scale),
        spatial_softmax_pool(x[:, None], w, scale=scale).sum(),
    ]
    return [t for v in values for t in (v, *torch.autograd.grad(v * 0.5, (x, w, scale)))]


class _Names(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == "pvp_fast":
            self.seen.add(func._opname)
        return func(*args, **(kwargs or {}))


def test_who_watches_sees_the_operators_and_a_plain_call_gives_the_same_bits() -> None:
    pairs = [torch.randn(5, 9, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    inputs = [t.requires_grad_() for t in (*pairs, torch.tensor(7.0))]
    plain = _every_operator(*inputs)
    with _Names() as names:
        watched = _every_operator(*inputs)
    assert all(map(torch.equal, plain, watched))
    assert names.seen == {
        f"{name}{suffix}"
        for name in ("similarity_loss", "clip_loss", "spatial_softmax_pool")
        for suffix in ("", "_backward")
    }
    with torch._subclasses.FakeTensorMode() as mode:
        x, w, scale = (mode.from_tensor(t) for t in inputs)
        value = losses.clip_loss(x, w, scale=scale) + spatial_softmax_pool(x[:, None], w).sum()
        fake = torch.autograd.grad(value, (x, w, scale))
    assert [t.shape for t in fake] == [t.shape for t in inputs]
    with pytest.raises(RuntimeError):
        torch.func.grad(lambda x: losses.clip_loss(x, inputs[1]))(inputs[0])


BATCHES = {
    "asl": lambda x, w, y: losses.asl_loss(x, w, y, scale=5.0),
    "asl, made again": lambda x, w, y: losses.asl_loss(x, w, y, scale=5.0, regime="recompute"),
    "asl, bfloat16": lambda x, w, y: losses.asl_loss(x.bfloat16(), w.bfloat16(), y, scale=5.0),
    "asl, torch": lambda x, w, y: losses.asl_loss(x, w, y, scale=5.0, backend="torch"),
    "ranking": lambda x, w, y: losses.ranking_loss(x, w, y, scale=5.0),
    "clip": lambda x, w, y: losses.clip_loss(x, w, scale=5.0),
    "clip, made again": lambda x, w, y: losses.clip_loss(x, w, scale=5.0, regime="recompute"),
    "clip, many": lambda x, w, y: losses.clip_loss(x.repeat(90, 1), w.repeat(90, 1), scale=5.0),
    "clip, torch": lambda x, w, y: losses.clip_loss(x, w, scale=5.0, backend="torch"),
    "pool": lambda x, w, y: spatial_softmax_pool(x.view(3, 4, 8), w).sum(),
    "custom": lambda x, w, y: losses.chunked_loss(lambda s, t: (s - t) ** 2, x, w, y),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_a_batch_of_incoming_gradients_at_once(kind: str) -> None:
    """As torch.autograd.functional.jacobian(vectorize=True) asks for them."""
    x, w = leaves(12, 12, 8)[:2]
    y = make_labels("bool", 12, 12)
    value = BATCHES[kind](x, w, y)
    incoming = torch.tensor([1.0, -2.0, 0.5], dtype=value.dtype)
    batch = torch.autograd.grad(value, (x, w), incoming, is_grads_batched=True, retain_graph=True)
    for at, one in enumerate(incoming):
        alone = torch.autograd.grad(value, (x, w), one, retain_graph=True)
        for found, expected in zip(batch, alone, strict=True):
            torch.testing.assert_close(found[at], expected)


@pytest.mark.parametrize("kind", BATCHES)
def test_what_is_done_to_gradients_does_not_reach_a_retained_graph(kind: str) -> None:
    x, w = (t.detach().requires_grad_() for t in leaves(12, 12, 8)[:2])
    value = BATCHES[kind](x, w, make_labels("bool", 12, 12))
    value.backward(retain_graph=True)
    first = x.grad.clone(), w.grad.clone()
    for t in (x, w):
        t.grad.zero_()  # as Optimizer.zero_grad(set_to_none=False)
    value.backward()
    torch.testing.assert_close((x.grad, w.grad), first)


class _Named(Tensor):
    """A tensor with a name of its own, as fastai's and MONAI's are."""


@pytest.mark.parametrize("kind", BATCHES)
def test_tensors_of_other_classes_and_without_values(kind: str) -> None:
    x, w = (t.detach() for t in leaves(12, 12, 8)[:2])
    y = make_labels("bool", 12, 12)
    plain = BATCHES[kind](x, w, y)
    named = w.clone().as_subclass(_Named).requires_grad_()
    value = BATCHES[kind](x.as_subclass(_Named), named, y.as_subclass(_Named))
    value.backward()
    torch.testing.assert_close(value.as_subclass(Tensor), plain)
    learned = w.clone().requires_grad_()
    BATCHES[kind](x, learned, y).backward()
    torch.testing.assert_close(named.grad.as_subclass(Tensor), learned.grad)
    if kind != "custom":
        assert BATCHES[kind](x.to("meta"), w.to("meta"), y.to("meta")).shape == plain.shape


@pytest.mark.parametrize("kind", BATCHES)
def test_the_defaults_of_a_program_are_its_own(kind: str) -> None:
    """torch.set_default_device and set_default_dtype change nothing of tensors that are there."""
    x, w = (t.detach().requires_grad_() for t in leaves(12, 12, 8)[:2])
    y = make_labels("bool", 12, 12)
    value = BATCHES[kind](x, w, y)
    plain = value, *torch.autograd.grad(value, (x, w))
    usual = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            value = BATCHES[kind](x, w, y)
            found = value, *torch.autograd.grad(value, (x, w))
    finally:
        torch.set_default_dtype(usual)
    assert all(map(torch.equal, found, plain))


def test_functional_and_second_derivatives_in_float64() -> None:
    x, w, *_ = (t.detach() for t in leaves(3, 7, 5))
    y = make_labels("bool", 3, 7)
    wide = x.double(), w.double()
    functional = torch.func.grad(lambda a, b: losses.asl_loss(a, b, y), argnums=1)(*wide)
    w.requires_grad_()
    (first,) = torch.autograd.grad(losses.asl_loss(x, w, y), w, create_graph=True)
    torch.testing.assert_close(functional.float(), first)
    with pytest.raises(BackendError, match="float64"):
        first.sum().backward()
    leaf = wide[0].requires_grad_()
    assert torch.autograd.gradgradcheck(lambda a: losses.siglip_loss(a, wide[1], y), leaf)


def test_errors_name_the_argument() -> None:
    x, w, y = torch.randn(2, 3), torch.randn(4, 3), torch.zeros(2, 4)
    for options, name in (
        ({"regime": "fast"}, "regime"),
        ({"backend": "cuda"}, "backend"),
        ({"scale": torch.ones(2)}, "scale"),
        ({"weight": torch.ones(3)}, "weight"),
        ({"reduction": "median"}, "reduction"),
    ):
        with pytest.raises(InputError, match=name):
            losses.focal_loss(x, w, y, **options)
    with pytest.raises(InputError, match="floating point"):
        losses.asl_loss(x.long(), w, y)
    with pytest.raises(InputError, match="y is on meta"):
        losses.asl_loss(x, w, y.to("meta"))
    with pytest.raises(InputError, match="2 rows"):
        losses.asl_loss(x, w, CSRLabels(torch.tensor([0, 1]), torch.tensor([0])))
