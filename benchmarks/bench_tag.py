"""Images per second of ``pvp-fast tag``, from files to a finished output, and where the time goes.

``python benchmarks/bench_tag.py PHOTOS [--model pocket] [--model ViT-B-32] --json FILE``

"end to end" is what the command runs: ``Tagger.tag`` over files with two batches read ahead, each
result written to a sink, the sink closed. The stages are the same work one after another, each
alone in the process: read and decode to pixels, the image tower, scores and top-k, the sink.
Reading ahead overlaps the first with the others, so the whole may be faster than the sum. The
artifact has untrained class vectors and ViT-B-32 random weights: the time does not depend on what
was learned. All tags count (threshold 0), so that each image writes five.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from common import race, table, write_results

from pvp_fast import Artifact, Backbone, Tagger, Vocabulary
from pvp_fast.loaders import ImageStream
from pvp_fast.loaders.sources import find_images
from pvp_fast.modules.adapters import DualAdapter
from pvp_fast.modules.prompts import prompt_ensemble
from pvp_fast.modules.scoring import Head
from pvp_fast.sinks import open_sink
from pvp_fast.tagging.tagger import TagResult

BATCH, TOP_K = 64, 5
SINKS = {"jsonl": "tags.jsonl", "sqlite": "tags.db"}
VOCABULARY = "coco80"


def untrained(backbone: Backbone, vocabulary: Vocabulary) -> Artifact:
    """Class vectors of the names in every bank."""
    bank = prompt_ensemble(backbone, vocabulary.names).cpu()
    platt = torch.tensor([[10.0, -3.0]]).repeat(len(bank), 1)
    head = Head(DualAdapter(bank, bank, bank[:, None]), platt, torch.full((len(bank),), 0.5))
    about = {
        "name": backbone.name,
        "pretrained": backbone.pretrained,
        "fingerprint": backbone.fingerprint,
        "embed_dim": backbone.embed_dim,
    }
    return Artifact(vocabulary, about, head)


def measure(model: str, photos: list[Path], rounds: int, folder: Path) -> dict[str, object]:
    """Milliseconds of a pass over all photos, whole and by stage."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = Backbone.load(model, None if model == "pocket" else "random", device=device)
    tagger = Tagger(untrained(backbone, Vocabulary.builtin(VOCABULARY)), backbone)
    version = tagger.artifact.version
    turn = 0

    def write(results: object, sink: str) -> None:
        nonlocal turn
        turn += 1  # another file each time: SQLite would know the keys again
        count = 0
        with open_sink(sink, folder / f"{turn}-{SINKS[sink]}", version) as out:
            for result in results:  # type: ignore[attr-defined]
                assert out.write(result) is None
                assert len(result.tags) == TOP_K
                count += 1
        assert count == len(photos)

    def whole(sink: str) -> Callable[[], None]:
        return lambda: write(
            tagger.tag(iter(photos), top_k=TOP_K, threshold=0.0, batch_size=BATCH, prefetch=2),
            sink,
        )

    def read() -> list[torch.Tensor]:
        stream = ImageStream([str(p) for p in photos], backbone.preprocess, BATCH, device)
        with stream:
            return [batch.pixels for batch in stream]

    pixels = read()

    def encode() -> list[torch.Tensor]:
        return [tagger.encode(batch)[0] for batch in pixels]

    features = encode()

    def search() -> list[TagResult]:
        tags = [t for z in features for t in tagger.tag_features(z, top_k=TOP_K, threshold=0.0)]
        return [TagResult(str(p), found) for p, found in zip(photos, tags, strict=True)]

    results = search()
    contenders: dict[str, Callable[[], object]] = {
        f"end to end, {sink}": whole(sink) for sink in SINKS
    }
    contenders |= {"read and decode": read, "encode": encode, "scores and top-k": search}
    contenders |= {f"sink, {sink}": (lambda s=sink: write(results, s)) for sink in SINKS}
    times = race(contenders, rounds=rounds, warmup=1)
    print(f"{model}, {len(photos)} photos")
    rows = [
        [name, f"{ms / len(photos):.3f}", f"{1e3 * len(photos) / ms:.1f}"]
        for name, ms in times.items()
    ]
    print(table(["stage", "ms an image", "images/s"], rows))
    return {
        "model": model,
        "photos": len(photos),
        "image_size": backbone.preprocess.size,
        "milliseconds": times,
        "images_per_second": {
            name: 1e3 * len(photos) / ms for name, ms in times.items() if name.startswith("end")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, help="folder of photos")
    parser.add_argument("--model", action="append", help="default: pocket and ViT-B-32")
    parser.add_argument("--count", type=int, default=256, help="photos; a quarter for ViT-B-32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()

    photos = list(find_images([options.photos]))[: options.count]
    records = []
    with tempfile.TemporaryDirectory() as folder:
        for model in options.model or ["pocket", "ViT-B-32"]:
            some = photos if model == "pocket" else photos[: max(1, len(photos) // 4)]
            records.append(measure(model, some, options.rounds, Path(folder)))
    if options.json:
        record = {
            "vocabulary": VOCABULARY,
            "batch": BATCH,
            "top_k": TOP_K,
            "models": records,
        }
        write_results(options.json, record)


if __name__ == "__main__":
    main()
