"""Precision on images from a folder without labels: every style, several ways, three seeds.

``python benchmarks/pocket_unlabelled.py --pictograms DIR [--features DIR] [--runs DIR] [--json F]``

Encodes 600 scenes of the styles the pocket model has seen together, of each of them alone and of
the two it never saw, and trains on sentences as pocket_ladder.py does. Then thresholds for 70, 80
and 90 % precision come

- from the sentences that training held out (``sentences``, what an artifact has by default);
- from sentences whose noise makes their mean best score that of the images (``noisy sentences``);
- from the sentences' scores mapped so that their quartiles are the images' (``quantiles``);
- from the sentences' probabilities with the prevalence of each category by EM (``label shift``,
  Saerens et al. 2002);
- from two normal distributions fitted to all scores by EM (``two normals``);
- from ``calibrate_unlabelled`` (``absent's curve``), with its exponent as it is, with the exponent
  that is best on the other styles (``left out``), and with prevalences by EM after it
  (``curve + prevalence``);

and are judged by the labels, which none of them has seen. ``few`` repeats the curve with 100 and
200 images and judges on all. Where the pictograms come from: pvp_fast/clip/weights/CARD.md.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write_results
from torch import Tensor

from pvp_fast import Artifact, Backbone, Vocabulary, build_corpus, train
from pvp_fast.cli.train import make_config
from pvp_fast.evaluation import calibrate_unlabelled, unlabelled
from pvp_fast.evaluation.calibrate import Scored, score_sentences, unseen
from pvp_fast.evaluation.calibrate import calibrate as on_labels
from pvp_fast.sentences import grammar_sentences
from pvp_fast.training.gap import blurred
from pvp_fast.training.thresholds import Target, fit_platt, thresholds_for

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))
from pocket.scenes import SceneRenderer
from pocket.sprites import load_sprites, read_styles
from pocket.train import FULL_COUNTS, UNSEEN, multi_hot, normalise

TARGETS = (0.7, 0.8, 0.9)
TAILS = (1.0, 1.02, 1.04, 1.06, 1.08, 1.1)
SCENES = 600
FEW = (100, 200)


@torch.no_grad()
def features(
    folder: Path,
    name: str,
    sprites: Callable[[], Any],
    seed: int,
    backbone: Backbone,
    categories: int,
) -> tuple[Tensor, Tensor]:
    """(600, D) and labels (600, C), kept in ``folder/test_NAME.npz``."""
    path = folder / f"test_{name}.npz"
    if not path.exists():
        renderer = SceneRenderer(sprites())
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        sizes = rng.choices(range(1, len(FULL_COUNTS) + 1), FULL_COUNTS, k=SCENES)
        sets = [rng.sample(renderer.categories, size) for size in sizes]
        z = torch.cat(
            [
                backbone.encode_image(
                    normalise(renderer.render(sets[i : i + 100], generator, jitter=0.6))
                )
                for i in range(0, SCENES, 100)
            ]
        )
        labels = multi_hot(sets, categories)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(path, z=z.numpy(), labels=labels.numpy())
    with np.load(path) as stored:
        return torch.from_numpy(stored["z"]), torch.from_numpy(stored["labels"])


def judge(probabilities: Tensor, threshold: float | Tensor, labels: Tensor) -> tuple[float, float]:
    """Precision and recall in percent; precision NaN where nothing is kept."""
    kept = probabilities >= threshold
    right = float((kept & labels).sum())
    return 100 * right / max(1e-9, float(kept.sum())), 100 * right / float(labels.sum())


def expected_cut(probabilities: Tensor, target: float) -> float:
    """The least probability from which on the mean reaches the target."""
    ordered = probabilities.flatten().sort(descending=True).values.double()
    mean = ordered.cumsum(0) / torch.arange(1, len(ordered) + 1)
    enough = (mean >= target).nonzero()
    return float(ordered[int(enough[-1])]) if len(enough) else 1.1


def recall_at(scores: Tensor, labels: Tensor, target: float) -> float:
    """The most recall in percent that one threshold has at a precision of the target."""
    hits = labels.flatten()[scores.flatten().argsort(descending=True)].double().cumsum(0)
    enough = (hits / torch.arange(1, len(hits) + 1) >= target).nonzero()
    return 100 * float(hits[int(enough[-1])]) / float(labels.sum()) if len(enough) else 0.0


def prevalences(probabilities: Tensor, weight: float = 20.0, rounds: int = 100) -> Tensor:
    """Probabilities after EM on each category's prevalence, shrunk towards the common one."""
    logit, common = torch.logit(probabilities.double().clamp(1e-9, 1 - 1e-9)), probabilities.mean()
    p = probabilities.double()
    for _ in range(rounds):
        own = (p.sum(0) + weight * common) / (len(p) + weight)
        p = torch.sigmoid(logit + torch.logit(own.clamp(1e-6, 1 - 1e-6)) - torch.logit(common))
    return p


def two_normals(scores: Tensor, rounds: int = 200) -> Tensor:
    """Probability of the upper of two normal components of all scores."""
    s = scores.double().flatten()
    mean, spread = [s.median(), s.quantile(0.98)], [s.std(), s.std()]
    share = torch.tensor(0.04, dtype=torch.double)
    for _ in range(rounds):
        low, high = (
            w * torch.exp(-0.5 * ((s - m) / d).square()) / d
            for w, m, d in zip((1 - share, share), mean, spread, strict=True)
        )
        p = high / (low + high).clamp(min=1e-300)
        for i, weight in enumerate((1 - p, p)):
            mean[i] = (weight * s).sum() / weight.sum()
            spread[i] = ((weight * (s - mean[i]).square()).sum() / weight.sum()).sqrt()
        share = p.mean()
    return p.view_as(scores)


def ways(artifact: Artifact, sentences: Scored, x: Tensor, scores: Tensor) -> dict[str, Tensor]:
    """What each of the other ways keeps, (3, N, C) bool, by target."""
    head, truth = artifact.head, sentences.labels > 0
    found: dict[str, list[Tensor]] = {}

    def calibrated(name: str, data: Tensor, images: Tensor) -> None:
        platt = fit_platt(data, truth)
        for value in TARGETS:
            cut = thresholds_for(Target("precision", value), data, truth, platt)
            kept = torch.sigmoid(images * platt[:, 0] + platt[:, 1]) >= cut
            found.setdefault(name, []).append(kept)

    calibrated("sentences", sentences.scores, scores)
    aim = float(scores.amax(1).mean())
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    low, high = 0.0, 6.0
    for _ in range(12):
        middle = (low + high) / 2
        top = float(head.global_cosines(blurred(x, noise, middle)).amax(1).mean())
        low, high = (middle, high) if top > aim else (low, middle)
    calibrated("noisy sentences", head.global_cosines(blurred(x, noise, low)), scores)
    ends = torch.tensor([0.25, 0.75])
    here, there = scores.flatten().quantile(ends), sentences.scores.flatten().quantile(ends)
    mapped = (scores - here[0]) / (here[1] - here[0]) * (there[1] - there[0]) + there[0]
    calibrated("quantiles", sentences.scores, mapped)
    platt = fit_platt(sentences.scores, truth)
    for name, p in (
        ("label shift", prevalences(torch.sigmoid(scores * platt[:, 0] + platt[:, 1]))),
        ("two normals", two_normals(scores)),
    ):
        found[name] = [p >= expected_cut(p, value) for value in TARGETS]
    return {name: torch.stack(kept) for name, kept in found.items()}


def curve(artifact: Artifact, scores: Tensor, tail: float) -> Tensor:
    """Probabilities (N, C) by the absent's curve with an exponent."""
    logits = scores.double() * artifact.head.platt[:, 0] + artifact.head.platt[:, 1]
    groups = unlabelled._Groups.of(logits)
    fit = unlabelled._fit(groups.edges, groups.counts.sum(0), tail)
    return torch.sigmoid(fit.scale * logits + fit.shift)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictograms", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--features", type=Path, help="keep the encoded scenes here")
    parser.add_argument("--runs", type=Path, help="train here, and go on with what is there")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()

    backbone = Backbone.load("pocket")
    vocabulary = Vocabulary.builtin("pocket70")
    corpus = build_corpus(grammar_sentences(vocabulary, 6000, seed=0), vocabulary)
    styles = read_styles(options.pictograms)
    together = [sprites for name, sprites in styles.items() if name not in UNSEEN]
    parts = {"seen": (together, 1)}
    parts |= {name: ([styles[name]], 2 + i) for i, name in enumerate(UNSEEN)}
    parts |= {n: ([s], 2001 + i) for i, (n, s) in enumerate(styles.items()) if n not in UNSEEN}

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.features or Path(temporary) / "features"
        sets = {
            name: features(
                folder,
                name,
                partial(load_sprites, chosen, vocabulary.names),
                seed,
                backbone,
                len(vocabulary),
            )
            for name, (chosen, seed) in parts.items()
        }
        rows: dict[str, dict[str, list[list[float]]]] = {}
        by_tail: dict[str, dict[float, list[list[float]]]] = {}
        inside: list[bool] = []
        widths: list[float] = []
        before: list[dict[str, float | str]] = []
        for seed in range(options.seeds):
            config = make_config("demo", seed, None, False, "auto")
            run = (options.runs or Path(temporary)) / f"seed{seed}"
            artifact = train(backbone, corpus, run, config, progress=False)
            held, _ = unseen(artifact, corpus)
            sentences = score_sentences(backbone, artifact, held)
            artifact = on_labels(artifact, sentences, Target("f1")).artifact
            x = backbone.encode_text(held.sentences)
            for style, (z, labels) in sets.items():
                scores = artifact.head.global_cosines(z)

                def add(name: str, numbers: list[list[float]], style: str = style) -> None:
                    kinds = rows.setdefault(name, {}).setdefault(style, [])
                    kinds.append([value for pair in numbers for value in pair])

                for name, kept in ways(artifact, sentences, x, scores).items():
                    add(name, [list(judge(k.float(), 0.5, labels)) for k in kept])
                for tail in TAILS:
                    p = curve(artifact, scores, tail)
                    cuts = [judge(p, expected_cut(p, value), labels)[0] for value in TARGETS]
                    by_tail.setdefault(style, {}).setdefault(tail, []).append(cuts)
                p = prevalences(curve(artifact, scores, unlabelled.TAIL))
                add(
                    "curve + prevalence",
                    [list(judge(p, expected_cut(p, v), labels)) for v in TARGETS],
                )
                best = torch.sigmoid(scores * artifact.head.platt[:, 0] + artifact.head.platt[:, 1])
                add("best threshold", [[100 * v, recall_at(best, labels, v)] for v in TARGETS])
                for count in (*FEW, SCENES):
                    numbers = []
                    for value in TARGETS:
                        part = scores[:count]
                        result = calibrate_unlabelled(artifact, part, Target("precision", value))
                        kept = result.artifact.head.accepted(scores)
                        numbers.append(list(judge(kept.float(), 0.5, labels)))
                        if count == SCENES:
                            low, high = (100 * end for end in result.interval)
                            inside.append(low <= numbers[-1][0] <= high)
                            widths.append(high - low)
                    name = "absent's curve" if count == SCENES else f"absent's curve, {count}"
                    add(name, numbers)
                true = judge(artifact.head.accepted(scores).float(), 0.5, labels)[0]
                before.append({"style": style, "told": 100 * result.precision_before, "true": true})
                print(style, seed, rows["absent's curve"][style][-1], flush=True)
    for style in sets:
        others = [s for s in sets if s != style]

        def off(tail: float, others: list[str] = others) -> float:
            numbers = torch.tensor([by_tail[s][tail] for s in others])
            return float((numbers - 100 * torch.tensor(TARGETS)).square().mean())

        chosen = min(TAILS, key=off)
        rows.setdefault("left out", {})[style] = by_tail[style][chosen]
        print(f"{style}: exponent {chosen} by the others, {by_tail[style][chosen]}")
    for name, by_style in rows.items():
        step = 1 if name == "left out" else 2
        precisions = torch.tensor(list(by_style.values()))[..., ::step]
        away = (precisions - 100 * torch.tensor(TARGETS)).abs()
        print(f"{name:22} off by at most {away.max():.1f}, on average {away.mean():.1f}")
    print(f"inside the bounds: {sum(inside)} of {len(inside)}, {np.mean(widths):.1f} wide")
    if options.json:
        record = {
            "targets": TARGETS,
            "columns": "precision and recall in percent by target; left out: precision only",
            "ways": rows,
            "exponents": {s: {str(k): v for k, v in found.items()} for s, found in by_tail.items()},
            "inside_bounds": [sum(inside), len(inside)],
            "width_of_bounds": float(np.mean(widths)),
            "artifact_as_it_came": before,
        }
        write_results(options.json, record)


if __name__ == "__main__":
    main()
