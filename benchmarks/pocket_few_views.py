"""``adapt`` with the augmented views it takes by default, and no other images.

``python benchmarks/pocket_few_views.py --pictograms DIR [--features DIR] [--runs DIR]
[--shots 4] [--json FILE]``

The scenes, labelled rows and heads of ``pocket_few.py``, which learns from each image as it is;
here from three random crops and mirror images of each too, as ``pvp-fast adapt`` does.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from common import write_results
from pocket_few import POOL, TEST, few, points, scenes
from torch import Tensor

from pvp_fast import Backbone, Vocabulary, build_corpus, train
from pvp_fast.cli.train import make_config
from pvp_fast.loaders import Augment
from pvp_fast.sentences import grammar_sentences
from pvp_fast.training.few import adapt_head

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))
from pocket.scenes import SceneRenderer
from pocket.sprites import load_sprites, read_styles
from pocket.train import FULL_COUNTS, UNSEEN, normalise

VIEWS = 3


def rendered(renderer: SceneRenderer, seed: int) -> Tensor:
    """Pixels of the scenes that ``pocket_few.scenes`` encodes."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    sizes = rng.choices(range(1, len(FULL_COUNTS) + 1), FULL_COUNTS, k=POOL)
    sets = [rng.sample(renderer.categories, size) for size in sizes]
    parts = [renderer.render(sets[i : i + 100], generator, jitter=0.6) for i in range(0, POOL, 100)]
    return normalise(torch.cat(parts))


def view(pixels: Tensor, chance: random.Random) -> Tensor:
    """A random view of each image."""
    height, width = pixels.shape[-2:]
    found = []
    for image in pixels:
        drawn = Augment().view(width, height, chance)
        left, top, right, bottom = drawn.box
        part = image[None, :, top:bottom, left:right]
        part = F.interpolate(part, size=(height, width), mode="bicubic", align_corners=False)
        found.append(part.flip(-1) if drawn.flip else part)
    return torch.cat(found)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictograms", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shots", type=int, nargs="+", default=(1, 2, 4, 8, 16))
    parser.add_argument("--features", type=Path, help="keep the encoded scenes here")
    parser.add_argument("--runs", type=Path, help="train here, and go on with what is there")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()

    backbone = Backbone.load("pocket")
    vocabulary = Vocabulary.builtin("pocket70")
    corpus = build_corpus(grammar_sentences(vocabulary, 6000, seed=0), vocabulary)
    styles = read_styles(options.pictograms)
    results: dict[str, dict[str, dict[str, list[float]]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.features or Path(temporary) / "features"
        heads = []
        for seed in range(options.seeds):
            config = make_config("demo", seed, None, False, "auto")
            run = (options.runs or Path(temporary)) / f"seed{seed}"
            artifact = train(backbone, corpus, run, config, progress=False)
            heads.append(dataclasses.replace(artifact.head, local=None))
        for i, style in enumerate(UNSEEN):
            renderer = SceneRenderer(load_sprites([styles[style]], vocabulary.names))
            pool, truth = scenes(folder, f"train_{style}", renderer, 1002 + i, POOL, backbone)
            test, labels = scenes(folder, f"test_{style}", renderer, 2 + i, TEST, backbone)
            pixels = rendered(renderer, 1002 + i)
            for shots in options.shots:
                case = results.setdefault(style, {}).setdefault(f"{shots} a category", {})
                for seed, head in enumerate(heads):
                    rows = few(truth, shots, seed)
                    y = truth[rows].to(torch.int8) * 2 - 1
                    chance = random.Random(seed)
                    views = [
                        backbone.encode_image(view(pixels[rows], chance)) for _ in range(VIEWS)
                    ]
                    found = adapt_head(head, torch.stack([pool[rows], *views]), y)
                    case.setdefault("images", []).append(len(rows))
                    case.setdefault("text only", []).append(
                        points(head.global_cosines(test), labels)
                    )
                    case.setdefault(f"adapt, {VIEWS} views", []).append(
                        points(found.head.global_cosines(test), labels)
                    )
                print(style, shots, case, flush=True)
                if options.json:
                    write_results(options.json, {"map": results})


if __name__ == "__main__":
    main()
