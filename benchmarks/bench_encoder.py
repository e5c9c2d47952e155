"""Images per second from files to tags: streams and precisions, and the loops a user would write.

``python benchmarks/bench_encoder.py PHOTOS [--model ViT-B-32] [--busy 2] --json FILE``

Every contender reads the same files, gives the five best of the same class vectors, and runs in the
same process in turn: this package one batch at a time and in streams, in float32, bfloat16 and
int8; open_clip's own transform and tower behind torch's DataLoader, one worker a CPU; the tower
exported to ONNX Runtime behind the same DataLoader; transformers' zero-shot pipeline with a CLIP of
ViT-B/32, which encodes the names anew with every image. Tags are compared with open_clip's in the
same run, but the pipeline has random weights of its own. ``--busy N`` keeps N other processes at
work meanwhile, as on a shared machine. Weights are random, on which the time does not depend.

``--peaks`` instead runs each contender alone in a process and gives the most memory it held.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
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


def pipeline(files: list[Path], names: list[str]) -> Callable[[], Tensor]:
    """transformers' own way with a CLIP of ViT-B/32."""
    import open_clip
    import transformers

    words = open_clip.SimpleTokenizer()
    marks = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    tokenizer = transformers.CLIPTokenizer(
        vocab={marks.get(word, word): number for word, number in words.encoder.items()},
        merges=sorted(words.bpe_ranks, key=words.bpe_ranks.__getitem__),
    )
    ask = transformers.pipeline(
        "zero-shot-image-classification",
        model=transformers.CLIPModel(transformers.CLIPConfig()).eval(),
        tokenizer=tokenizer,
        image_processor=transformers.CLIPImageProcessor(),
    )
    place = {name: index for index, name in enumerate(names)}

    def run() -> Tensor:
        found = ask([str(f) for f in files], candidate_labels=names, batch_size=BATCH)
        return torch.tensor([[place[tag["label"]] for tag in tags[:TOP_K]] for tags in found])

    return run


def contenders(
    model: str, files: list[Path], folder: Path, threads: int
) -> dict[str, Callable[[], Callable[[], Tensor]]]:
    """What makes each call that gives the indices (N, 5) of every photo's best categories."""
    from open_clip.transform import image_transform

    weights = None if model == "pocket" else "random"
    names = [str(f) for f in files]

    def load(precision: str) -> Backbone:
        torch.manual_seed(0)  # the same random weights in each
        return Backbone.load(model, weights, precision=precision)

    plain = load("float32")
    artifact = untrained(plain, Vocabulary.builtin(VOCABULARY))
    p = plain.preprocess
    transform = image_transform(p.size, False, p.mean, p.std, interpolation=p.interpolation)
    w, intercept, _ = artifact.head.linear()

    def one_at_a_time() -> Callable[[], Tensor]:
        tagger = Tagger(artifact, plain)

        def run() -> Tensor:
            with ImageStream(names, p, BATCH, prefetch=2) as stream:
                found = [
                    tagger.tag_features(*tagger.encode(b.pixels), top_k=TOP_K, threshold=0.0)
                    for b in stream
                ]
            return torch.tensor([[tag.index for tag in tags] for part in found for tags in part])

        return run

    def streams(precision: str) -> Callable[[], Tensor]:
        tagger = Tagger(artifact, plain if precision == "float32" else load(precision))
        options: dict[str, Any] = {"top_k": TOP_K, "threshold": 0.0, "batch_size": BATCH}

        def run() -> Tensor:
            results = tagger.tag(names, **options)
            return torch.tensor([[tag.index for tag in result.tags] for result in results])

        return run

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

    made = {
        "one batch at a time": one_at_a_time,
        "streams": lambda: streams("float32"),
        "streams, bfloat16": lambda: streams("bfloat16"),
        "open_clip, DataLoader": lambda: loader(plain.model.encode_image),  # type: ignore[arg-type]
        "ONNX Runtime, DataLoader": lambda: loader(exported(plain, folder, threads)),
    }
    if model == "ViT-B-32":
        made["streams, int8"] = lambda: streams("int8")
        labels = list(artifact.vocabulary.names)
        made["transformers, zero-shot pipeline"] = lambda: pipeline(files, labels)
    return made


def peaks(arguments: list[str], names: Iterable[str]) -> dict[str, int]:
    """MiB that a process held at most, for each contender alone: 64 photos, once."""
    found = {}
    for name in names:
        line = [sys.executable, __file__, *arguments, "--count", "64", "--only", name]
        # What pvp-fast sets for itself; "one batch at a time" stays the usual process.
        few = {"MALLOC_ARENA_MAX": "2"} if name.startswith("streams") else {}
        environment = {**os.environ, **few}
        done = subprocess.run(line, check=True, capture_output=True, text=True, env=environment)
        found[name] = int(done.stdout.split()[-1])
        print(f"{name}: {found[name]} MiB", flush=True)
    return found


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
    parser.add_argument("--peaks", action="store_true", help="memory of each, in a process alone")
    parser.add_argument("--only", help="run this contender once and print its peak of memory, MiB")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()

    files = list(find_images([options.photos]))
    files = (files * -(-options.count // len(files)))[: options.count]
    torch.set_num_threads(options.threads)
    set_budget(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        made = contenders(options.model, files, Path(folder), options.threads)
        if options.only:
            made[options.only]()()
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
            return
        if options.peaks:
            given = [str(options.photos), "--model", options.model]
            found = peaks([*given, "--threads", str(options.threads)], made)
            if options.json:
                write_results(options.json, {"model": options.model, "peak_mib": found})
            return
        calls = {name: make() for name, make in made.items()}
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
