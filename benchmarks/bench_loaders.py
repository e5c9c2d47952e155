"""Images per second from encoded files to CLIP-ready batches: ours against the usual ways.

``python benchmarks/bench_loaders.py PHOTOS --json FILE``. Every contender reads the same photos and
gives (B, 3, 224, 224) float32 batches of 64, torch's DataLoader and webdataset with two worker
processes, the others with two threads. The contenders take turns; the median round counts. Workers
and pipelines start and stop inside the measured time, as for anyone who reads a folder once;
``--repeat`` lists the photos several times over so that this does not dominate. Decoding on a GPU
is not part of this and not yet measured.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import race, table, write_results

from pvp_fast.clip.preprocess import Preprocess
from pvp_fast.loaders import ImageStream
from pvp_fast.loaders.sources import find_images

BATCH, WORKERS = 64, 2
SQUARE = Preprocess(224)


def transform() -> Callable[[Image.Image], torch.Tensor]:
    config = PreprocessCfg(size=SQUARE.size, mean=SQUARE.mean, std=SQUARE.std)
    return image_transform_v2(config, is_train=False)


class Photos(Dataset):
    """The usual data set: open_clip's transform on PIL images."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths, self.transform = paths, transform()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index]) as image:
            return self.transform(image)


def checked(batches: Iterable[torch.Tensor], expected: int) -> None:
    """Read everything; every image must have arrived."""
    seen = 0
    for pixels in batches:
        assert pixels.shape[1:] == (3, SQUARE.size, SQUARE.size)
        assert pixels.dtype == torch.float32
        seen += len(pixels)
    if seen != expected:
        raise SystemExit(f"{seen} of {expected} images arrived")


def ours(source: object, expected: int, backend: str, mode: str) -> None:
    options = {"backend": backend, "mode": mode, "workers": WORKERS}
    with ImageStream(source, SQUARE, BATCH, **options) as stream:
        checked((batch.pixels for batch in stream), expected)


def one_process(paths: list[Path]) -> None:
    photos = Photos(paths)
    starts = range(0, len(paths), BATCH)
    checked(
        (torch.stack([photos[i] for i in range(s, min(s + BATCH, len(paths)))]) for s in starts),
        len(paths),
    )


def data_loader(paths: list[Path]) -> None:
    loader = DataLoader(Photos(paths), BATCH, num_workers=WORKERS)
    checked(loader, len(paths))


def web_dataset(shards: list[str], expected: int) -> None:
    import webdataset

    make = transform()
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=False)
        .decode("pil")
        .to_tuple("jpg")
        .map_tuple(make)
        .batched(BATCH)
    )
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=WORKERS)
    checked((batch[0] for batch in loader), expected)


def write_shards(folder: Path, paths: list[Path]) -> list[str]:
    """Two shards, one for each worker."""
    names = []
    for number in range(WORKERS):
        names.append(str(folder / f"photos-{number}.tar"))
        with tarfile.open(names[-1], "w") as tar:
            for place, path in enumerate(paths[number::WORKERS]):
                data = path.read_bytes()
                member = tarfile.TarInfo(f"{place:06d}.jpg")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=2)
    options = parser.parse_args()
    paths = list(find_images([options.photos])) * options.repeat
    count = len(paths)
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder), paths)
        contenders: dict[str, Callable[[], object]] = {
            "torch exact": partial(ours, paths, count, "torch", "exact"),
            "torch exact, tar": partial(ours, shards, count, "torch", "exact"),
            "torch fast": partial(ours, paths, count, "torch", "fast"),
            "open_clip, one process": partial(one_process, paths),
            "open_clip, DataLoader": partial(data_loader, paths),
        }
        if find_spec("nvidia") and find_spec("nvidia.dali"):
            contenders["dali exact"] = partial(ours, paths, count, "dali", "exact")
            contenders["dali fast"] = partial(ours, paths, count, "dali", "fast")
        if find_spec("webdataset"):
            contenders["open_clip, webdataset"] = partial(web_dataset, shards, count)
        times = race(contenders, rounds=options.rounds, warmup=1)
    speed = {name: round(1e3 * count / ms, 1) for name, ms in times.items()}
    baseline = speed["open_clip, DataLoader"]
    rows = [[name, f"{v:.0f}", f"{v / baseline:.2f}"] for name, v in speed.items()]
    print(table(["loader", "images/s", "of DataLoader"], rows))
    if options.json:
        write_results(options.json, {"images": count, "images_per_second": speed})


if __name__ == "__main__":
    main()
