"""Whether the constants of ``adapt`` hold on a style they were not chosen on.

``python benchmarks/pocket_few_settings.py --pictograms DIR [--features DIR] [--runs DIR]
[--json FILE]``

For each of eight drawing styles, 4 labelled images a category and the rest of some hundred scenes
without labels; gains over text only on further scenes, three seeds, none of them the test scenes of
``pocket_few.py``. Every constant of :mod:`pvp_fast.training.few` is moved up and down by itself.
For each style the values are then taken that are best on the seven others; what the committed
values lose or gain beside them on that style is the price of having chosen once for all.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean

import torch
from common import write_results
from pocket_few import POOL, arguments, few, points, scenes, text_heads
from torch import Tensor

from pvp_fast import Backbone, Vocabulary
from pvp_fast.modules.scoring import Head
from pvp_fast.training import few as method
from pvp_fast.training.few import FewConfig, Images, adapt_head

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))
from pocket.scenes import SceneRenderer
from pocket.sprites import load_sprites, read_styles
from pocket.train import UNSEEN

MOVED = {
    "_FLOOR": (1e-3, 1e-2),
    "_POWER": (0.2, 0.5),
    "_RIDGE": (1.0, 10.0),
    "_SELF_RIDGE": (0.3, 3.0),
    "_FIRST": (1.0, 4.0),
    "_GAIN": (10.0, 40.0),
    "_CLEAR": (0.75, 1.0),
    "_APART_STEP": (0.0, 0.4),
    "_APART": (1.5, 4.0),
}
COMMITTED = "as committed"
ONCE = FewConfig(text_weights=(0.15,), folds=5)
SHOTS, SCENES = 4, 600


@contextmanager
def moved(name: str, value: float) -> Iterator[None]:
    """One constant of the method changed."""
    before = getattr(method, name)
    setattr(method, name, value)
    try:
        yield
    finally:
        setattr(method, name, before)


def gains(head: Head, z: Tensor, labels: Tensor, seed: int) -> dict[str, float]:
    """Points of mAP above text only on the last third, by what was moved."""
    cut = 2 * len(z) // 3
    rows = few(labels[:cut], SHOTS, seed)
    rest = torch.ones(cut, dtype=torch.bool)
    rest[rows] = False
    signs, others = labels[rows].to(torch.int8) * 2 - 1, Images(z[:cut][rest])
    judged, truth = z[cut:], labels[cut:]
    before = points(head.global_cosines(judged), truth)

    def gain() -> float:
        found = adapt_head(head, z[rows], signs, unlabelled=others, config=ONCE)
        return points(found.head.global_cosines(judged), truth) - before

    found = {COMMITTED: gain()}
    for name, values in MOVED.items():
        for value in values:
            with moved(name, value):
                found[f"{name} = {value:g}"] = gain()
    return found


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    options = parser.parse_args()

    backbone = Backbone.load("pocket")
    vocabulary = Vocabulary.builtin("pocket70")
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        heads = text_heads(backbone, vocabulary, options.runs or Path(temporary), options.seeds)
        folder = options.features or Path(temporary) / "features"
        for i, (style, sprites) in enumerate(read_styles(options.pictograms).items()):
            renderer = SceneRenderer(load_sprites([sprites], vocabulary.names))
            # Of the styles never seen these scenes are those of pocket_few.py that have no test.
            name, at = f"test_{style}", 2001 + i
            if style in UNSEEN:
                name, at = f"train_{style}", 1002 + UNSEEN.index(style)
            count = POOL if style in UNSEEN else SCENES
            z, labels = scenes(folder, name, renderer, at, count, backbone)
            z, labels = z[:SCENES], labels[:SCENES]
            rows = [gains(head, z, labels, seed) for seed, head in enumerate(heads)]
            found[style] = {what: [row[what] for row in rows] for what in rows[0]}
            print(style, {what: round(mean(v), 2) for what, v in found[style].items()}, flush=True)
    left_out = {}
    for style, own in found.items():
        others = [row for other, row in found.items() if other != style]
        taken = max(own, key=lambda what: mean(mean(row[what]) for row in others))
        left_out[style] = {
            "chosen": taken,
            "gain": mean(own[taken]),
            "gain_as_committed": mean(own[COMMITTED]),
        }
        print(style, left_out[style])
    price = mean(row["gain_as_committed"] - row["gain"] for row in left_out.values())
    print(f"as committed above what is chosen on the other styles: {price:+.2f} points")
    if options.json:
        write_results(options.json, {"gains": found, "left_out": left_out, "price": price})


if __name__ == "__main__":
    main()
