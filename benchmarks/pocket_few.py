"""Learning curves with labelled images of a style never seen: ``adapt`` and what others do.

``python benchmarks/pocket_few.py --pictograms DIR [--features DIR] [--runs DIR] [--json FILE]``

Draws 2000 further scenes of each style the pocket model never saw, takes the fewest that show each
category 1, 2, 4, 8 or 16 times (an order of each seed's own), and judges on the 600 test scenes.
With 4 a category it also hides labels: 10 to 90 % are known. On the same features:

- text only: the artifact as it is (without the local branch).
- adapt: ``adapt_head``, without augmented views; with the rest of the 2000 scenes as images without
  labels, and without them.
- linear probe: logistic regression from nothing, its decay by five folds.
- Tip-Adapter (2207.09519, without fine-tuning): β and its weight by five folds.
- CoOp (2109.01134): one context of four words before all names, learned through the text tower
  from "a photo of a" by BCE on the images, 100 steps of Adam at 5e-3.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import write_results
from torch import Tensor

from pvp_fast import Backbone, Vocabulary, build_corpus, train
from pvp_fast.cli.train import make_config
from pvp_fast.metrics import mean_average_precision
from pvp_fast.modules.prompts import TextPrompts
from pvp_fast.modules.scoring import Head
from pvp_fast.sentences import grammar_sentences
from pvp_fast.training.few import Images, adapt_head

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))
from pocket.scenes import SceneRenderer
from pocket.sprites import load_sprites, read_styles
from pocket.train import FULL_COUNTS, UNSEEN, multi_hot, normalise

SHOTS = (1, 2, 4, 8, 16)
KNOWN = (0.1, 0.3, 0.5, 0.7, 0.9)
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)
POOL, TEST = 2000, 600
FOLDS = 5
COOP_STEPS = 100
Fit = Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]]


def arguments(about: str) -> argparse.ArgumentParser:
    """What every script on these scenes is given."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--pictograms", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--features", type=Path, help="keep the encoded scenes here")
    parser.add_argument("--runs", type=Path, help="train here, and go on with what is there")
    parser.add_argument("--json", type=Path, help="write the results here")
    return parser


def text_heads(backbone: Backbone, vocabulary: Vocabulary, runs: Path, seeds: int) -> list[Head]:
    """The artifact of each seed as text alone makes it, without the local branch."""
    corpus = build_corpus(grammar_sentences(vocabulary, 6000, seed=0), vocabulary)
    heads = []
    for seed in range(seeds):
        config = make_config("demo", seed, None, False, "auto")
        artifact = train(backbone, corpus, runs / f"seed{seed}", config, progress=False)
        heads.append(dataclasses.replace(artifact.head, local=None))
    return heads


def rendered(
    renderer: SceneRenderer, seed: int, count: int
) -> Iterator[tuple[Tensor, list[list[int]]]]:
    """Pixels of ``count`` scenes, a hundred at a time, and what they show."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    sizes = rng.choices(range(1, len(FULL_COUNTS) + 1), FULL_COUNTS, k=count)
    sets = [rng.sample(renderer.categories, size) for size in sizes]
    for i in range(0, count, 100):
        part = sets[i : i + 100]
        yield normalise(renderer.render(part, generator, jitter=0.6)), part


@torch.no_grad()
def scenes(
    folder: Path, name: str, renderer: SceneRenderer, seed: int, count: int, backbone: Backbone
) -> tuple[Tensor, Tensor]:
    """Features (N, D) and labels (N, C) bool, kept in ``folder/NAME.npz``."""
    path = folder / f"{name}.npz"
    if not path.exists():
        parts, sets = [], []
        for pixels, shown in rendered(renderer, seed, count):
            parts.append(backbone.encode_image(pixels))
            sets += shown
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(path, z=torch.cat(parts).numpy(), labels=multi_hot(sets, 70).numpy())
    with np.load(path) as stored:
        return torch.from_numpy(stored["z"]), torch.from_numpy(stored["labels"])


def few(labels: Tensor, shots: int, seed: int) -> Tensor:
    """Rows, in a random order, each of which shows a category that is still short of ``shots``."""
    shown = torch.zeros(labels.shape[1])
    rows = []
    for row in torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist():
        if bool((labels[row] & (shown < shots)).any()):
            rows.append(row)
            shown += labels[row]
    return torch.tensor(rows)


def points(scores: Tensor, labels: Tensor) -> float:
    return 100 * mean_average_precision(scores, labels)


def logistic(z: Tensor, y: Tensor, decay: float, start: Tensor, steps: int) -> Tensor:
    """Class vectors of a logistic regression on the known labels, pulled to ``start``."""
    w = start.clone().requires_grad_()
    bias = torch.full((len(w),), -3.0, requires_grad=True)
    known, target = (y != 0).float(), (y > 0).float()
    solver = torch.optim.LBFGS([w, bias], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        logits = 8 * z @ w.T + bias
        loss = F.binary_cross_entropy_with_logits(logits, target, known, reduction="sum")
        loss = loss / known.sum() + decay * (w - start).square().sum() / len(w)
        loss.backward()
        return loss

    solver.step(closure)
    return w.detach()


def chosen(fits: list[Fit], z: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """The fit whose left-out images rank best, on all images."""
    parts = torch.randperm(len(z), generator=torch.Generator().manual_seed(0)).chunk(FOLDS)

    def left_out(fit: Fit) -> float:
        scores = torch.empty(y.shape)
        for part in parts:
            rest = torch.ones(len(z), dtype=torch.bool)
            rest[part] = False
            scores[part] = fit(z[rest], y[rest])(z[part])
        return 100 * mean_average_precision(scores, y, difficult="ignore")

    return max(fits, key=left_out)(z, y)


def linear(decay: float) -> Fit:
    def fit(z: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
        w = logistic(z, y, decay, torch.zeros(y.shape[1], z.shape[1]), 60)
        return lambda other: other @ w.T

    return fit


def tip(head: Head, beta: float, weight: float) -> Fit:
    def fit(z: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
        values = (y > 0).float()
        return lambda other: (
            head.global_cosines(other) + weight * torch.exp(-beta * (1 - other @ z.T)) @ values
        )

    return fit


def coop(backbone: Backbone, names: tuple[str, ...], z: Tensor, y: Tensor, seed: int) -> Tensor:
    """Class vectors of a context learned from images."""
    prompts = TextPrompts(
        backbone, names, n_ctx=4, class_specific=False, init="a photo of a", seed=seed
    )
    bias = torch.full((len(names),), -3.0, requires_grad=True)
    solver = torch.optim.Adam([*prompts.parameters(), bias], lr=5e-3)
    known, target = (y != 0).float(), (y > 0).float()
    for _ in range(COOP_STEPS):
        logits = 8 * z @ prompts(backbone).T + bias
        loss = F.binary_cross_entropy_with_logits(logits, target, known, reduction="sum")
        solver.zero_grad()
        (loss / known.sum()).backward()
        solver.step()
    with torch.no_grad():
        return prompts(backbone)


def methods(head: Head, z: Tensor, y: Tensor, rest: Tensor, test: Tensor) -> dict[str, Tensor]:
    """Scores of the test scenes; ``rest`` are the scenes without labels."""
    tips = [tip(head, beta, weight) for beta in (5.0, 20.0, 50.0) for weight in (0.01, 0.05, 0.2)]
    both = adapt_head(head, z, y, unlabelled=Images(rest))
    return {
        "text only": head.global_cosines(test),
        "adapt, unlabelled too": both.head.global_cosines(test),
        "adapt": adapt_head(head, z, y).head.global_cosines(test),
        "linear probe": chosen([linear(decay) for decay in DECAYS], z, y)(test),
        "Tip-Adapter": chosen(tips, z, y)(test),
    }


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--shots", type=int, nargs="*", default=SHOTS)
    parser.add_argument("--known", type=float, nargs="*", default=KNOWN, help="shares, at 4 shots")
    parser.add_argument("--styles", nargs="+", default=UNSEEN, choices=UNSEEN)
    options = parser.parse_args()

    backbone = Backbone.load("pocket")
    vocabulary = Vocabulary.builtin("pocket70")
    styles = read_styles(options.pictograms)
    results: dict[str, dict[str, dict[str, list[float]]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.features or Path(temporary) / "features"
        heads = text_heads(backbone, vocabulary, options.runs or Path(temporary), options.seeds)
        for i, style in enumerate(UNSEEN):
            if style not in options.styles:
                continue
            renderer = SceneRenderer(load_sprites([styles[style]], vocabulary.names))
            pool, truth = scenes(folder, f"train_{style}", renderer, 1002 + i, POOL, backbone)
            test, labels = scenes(folder, f"test_{style}", renderer, 2 + i, TEST, backbone)
            found = results.setdefault(style, {})
            for seed, head in enumerate(heads):
                cases = {f"{shots} a category": (shots, 1.0) for shots in options.shots}
                cases |= {f"4 a category, {100 * k:.0f} % known": (4, k) for k in options.known}
                for name, (shots, known) in cases.items():
                    rows = few(truth, shots, seed)
                    y = truth[rows].to(torch.int8) * 2 - 1
                    generator = torch.Generator().manual_seed(seed)
                    y[torch.rand(y.shape, generator=generator) >= known] = 0
                    case = found.setdefault(name, {})
                    case.setdefault("images", []).append(len(rows))
                    rest = torch.ones(len(pool), dtype=torch.bool)
                    rest[rows] = False
                    scored = methods(head, pool[rows], y, pool[rest], test)
                    context = coop(backbone, vocabulary.names, pool[rows], y, seed)
                    for method, scores in (scored | {"CoOp": test @ context.T}).items():
                        case.setdefault(method, []).append(points(scores, labels))
                    cells = {m: round(v[-1], 1) for m, v in case.items()}
                    print(style, seed, name, cells, flush=True)
                if options.json:
                    write_results(options.json, {"map": results})


if __name__ == "__main__":
    main()
