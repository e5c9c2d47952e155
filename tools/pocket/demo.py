"""Render the demo set: scenes at 160 px in a style the pocket model never saw.

``python tools/render_demo.py --pictograms DIR --out pvp_fast/demo/scenes``
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from PIL import Image

from pocket.pairs import FULL_COUNTS
from pocket.scenes import SceneRenderer
from pocket.sprites import Style, load_sprites, read_styles
from pvp_fast.errors import InputError
from pvp_fast.files import atomic_write
from pvp_fast.vocabulary.categories import Vocabulary

SIZE = 160
JPEG_QUALITY = 85


def render_demo(style: Style, out: Path, *, count: int, seed: int = 0) -> None:
    """Write ``count`` JPEG scenes, ``labels.json`` and ``CREDITS.md`` into ``out``.

    Raises:
        InputError: the style's licence asks for share-alike, which the package cannot ship.
    """
    if "SA" in style.licence.split("-"):
        raise InputError(f"style {style.name!r} is {style.licence}: share-alike is not shipped")
    vocabulary = Vocabulary.builtin("pocket70")
    renderer = SceneRenderer(load_sprites([style], vocabulary.names))
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    numbers = rng.choices(range(1, len(FULL_COUNTS) + 1), FULL_COUNTS, k=count)
    photos = {}
    # Categories in shuffled rounds, so that a small set shows every one of them.
    queue: list[int] = []
    for index, number in enumerate(numbers):
        if len(queue) < number:
            queue += rng.sample(renderer.categories, len(renderer.categories))
        chosen = list(dict.fromkeys(queue[:number]))
        del queue[:number]
        pixels = renderer.render([chosen], generator, size=SIZE, jitter=0.3)[0]
        array = (pixels * 255).round().byte().permute(1, 2, 0).numpy()
        name = f"scene_{index:03d}.jpg"
        with atomic_write(out / name) as stream:
            Image.fromarray(array).save(stream, "JPEG", quality=JPEG_QUALITY)
        photos[name] = {"labels": sorted(vocabulary.names[c] for c in chosen)}
    with atomic_write(out / "labels.json", "w") as stream:
        json.dump({"categories": list(vocabulary.names), "photos": photos}, stream, indent=1)
    with atomic_write(out / "CREDITS.md", "w") as stream:
        stream.write(
            "# Credits\n\nThe pictograms in these scenes are from "
            f"{style.artwork} ({style.licence}; {style.source}). They were rotated, mirrored, "
            "recoloured and\ncomposed over generated backgrounds by `tools/render_demo.py`.\n"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Render the demo set.")
    parser.add_argument("--pictograms", type=Path, required=True, help="folder of style JSON files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--style", default="twemoji")
    parser.add_argument("--count", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    style = read_styles(options.pictograms)[options.style]
    render_demo(style, options.out, count=options.count, seed=options.seed)
