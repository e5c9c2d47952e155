"""A loss of your own on the fused path: no score matrix exists, forward or backward.

``chunked_loss`` takes any function of scores and targets in PyTorch operations. Here generalised
cross-entropy, which a wrong label moves less than the logarithm does (arXiv 1805.07836), with
class-balanced weights (arXiv 1901.05555) and a share of the package's ranking hinge:

    L = Σ_c k_c · (1 − p^q) / q + ρ · ranking,      k_c ∝ (1 − β) / (1 − β^{n_c})

with p the probability of the label, present or absent, and n_c the sentences that mention category
c. A loss whose rows are no sum over categories takes ``by_row=True``.

``python examples/custom_loss.py`` trains class vectors with it, checks value and gradients against
the definition, and says how much memory both take.
"""

from __future__ import annotations

import resource
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvp_fast import Backbone, Vocabulary, build_corpus
from pvp_fast.demo import demo_set
from pvp_fast.evaluation import encode_set, read_folder
from pvp_fast.losses import CSRLabels, chunked_loss, ranking_loss, ranking_loss_ref
from pvp_fast.losses.problem import Labels
from pvp_fast.metrics import mean_average_precision
from pvp_fast.modules.prompts import prompt_ensemble
from pvp_fast.sentences import grammar_sentences


class BalancedLoss(nn.Module):
    """Generalised cross-entropy with class-balanced weights, and a share of the ranking hinge.

    Args:
        counts: (C,) how often each category occurs in training.
        q: towards 0 the logarithm, 1 the probability itself.
        beta: 0 weighs all categories alike, towards 1 by inverse frequency.
        ranking: share ρ of the ranking hinge.
        fused: False for the definition, with (B, C) scores in memory.
    """

    def __init__(
        self,
        counts: Tensor,
        *,
        q: float = 0.3,
        beta: float = 0.999,
        ranking: float = 0.1,
        fused: bool = True,
    ) -> None:
        super().__init__()
        weight = (1 - beta) / (1 - beta ** counts.double().clamp(min=1))
        self.register_buffer("weight", (weight / weight.mean()).float())
        self.q, self.ranking, self.fused = q, ranking, fused

    def entries(self, scores: Tensor, targets: Tensor) -> Tensor:
        """The loss of every entry; all that ``chunked_loss`` needs to know."""
        return (1 - (self.q * F.logsigmoid((2 * targets - 1) * scores)).exp()) / self.q

    def forward(self, x: Tensor, w: Tensor, y: Labels, *, scale: float | Tensor = 1.0) -> Tensor:
        """x (B, D), w (C, D), y as in :func:`pvp_fast.losses.asl_loss`; a scalar."""
        if self.fused:
            entries = chunked_loss(
                self.entries, x, w, y, scale=scale, weight=self.weight, reduction="batchmean"
            )
            return entries + self.ranking * ranking_loss(x, w, y, scale=scale)
        scores = scale * F.normalize(x, dim=-1) @ F.normalize(w, dim=-1).T
        targets = (y.dense(len(w)) if isinstance(y, CSRLabels) else y).to(scores.dtype)
        entries = (self.entries(scores, targets) * self.weight).sum() / len(x)
        return entries + self.ranking * ranking_loss_ref(x, w, y, scale=scale)


def learn(x: Tensor, w: Tensor, y: Tensor, loss: nn.Module, steps: int = 60) -> Tensor:
    """Class vectors (C, D) that start at w and classify the rows of x."""
    w = w.clone().requires_grad_()
    optimizer = torch.optim.AdamW([w], lr=2e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(x), (256,), generator=order)
        optimizer.zero_grad()
        loss(x[rows], w, y[rows], scale=10.0).backward()
        optimizer.step()
    return F.normalize(w.detach(), dim=-1)


def gradients(loss: nn.Module, x: Tensor, w: Tensor, y: Labels) -> tuple[Tensor, Tensor, Tensor]:
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    value = loss(x, w, y, scale=10.0)
    return value.detach(), *torch.autograd.grad(value, (x, w))


def peak_memory() -> int:
    """Bytes of this process at its peak so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def large(rows: int, categories: int) -> tuple[Tensor, Tensor, CSRLabels, Tensor]:
    """Random queries, class vectors, three labels a row as lists, and sentences a category."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, 64, generator=generator) for n in (rows, categories))
    first = torch.randint(categories, (rows, 1), generator=generator)
    indices = (first + torch.tensor([0, 7, 99])) % categories
    y = CSRLabels(torch.arange(0, 3 * rows + 1, 3), indices.flatten())
    return x, w, y, torch.randint(1, 5_000, (categories,), generator=generator)


def main() -> None:
    backbone = Backbone.load("pocket")
    scenes = encode_set(backbone, read_folder(demo_set()))
    vocabulary = Vocabulary(scenes.names)
    corpus = build_corpus(grammar_sentences(vocabulary, 1500, seed=0), vocabulary)
    x = backbone.encode_text(corpus.sentences)
    start = prompt_ensemble(backbone, vocabulary.names)
    learned = learn(x, start, corpus.multi_hot().bool(), BalancedLoss(corpus.counts()))
    for name, w in (("names alone", start), ("learned from sentences", learned)):
        score = mean_average_precision(scenes.z @ w.T, scenes.labels > 0)
        print(f"{name}: mAP {score:.3f} on {len(scenes.z)} scenes")

    x, w, y, counts = large(256, 2_000)
    both = [BalancedLoss(counts, fused=fused) for fused in (True, False)]
    pairs = zip(*(gradients(loss, x, w, y) for loss in both), strict=True)
    error = max(((a - b).norm() / b.norm()).item() for a, b in pairs)
    print(f"loss and gradients differ from the definition by {error:.1e} at most")

    # Where the scores alone would take 780 MiB, and their gradient as much again.
    x, w, y, counts = large(2_048, 100_000)
    before = peak_memory()
    gradients(BalancedLoss(counts), x, w, y)
    taken, scores = peak_memory() - before, 4 * len(x) * len(w)
    print(f"C = 100 000: {taken / 2**20:.0f} MiB taken, {scores / 2**20:.0f} MiB of scores")
    if error > 1e-4 or taken > scores / 4:
        raise SystemExit("the fused path is not what it should be")


if __name__ == "__main__":
    main()
