"""The main job on the pocket model, from sentences to a page: ``pvp-fast demo``."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pvp_fast.artifact import Artifact, probability
from pvp_fast.backbone import Backbone
from pvp_fast.files import atomic_write, safe_join
from pvp_fast.images import open_image
from pvp_fast.metrics import f1_at_topk, mean_average_precision
from pvp_fast.report.ladder import Row, spread, table_text
from pvp_fast.report.page import Page, Picture, build_page, png_uri, read_curve

STAGES = {
    "visual": "pseudo visual prompts",
    "text_only": "text prompts alone",
    "text": "text prompts + transfer",
    "adapter": "dual adapter",
}


def run_demo(
    out: str | os.PathLike[str],
    *,
    seeds: int = 1,
    sentences: int = 6000,
    steps: int | None = None,
    images: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Path:
    """Train on grammar sentences, tag the demo set, print the ladder, write ``out/index.html``.

    Args:
        out: folder of the runs and the page.
        seeds: how many runs; the ladder shows mean and spread.
        sentences: grammar sentences to learn from.
        steps: steps of every stage instead of the demo preset's.
        images: folder with ``labels.json`` instead of the demo set that ships.
        progress: print and show progress bars, on stderr.

    Returns:
        The page's path.
    """
    from rich.console import Console

    from pvp_fast.pocket import demo_set
    from pvp_fast.sentences import build_corpus, grammar_sentences
    from pvp_fast.training import TrainConfig, train
    from pvp_fast.vocabulary import Vocabulary

    console = Console(stderr=True, quiet=not progress, highlight=False)
    folder = Path(out)
    clock, timings = time.perf_counter(), []

    def done(what: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        timings.append((what, now - clock))
        console.print(f"{now - clock:6.1f} s  {what}")
        clock = now

    backbone = Backbone.load("pocket")
    vocabulary = Vocabulary.builtin("pocket70")
    done("loaded the pocket model, a small CLIP that stays frozen")
    corpus = build_corpus(grammar_sentences(vocabulary, sentences, seed=0), vocabulary)
    done(f"wrote and labelled {len(corpus)} sentences about {len(vocabulary)} categories")
    artifacts = []
    for seed in range(seeds):
        config = TrainConfig.demo(seed)
        if steps is not None:
            config = _with_steps(config, steps)
        artifacts.append(train(backbone, corpus, folder / f"seed{seed}", config, progress=progress))
    done(f"encoded them once and trained three stages{f', {seeds} seeds' if seeds > 1 else ''}")
    paths, labels = read_folder(Path(images) if images else demo_set(), vocabulary.names)
    pixels = torch.stack([backbone.preprocess(open_image(path)) for path in paths])
    with torch.no_grad():
        z = torch.cat([backbone.encode_image(part) for part in pixels.split(64)])
    rows = spread([[_row(name, s, labels) for name, s in rungs(a, z)] for a in artifacts])
    done(f"tagged {len(paths)} pictures in a style that was never trained on")
    first = artifacts[0]
    with torch.no_grad():
        scores = probability(first.adapter()(z), first.tensors["platt"])
    page = Page(
        names=vocabulary.names,
        sentences=len(corpus),
        examples=corpus.sentences[:4],
        timings=tuple(timings),
        rows=tuple(rows),
        pictures=tuple(
            Picture(path.name, path.read_bytes(), tuple(score.tolist()), tuple(truth.tolist()))
            for path, score, truth in zip(paths, scores, labels, strict=True)
        ),
        prompts=tuple(png_uri(image) for image in _prompt_images(first, backbone)),
        curves=tuple(
            (title, read_curve(folder / "seed0" / stage / "log.csv"))
            for stage, title in STAGES.items()
        ),
        threshold=float(first.tensors["thresholds"].median()),
    )
    target = folder / "index.html"
    with atomic_write(target, "w") as stream:
        stream.write(build_page(page))
    done("wrote the page")
    if progress:
        console.print(table_text(rows), markup=False)
    return target


def backbone_for(artifact: Artifact, device: str = "cpu") -> Backbone:
    """The CLIP that an artifact was trained with."""
    found = artifact.backbone
    return Backbone.load(str(found["name"]), found.get("pretrained"), device=device)


def rungs(artifact: Artifact, z: Tensor) -> list[tuple[str, Tensor]]:
    """Scores (B, C) of image features z (B, D) for each rung of the ladder."""
    tensors = artifact.tensors
    with torch.no_grad():
        return [
            ("zero-shot CLIP", z @ tensors["original"].T),
            ("text prompts", z @ tensors["text_only"].T),
            ("+ transfer from visual prompts", z @ tensors["text"].T),
            ("+ dual adapter", artifact.adapter()(z)),
        ]


def read_folder(folder: Path, names: tuple[str, ...]) -> tuple[list[Path], Tensor]:
    """Paths and labels (N, C) int8 in {-1, 1} of a folder with ``labels.json``."""
    photos: dict[str, Any] = json.loads((folder / "labels.json").read_text("utf-8"))["photos"]
    paths = [safe_join(folder, name) for name in photos]
    labels = torch.full((len(paths), len(names)), -1, dtype=torch.int8)
    for row, entry in zip(labels, photos.values(), strict=True):
        for label in entry["labels"]:
            row[names.index(label)] = 1
    return paths, labels


def _row(name: str, scores: Tensor, labels: Tensor) -> Row:
    f1 = f1_at_topk(scores, labels, 3)
    return {
        "name": name,
        "map": 100 * mean_average_precision(scores, labels),
        "cf1": 100 * f1.cf1,
        "of1": 100 * f1.of1,
    }


def _with_steps(config: Any, steps: int) -> Any:
    for name in ("visual", "text", "adapter"):
        stage = getattr(config, name)
        loop = dataclasses.replace(stage.loop, steps=steps)
        config = dataclasses.replace(config, **{name: dataclasses.replace(stage, loop=loop)})
    return config


def _prompt_images(artifact: Artifact, backbone: Backbone) -> Tensor:
    pixels = artifact.tensors["pixels"][:, 0]
    return (backbone.preprocess.denormalize(pixels) * 255).round().byte().permute(0, 2, 3, 1)
