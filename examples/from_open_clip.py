"""From an open_clip zero-shot loop to pvp_fast: both side by side, and the same scores.

``python examples/from_open_clip.py`` takes the pocket model and its demo scenes;
``--model ViT-B-32 --pretrained laion2b_s34b_b79k --images photos/ --names dog cat car`` any other.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import open_clip
import torch
from PIL import Image

from pvp_fast import Backbone, TagIndex, Vocabulary
from pvp_fast.clip.pocket import MEAN, STD, load_model, tokenizer
from pvp_fast.demo import demo_set
from pvp_fast.loaders import ImageStream
from pvp_fast.loaders.sources import find_images
from pvp_fast.modules.prompts import prompt_ensemble

TEMPLATES = ("a photo of a {}.", "a photo of the {}.", "a drawing of a {}.")
Scores = tuple[torch.Tensor, torch.Tensor]  # the best cosines (N, k) and their categories (N, k)


@torch.no_grad()
def with_open_clip(
    model_name: str, pretrained: str | None, paths: list[Path], names: list[str], k: int
) -> Scores:
    """The loop as it is usually written."""
    if model_name == "pocket":
        model, config = load_model()
        tokenize = tokenizer()
        preprocess = open_clip.transform.image_transform(
            config["image_size"], is_train=False, mean=MEAN, std=STD, interpolation="bicubic"
        )
    else:
        model, _, preprocess = open_clip.create_model_and_transforms(
            model_name, pretrained=pretrained
        )
        tokenize = open_clip.get_tokenizer(model_name)
    model.eval()

    weights = []
    for name in names:
        text = model.encode_text(tokenize([t.format(name) for t in TEMPLATES]))
        text = (text / text.norm(dim=-1, keepdim=True)).mean(0)
        weights.append(text / text.norm())
    w = torch.stack(weights)  # (C, D)

    rows = []
    for path in paths:  # an unreadable image ends the loop
        with Image.open(path) as image:
            z = model.encode_image(preprocess(image)[None])
        rows.append(z / z.norm(dim=-1, keepdim=True))
    return tuple((torch.cat(rows) @ w.T).topk(k))  # (N, C) in memory


@torch.no_grad()
def with_pvp_fast(
    model_name: str, pretrained: str | None, paths: list[Path], names: list[str], k: int
) -> Scores:
    """The same scores: batched reading, failures listed, top-k without the (N, C) table."""
    backbone = Backbone.load(model_name, pretrained)
    index = TagIndex(prompt_ensemble(backbone, names, TEMPLATES), normalize=False)
    scores, categories = [], []
    with ImageStream(paths, backbone.preprocess, batch_size=64) as stream:
        for batch in stream:
            best = index.topk(backbone.encode_image(batch.pixels), k)
            scores.append(best.scores)
            categories.append(best.indices)
    for failure in stream.failures:
        print(f"not read: {failure.key}: {failure.reason}")
    return torch.cat(scores), torch.cat(categories)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pocket", help="an open_clip architecture, or pocket")
    parser.add_argument("--pretrained", help="open_clip's tag of the weights, or a checkpoint")
    parser.add_argument("--images", type=Path, default=demo_set(), help="a folder of images")
    parser.add_argument("--names", nargs="+", default=list(Vocabulary.builtin("pocket70").names))
    options = parser.parse_args()

    paths = list(find_images([options.images]))
    k = min(3, len(options.names))
    common = (options.model, options.pretrained, paths, options.names, k)
    theirs, ours = with_open_clip(*common), with_pvp_fast(*common)

    drift = (theirs[0] - ours[0]).abs().max().item()
    same = (theirs[1][:, 0] == ours[1][:, 0]).float().mean().item()
    print(f"{len(paths)} images, {len(options.names)} categories, k = {k}")
    print(f"largest difference of a cosine: {drift:.5f}")
    print(f"the same best category for {same:.1%} of the images")
    # ImageStream decodes in batches and may differ from Pillow by 2 of 255 levels.
    if drift > 0.005 or same < 0.98:
        raise SystemExit("the scores differ by more than decoding explains")


if __name__ == "__main__":
    main()
