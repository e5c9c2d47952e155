"""``adapt`` with the augmented views it takes by default, and no other images.

``python benchmarks/pocket_few_views.py --pictograms DIR [--features DIR] [--runs DIR]
[--shots 4] [--json FILE]``

The scenes, labelled rows and heads of ``pocket_few.py``, which learns from each image as it is;
here from three random crops and mirror images of each too, as ``pvp-fast adapt`` does.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from common import write_results
from pocket_few import POOL, TEST, arguments, few, points, rendered, scenes, text_heads
from torch import Tensor

from pvp_fast import Backbone, Vocabulary
from pvp_fast.loaders import Augment
from pvp_fast.training.few import adapt_head

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))
from pocket.scenes import SceneRenderer
from pocket.sprites import load_sprites, read_styles
from pocket.train import UNSEEN

VIEWS = 3


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
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--shots", type=int, nargs="+", default=(1, 2, 4, 8, 16))
    options = parser.parse_args()

    backbone = Backbone.load("pocket")
    vocabulary = Vocabulary.builtin("pocket70")
    styles = read_styles(options.pictograms)
    results: dict[str, dict[str, dict[str, list[float]]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.features or Path(temporary) / "features"
        heads = text_heads(backbone, vocabulary, options.runs or Path(temporary), options.seeds)
        for i, style in enumerate(UNSEEN):
            renderer = SceneRenderer(load_sprites([styles[style]], vocabulary.names))
            pool, truth = scenes(folder, f"train_{style}", renderer, 1002 + i, POOL, backbone)
            test, labels = scenes(folder, f"test_{style}", renderer, 2 + i, TEST, backbone)
            pixels = torch.cat([part for part, _ in rendered(renderer, 1002 + i, POOL)])
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
