"""How time and memory grow with categories C, rows B, sentences N and regions L, on this machine.

``python benchmarks/scaling.py [--json FILE]`` takes under three minutes on two cores. Each
operation is timed at a few sizes in turn; t = fixed + unit · size is fitted to them by relative
least squares. ``exponent`` is the slope of log t over the three largest sizes; ``even`` the size at
which the fixed part and the growing part take equally long, below which more work is nearly free.
Then unit costs of a ViT-B/32 with random weights, whose time does not depend on them, and of
reading JPEGs.
"""

from __future__ import annotations

import argparse
import functools
import io
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KMP_BLOCKTIME", "0")  # idle threads sleep, as in bench_topk.py

import numpy as np
import torch
import torch.nn.functional as F
from bench_training import encoder_step, step
from common import Contender, peak_memory, table, timings, write_results
from PIL import Image
from torch import Tensor

from pvp_fast import Backbone, Category, TagIndex, Vocabulary, build_corpus, spatial_softmax_pool
from pvp_fast.loaders import ImageStream, ItemSource
from pvp_fast.losses import asl_loss, asl_loss_ref, ranking_loss, ranking_loss_ref
from pvp_fast.sentences import grammar_sentences
from pvp_fast.training.adapter import AdapterConfig, AdapterStage
from pvp_fast.training.features import Sentences, label_lists
from pvp_fast.training.loop import LoopConfig
from pvp_fast.training.text import TextPromptConfig, TextPromptStage
from pvp_fast.training.visual import VisualPromptConfig, VisualPromptStage

Make = Callable[[int], Contender]


def rows(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


def tagging(dtype: str, *, categories: int = 16_384, batch: int = 64) -> Contender:
    index = TagIndex(rows(categories, 512), dtype)
    x = rows(batch, 512, seed=1)
    return lambda: index.topk(x, 10)


def loss(function: Callable[..., Tensor], *, categories: int = 1024, batch: int = 256) -> Contender:
    x, w = rows(batch, 256).requires_grad_(), rows(categories, 256, seed=1).requires_grad_()
    generator = torch.Generator().manual_seed(2)
    y = torch.zeros(batch, categories, dtype=torch.bool)
    y.scatter_(1, torch.randint(categories, (batch, 3), generator=generator), True)
    return lambda: torch.autograd.grad(function(x, w, y, scale=10.0), (x, w))


def pooling(*, regions: int = 49, categories: int = 80, batch: int = 16) -> Contender:
    z, w = rows(batch, regions, 256).requires_grad_(), rows(categories, 256).requires_grad_()
    return lambda: torch.autograd.grad(spatial_softmax_pool(z, w).sum(), (z, w))


def labelling(*, sentences: int = 2000, categories: int = 70) -> Contender:
    names = Vocabulary.builtin("pocket70")
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    made = (f"{a}{b}{c}x" for a in syllables for b in syllables for c in syllables)
    extra = [Category(next(made)) for _ in range(categories - len(names))]
    texts = grammar_sentences(names, sentences, seed=0)
    vocabulary = names.extended(*extra) if extra else names
    return lambda: build_corpus(texts, vocabulary, templates=False)


@functools.cache
def pocket() -> Backbone:
    return Backbone.load("pocket")


def stage(
    number: int, *, categories: int = 16, sentences: int = 2000, batch: int = 256
) -> Contender:
    """A whole optimiser step on random sentence features; the time does not depend on them."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(sentences, categories, generator=generator) < 2 / categories
    lists = label_lists([row.nonzero()[:, 0].tolist() for row in labels])
    data = Sentences(rows(sentences, 256).half().numpy(), lists, categories)
    loop = LoopConfig(batch_size=batch)
    names = (Vocabulary.builtin("pocket70").names * 2)[:categories]
    v = rows(categories, 256, seed=1)
    if number == 1:
        return step(VisualPromptStage(pocket(), data, data, VisualPromptConfig(loop)), batch)
    if number == 2:
        config = TextPromptConfig(loop)
        made = TextPromptStage(pocket(), names, data, data, config, visual=v[:, None])
        return step(made, batch)
    return step(AdapterStage(v, v, v[:, None], data, data, AdapterConfig(loop)), batch)


def encode_sentences(*, sentences: int) -> Contender:
    texts = grammar_sentences(Vocabulary.builtin("pocket70"), sentences, seed=0)
    return lambda: pocket().encode_text(texts)


def encode_images(*, batch: int) -> Contender:
    pixels = rows(batch, 3, 64, 64)
    return torch.no_grad()(lambda: pocket().encode_image(pixels))


def series() -> list[tuple[str, str, tuple[int, ...], Make]]:
    """(operation, what grows, sizes, how to make it)."""

    def over(make: Callable[..., Contender], name: str, *first: Any) -> Make:
        return lambda size: make(*first, **{name: size})

    many, batches = (1024, 4096, 16_384, 65_536), (1, 4, 16, 64, 256)
    found = [
        (f"top-k, {dtype}", letter, sizes, over(tagging, name, dtype))
        for dtype in ("float32", "bfloat16", "int8")
        for letter, name, sizes in (("C", "categories", many), ("B", "batch", batches))
    ]
    for title, function in (("ASL", asl_loss), ("ranking", ranking_loss)):
        for letter, name, sizes in (
            ("C", "categories", (64, 256, 1024, 4096, 16_384)),
            ("B", "batch", (16, 64, 256, 1024)),
        ):
            found.append((f"{title} loss", letter, sizes, over(loss, name, function)))
    found += [
        ("region pooling", "L", (16, 49, 196, 784), over(pooling, "regions")),
        ("region pooling", "C", (20, 80, 320, 1280), over(pooling, "categories")),
        ("region pooling", "B", (4, 16, 64), over(pooling, "batch")),
        ("labelling", "N", (200, 1000, 5000), over(labelling, "sentences")),
        ("labelling", "C", (70, 1000, 10_000), over(labelling, "categories")),
        ("encoding sentences", "N", (64, 256, 1024), over(encode_sentences, "sentences")),
        ("encoding images", "B", (4, 16, 64), over(encode_images, "batch")),
    ]
    for number in (1, 2, 3):
        sizes = (64, 256, 1024, 4096) if number == 3 else (8, 16, 32, 64)
        found += [
            (f"step of stage {number}", "C", sizes, over(stage, "categories", number)),
            (f"step of stage {number}", "N", (500, 2000, 8000), over(stage, "sentences", number)),
            (f"step of stage {number}", "B", (64, 256, 1024), over(stage, "batch", number)),
        ]
    return found


def fit(sizes: tuple[int, ...], values: list[float]) -> dict[str, float | None]:
    """Exponent over the three largest sizes; fixed and growing part by relative least squares."""
    n, t = np.array(sizes, float), np.array(values, float)
    slope = float(np.polyfit(np.log(n[-3:]), np.log(t[-3:]), 1)[0])
    (fixed, unit), *_ = np.linalg.lstsq(np.stack([1 / t, n / t], 1), np.ones(len(n)), rcond=None)
    even = float(fixed / unit) if fixed > 0 and unit > 0 and abs(slope) > 0.1 else None
    return {"exponent": slope, "fixed": float(fixed), "unit": float(unit), "even": even}


def time_series(rounds: int) -> list[dict[str, Any]]:
    made = []
    for operation, letter, sizes, make in series():
        calls = {str(size): make(size) for size in sizes}
        times = timings(calls, rounds=rounds, warmup=1, least_ms=2.0)
        ms = [times[str(size)].median for size in sizes]
        row = {"operation": operation, "grows_with": letter, "sizes": sizes, "ms": ms}
        made.append(row | fit(sizes, ms))
        print(f"{operation:22}{letter:3}exponent {made[-1]['exponent']:5.2f}  {ms}", flush=True)
    return made


def memory_series() -> list[dict[str, Any]]:
    """Peak bytes of a loss with its gradients, beyond its inputs."""
    functions = {
        "ASL loss": asl_loss,
        "ASL loss, plain PyTorch": asl_loss_ref,
        "ranking loss": ranking_loss,
        "ranking loss, plain PyTorch": ranking_loss_ref,
    }
    made = []
    for name, function in functions.items():
        for letter, key, sizes in (
            ("C", "categories", (256, 1024, 4096, 16_384)),
            ("B", "batch", (64, 256, 1024)),
        ):
            peaks = [peak_memory(loss(function, **{key: size})) for size in sizes]
            row = {"operation": name, "grows_with": letter, "sizes": sizes, "bytes": peaks}
            made.append(row | {"exponent": fit(sizes, [float(p) for p in peaks])["exponent"]})
    return made


def index_bytes(dtype: str, count: int = 8192) -> float:
    """Bytes a category takes in a saved index of width 512, which is mapped as it is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.safetensors"
        TagIndex(rows(count, 512), dtype).save(path)
        return path.stat().st_size / count


def unit_costs() -> dict[str, float]:
    """Milliseconds of one image, sentence or prompt."""
    plain = Backbone.load("ViT-B-32", "random")
    half = Backbone.load("ViT-B-32", "random", precision="bfloat16")
    pixels = rows(16, 3, 224, 224)
    texts = grammar_sentences(Vocabulary.builtin("coco80"), 32, seed=0)
    names = Vocabulary.builtin("coco80").names[:8]
    x = F.normalize(torch.randn(8, 512), dim=-1)
    data = Sentences(x.half().numpy(), label_lists([[i] for i in range(8)]), 8)
    text = TextPromptStage(plain, names, data, data, TextPromptConfig(transfer=0.0))

    def text_step() -> None:
        total = text.losses(torch.arange(8), torch.Generator())["ranking"]
        torch.autograd.grad(total, [p for p in text.module.parameters() if p.requires_grad])

    encode = torch.no_grad()(lambda backbone: backbone.encode_image(pixels))
    calls: dict[str, tuple[Contender, int]] = {
        "image, float32": (lambda: encode(plain), 16),
        "image, bfloat16": (lambda: encode(half), 16),
        "sentence": (lambda: plain.encode_text(texts), 32),
        "visual prompt, forward and backward": (encoder_step(plain, 8), 8),
        "text prompt, forward and backward": (text_step, 8),
    }
    times = timings({name: call for name, (call, _) in calls.items()}, rounds=3, warmup=1)
    costs = {name: times[name].median / count for name, (_, count) in calls.items()}

    generator = np.random.default_rng(0)
    smooth = Image.fromarray(generator.integers(0, 255, (24, 32, 3), dtype=np.uint8))
    data_of = io.BytesIO()
    smooth.resize((500, 375), Image.Resampling.BICUBIC).save(data_of, "JPEG", quality=90)
    items = [(str(i), data_of.getvalue()) for i in range(256)]

    def read() -> None:
        with ImageStream(ItemSource(items), plain.preprocess, 64, backend="torch") as stream:
            for _ in stream:
                pass

    costs["reading a 500 x 375 JPEG"] = timings({"read": read}, rounds=3)["read"].median / 256
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    torch.manual_seed(0)
    record = {
        "time": time_series(options.rounds),
        "memory": memory_series(),
        "index_bytes_a_category": {d: index_bytes(d) for d in ("float32", "bfloat16", "int8")},
        "vit_b_32_ms": unit_costs(),
    }
    lines = []
    for row in [*record["time"], *record["memory"]]:
        even = row.get("even")
        cells = [row["operation"], row["grows_with"], f"{row['exponent']:.2f}"]
        lines.append([*cells, "" if even is None else f"{even:.0f}"])
    print(table(["operation", "grows with", "exponent", "even at"], lines))
    print(record["index_bytes_a_category"], record["vit_b_32_ms"])
    assert all(math.isfinite(r["exponent"]) for r in record["time"])
    if options.json is not None:
        write_results(options.json, record)


if __name__ == "__main__":
    main()
