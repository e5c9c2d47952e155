"""How far the loaders' pixels and embeddings are from open_clip's own transform.

``python benchmarks/loader_parity.py PHOTOS --json FILE`` takes up to 300 photos of a folder and
adds generated images: gray, CMYK, progressive, PNG, WebP, BMP, EXIF 1 to 8, extreme shapes. For
every backend and mode: largest and mean difference in 8-bit levels at 224 px, the share of values
that differ, and the lowest and mean cosine of pocket-model embeddings (at its 64 px, where DALI's
filter tables show on a few photos of fine patterns). Exits with 1 where an exact mode misses 13
levels at most, 0.2 on average, or a mean cosine of 0.999.

Two kinds are left out since we differ from open_clip on purpose: palette images, which it resizes
without any smoothing (we turn them to RGB first), and shapes over 32 to 1, whose far ends we cut
off before resizing.
"""

from __future__ import annotations

import argparse
import io
import sys
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from common import table, write_results
from image_files import unusual

from pvp_fast import Backbone
from pvp_fast.clip.preprocess import Preprocess
from pvp_fast.loaders import ImageStream
from pvp_fast.loaders.sources import find_images

MAX, MEAN, COSINE = 13, 0.2, 0.999
LEFT_OUT = ("palette.png", "ribbon.jpg")


def reference(files: dict[str, bytes], preprocess: Preprocess) -> torch.Tensor:
    """(N, 3, S, S) of open_clip's evaluation transform."""
    transform = image_transform_v2(
        PreprocessCfg(size=preprocess.size, mean=preprocess.mean, std=preprocess.std),
        is_train=False,
    )
    return torch.stack([transform(Image.open(io.BytesIO(d))) for d in files.values()])


def loaded(
    files: dict[str, bytes], preprocess: Preprocess, backend: str, mode: str
) -> torch.Tensor:
    with ImageStream(list(files.items()), preprocess, backend=backend, mode=mode) as stream:
        pixels = torch.cat([batch.pixels for batch in stream])
    if stream.failures:
        raise SystemExit(f"could not read {stream.failures[0]}")
    return pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    files = {p.name: p.read_bytes() for p in islice(find_images([options.photos]), 300)}
    photos = len(files)
    picture = Image.open(io.BytesIO(next(iter(files.values())))).convert("RGB")
    files |= {name: data for name, data in unusual(picture).items() if name not in LEFT_OUT}
    backbone = Backbone.load("pocket")
    big = Preprocess(224)
    expected = {p.size: reference(files, p) for p in (big, backbone.preprocess)}
    with torch.no_grad():
        truth = backbone.encode_image(expected[backbone.preprocess.size])
    backends = ["torch", *["dali"] * (find_spec("nvidia.dali") is not None)]
    rows, record, missed = [], {}, False
    for backend in backends:
        for mode in ("exact", "fast"):
            gap = loaded(files, big, backend, mode) - expected[big.size]
            gap = (gap * torch.tensor(big.std).view(3, 1, 1) * 255).abs().round()
            with torch.no_grad():
                small = loaded(files, backbone.preprocess, backend, mode)
                cosine = (backbone.encode_image(small) * truth).sum(1)
            found = {
                "max_levels": gap.max().item(),
                "mean_levels": round(gap.mean().item(), 5),
                "mean_levels_photos": round(gap[:photos].mean().item(), 5),
                "differing": round((gap > 0).float().mean().item(), 5),
                "lowest_cosine": round(cosine.min().item(), 6),
                "mean_cosine": round(cosine.mean().item(), 6),
            }
            record[f"{backend} {mode}"] = found
            rows.append([f"{backend} {mode}", *map(str, found.values())])
            if mode == "exact":
                missed |= found["max_levels"] > MAX or found["mean_levels"] > MEAN
                missed |= found["mean_cosine"] < COSINE
    print(f"{photos} photos and {len(files) - photos} generated images against open_clip")
    print(table(["loader", *found], rows))
    if options.json:
        write_results(
            options.json, {"photos": photos, "generated": len(files) - photos, "loaders": record}
        )
    sys.exit(missed)


if __name__ == "__main__":
    main()
