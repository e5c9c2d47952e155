"""A loss of one's own through chunked_loss: float64 truth, labels, gradients, memory, errors."""

from __future__ import annotations

import pytest
import torch
from support.fused_cases import LABELS, arrays, leaves, make_labels
from torch import Tensor

from pvp_fast.errors import BackendError, InputError
from pvp_fast.losses import chunked_loss, fused


def squared(scores: Tensor, targets: Tensor) -> Tensor:
    return (scores.sigmoid() - targets) ** 2


def bounded(scores: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """log(1 + Σ absent exp s) + log(1 + Σ present exp −s), arXiv 2208.02955: no sum of entries."""
    signed = torch.where(targets > 0.5, -scores, scores)
    parts = (known & (targets > 0.5), known & (targets <= 0.5))
    one = scores.new_zeros(len(scores), 1)
    return sum(  # type: ignore[return-value]
        torch.cat([one, signed.masked_fill(~part, float("-inf"))], 1).logsumexp(1) for part in parts
    )


@pytest.fixture
def tiny_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles in both directions."""
    monkeypatch.setattr(fused, "_TILE", {"cpu": 640})
    monkeypatch.setattr(fused, "_ROWS", {"cpu": 16})
    monkeypatch.setattr(fused, "_WHOLE_TILE", 640)


def gradients(value: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(value, tensors, allow_unused=True)
    return [value.detach(), *(g for g in found if g is not None)]


def plain(function, tensors: list[Tensor], y, normalize: bool, by_row: bool) -> list[Tensor]:  # type: ignore[no-untyped-def]
    """The definition, written out in the dtype of the inputs."""
    x, w, scale, bias, weight = tensors
    a, b = (t / t.norm(dim=1, keepdim=True) for t in (x, w)) if normalize else (x, w)
    scores = scale * a @ b.T + bias
    targets, known = (torch.from_numpy(array) for array in arrays(y, len(w)))
    if by_row:
        return gradients(function(scores, targets.to(scores.dtype), known).sum(), tensors)
    return gradients((function(scores, targets.to(scores.dtype)) * known * weight).sum(), tensors)


@pytest.mark.usefixtures("tiny_tiles")
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize(("function", "by_row"), [(squared, False), (bounded, True)])
def test_error_within_twice_that_of_plain_pytorch(
    function,  # type: ignore[no-untyped-def]
    by_row: bool,
    labels: str,
    normalize: bool,
) -> None:
    tensors, y = leaves(37, 83, 20), make_labels(labels, 37, 83)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    exact, same = (plain(function, t, y, normalize, by_row) for t in (wide, tensors))
    x, w, scale, bias, weight = tensors
    options = {"by_row": True} if by_row else {"weight": weight}
    before = [t.detach().clone() for t in tensors]
    runs = [
        gradients(
            chunked_loss(
                function, x, w, y, scale=scale, bias=bias, normalize=normalize, reduction="sum",
                **options,
            ),
            tensors,
        )
        for _ in range(2)
    ]  # fmt: skip
    for ours, again, p, t in zip(*runs, same, exact, strict=True):
        assert torch.equal(ours, again)
        error, bound = (ours.double() - t).abs().max(), 2 * (p.double() - t).abs().max()
        assert error <= bound + 1e-4 * max(1.0, float(t.abs().max()))
    assert all(map(torch.equal, before, tensors))


def test_reductions_half_precision_single_gradients_and_no_gradient() -> None:
    x, w, *_ = leaves(6, 7, 3)
    y = make_labels("bool", 6, 7)
    total = chunked_loss(squared, x, w, y, reduction="sum")
    torch.testing.assert_close(chunked_loss(squared, x, w, y), total / 42)
    rows = chunked_loss(bounded, x, w, y, reduction="sum", by_row=True)
    torch.testing.assert_close(chunked_loss(bounded, x, w, y, by_row=True), rows / 6)
    both = torch.autograd.grad(total, (x, w))
    for i, pair in enumerate(((x, w.detach()), (x.detach(), w))):
        (one,) = torch.autograd.grad(chunked_loss(squared, *pair, y, reduction="sum"), pair[i])
        assert torch.equal(one, both[i])
    with torch.no_grad():
        assert not chunked_loss(squared, x, w, y).requires_grad
    half = x.detach().bfloat16().requires_grad_()
    value = chunked_loss(squared, half, w.detach().bfloat16(), y)
    assert value.dtype == torch.float32
    assert torch.autograd.grad(value, half)[0].dtype == torch.bfloat16
    empty = chunked_loss(squared, x[:0], w, y[:0])
    assert empty == 0


def test_second_derivatives_in_float64_and_inside_torch_compile() -> None:
    x, w, *_ = (t.detach() for t in leaves(3, 7, 5))
    y = make_labels("bool", 3, 7)
    wide = x.double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda a: chunked_loss(squared, a, w.double(), y), wide)
    w.requires_grad_()

    def step(w: Tensor) -> Tensor:
        return 2 * chunked_loss(squared, x, w * 1.5, y)

    compiled = torch.compile(step, backend="aot_eager")
    found = torch.autograd.grad(compiled(w), w)
    torch.testing.assert_close(found, torch.autograd.grad(step(w), w))
    (first,) = torch.autograd.grad(step(w), w, create_graph=True)
    with pytest.raises(BackendError, match="float64"):
        first.sum().backward()


def test_errors_name_the_argument() -> None:
    x, w, y = torch.randn(2, 3), torch.randn(4, 3), torch.zeros(2, 4)
    with pytest.raises(InputError, match="function returned"):
        chunked_loss(lambda s, t: s.sum(), x, w, y)
    with pytest.raises(InputError, match="by_row=True"):
        chunked_loss(lambda s, t, known: s, x, w, y, by_row=True)
    with pytest.raises(InputError, match="weight"):
        chunked_loss(bounded, x, w, y, by_row=True, weight=torch.ones(4))
    with pytest.raises(InputError, match="reduction"):
        chunked_loss(squared, x, w, y, reduction="median")
    with pytest.raises(InputError, match="y has shape"):
        chunked_loss(squared, x, w, y[:, :3])
