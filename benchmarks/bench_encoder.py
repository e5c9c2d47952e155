"""Images per second from files to tags: streams and precisions, and the loops a user would write.

``python benchmarks/bench_encoder.py PHOTOS [--model ViT-B-32] [--busy 2] --json FILE``

Every contender reads the same files, gives the five best of the same class vectors, and runs in the
same process in turn: this package one batch at a time and in streams, in float32 and in bfloat16;
open_clip's own transform and tower behind torch's DataLoader, one worker a CPU; the tower exported
to ONNX Runtime behind the same DataLoader. Tags are compared with open_clip's in the same run.
``--busy N`` keeps N other processes at work meanwhile, as on a shared machine. Weights are random,
on which the time does not depend.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from bench_tag import untrained
from common import table, timings, write_results
from PIL import Image
from torch import Tensor

from pvp_fast import Backbone, Tagger, Vocabulary
from pvp_fast.loaders import ImageStream
from pvp_fast.loaders.sources import find_images
from pvp_fast.threads.budget import available_cpus, set_budget

BATCH, TOP_K, VOCABULARY = 32, 5, "coco80"
BUSY = "import sys\nwhile True: sum(range(10000))"


class Photos(torch.utils.data.Dataset[Tensor]):
    """Files through a transform, as in every example of open_clip."""

    def __init__(self, files: list[Path], transform: Callable[[Image.Image], Tensor]) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.open(self.files[index]).convert("RGB"))


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Other processes that use a CPU each."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def exported(backbone: Backbone, folder: Path, threads: int) -> Callable[[Tensor], Tensor]:
    """The image tower as ONNX Runtime runs it."""
    import onnxruntime

    file, size = folder / "tower.onnx", backbone.preprocess.size
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its one operator has no ONNX form
    try:
        torch.onnx.export(
            backbone.model.visual,
            (torch.zeros(2, 3, size, size),),
            str(file),
            input_names=["pixels"],
            output_names=["z"],
            dynamic_axes={"pixels": {0: "batch"}},
            dynamo=False,
        )
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(["z"], {"pixels": pixels.numpy()})[0])


def contenders(model: str, files: list[Path], folder: Path, threads: int) -> dict[str, Any]:
    """Calls that give the indices (N, 5) of every photo's best categories."""
    from open_clip.transform import image_transform

    weights = None if model == "pocket" else "random"
    names = [str(f) for f in files]
    taggers = {}
    for precision in ("float32", "bfloat16"):
        backbone = Backbone.load(model, weights, precision=precision)
        if precision == "float32":
            artifact = untrained(backbone, Vocabulary.builtin(VOCABULARY))
        taggers[precision] = Tagger(artifact, backbone)
    plain = taggers["float32"].backbone
    p = plain.preprocess
    transform = image_transform(p.size, False, p.mean, p.std, interpolation=p.interpolation)
    w, intercept, _ = artifact.head.linear()

    def rows(results: Any) -> Tensor:
        return torch.tensor([[tag.index for tag in result.tags] for result in results])

    def one_at_a_time() -> Tensor:
        tagger = taggers["float32"]
        with ImageStream(names, p, BATCH, prefetch=2) as stream:
            found = [
                tagger.tag_features(*tagger.encode(b.pixels), top_k=TOP_K, threshold=0.0)
                for b in stream
            ]
        return torch.tensor([[tag.index for tag in tags] for part in found for tags in part])

    def streams(precision: str) -> Callable[[], Tensor]:
        options: dict[str, Any] = {"top_k": TOP_K, "threshold": 0.0, "batch_size": BATCH}
        return lambda: rows(taggers[precision].tag(names, **options))

    def loader(encode: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        @torch.no_grad()
        def run() -> Tensor:
            batches = torch.utils.data.DataLoader(
                Photos(files, transform), BATCH, num_workers=threads
            )
            z = [torch.nn.functional.normalize(encode(pixels), dim=-1) for pixels in batches]
            scores = artifact.head.queries(torch.cat(z)) @ w.T + intercept
            return scores.topk(TOP_K).indices

        return run

    return {
        "one batch at a time": one_at_a_time,
        "streams": streams("float32"),
        "streams, bfloat16": streams("bfloat16"),
        "open_clip, DataLoader": loader(plain.model.encode_image),  # type: ignore[arg-type]
        "ONNX Runtime, DataLoader": loader(exported(plain, folder, threads)),
    }


def agreement(found: Tensor, truth: Tensor) -> float:
    """Share of the five best that both have."""
    return float((found[:, :, None] == truth[:, None, :]).any(2).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, help="folder of photos")
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", type=int, default=0, help="other busy processes")
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()

    files = list(find_images([options.photos]))
    files = (files * -(-options.count // len(files)))[: options.count]
    torch.set_num_threads(options.threads)
    set_budget(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        calls = contenders(options.model, files, Path(folder), options.threads)
        tags = {name: call() for name, call in calls.items()}
        with busy(options.busy):
            times = timings(calls, rounds=options.rounds, warmup=0)
    truth = tags["open_clip, DataLoader"]
    record = {
        name: {
            "images_per_second": 1e3 * len(files) / times[name].median,
            "p20": 1e3 * len(files) / times[name].p80,
            "p80": 1e3 * len(files) / times[name].p20,
            "top5_agreement": agreement(tags[name], truth),
        }
        for name in calls
    }
    print(f"{options.model}, {len(files)} photos, {options.busy} other busy processes")
    cells = [
        [name, *(f"{value:.3f}" for value in found.values())] for name, found in record.items()
    ]
    print(table(["", "images/s", "p20", "p80", "five best as open_clip"], cells))
    if options.json:
        about = {"model": options.model, "photos": len(files), "batch": BATCH}
        about |= {"load": os.getloadavg()[0]}  # of the last minute, these processes included
        about |= {"busy": options.busy, "threads": options.threads, "contenders": record}
        write_results(options.json, about)


if __name__ == "__main__":
    main()
