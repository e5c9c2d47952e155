"""The main job on the pocket model, from sentences to a page: ``pvp-fast demo``."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from pvp_fast.artifact import Artifact
from pvp_fast.clip.backbone import Backbone
from pvp_fast.evaluation import encode_set, final_scores, ladder, read_folder
from pvp_fast.evaluation.ladder import Rung
from pvp_fast.files import atomic_write
from pvp_fast.report.page import Page, Picture, Row, build_page, png_uri, read_curve

STAGES = {
    "visual": "pseudo visual prompts",
    "text_only": "text prompts alone",
    "text": "text prompts + transfer",
    "adapter": "dual adapter",
    "local": "local branch",
}


def run_demo(
    out: str | os.PathLike[str],
    *,
    seeds: int = 1,
    sentences: int = 6000,
    steps: int | None = None,
    local: bool = False,
    progress: bool = True,
) -> Path:
    """Train on grammar sentences, tag the demo set, print the ladder, write ``out/index.html``.

    Args:
        out: folder of the runs and the page.
        seeds: how many runs; the ladder shows mean and spread.
        sentences: grammar sentences to learn from.
        steps: steps of every stage instead of the demo preset's.
        local: train the local branch too.
        progress: print and show progress bars, on stderr.

    Returns:
        The page's path.
    """
    from rich.console import Console

    from pvp_fast.demo import demo_set
    from pvp_fast.sentences import FeatureCache, build_corpus, grammar_sentences
    from pvp_fast.training import TrainConfig, train
    from pvp_fast.vocabulary.categories import Vocabulary

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
    configs = [dataclasses.replace(TrainConfig.demo(seed), local=local) for seed in range(seeds)]
    if steps is not None:
        configs = [_with_steps(config, steps) for config in configs]
    runs = [folder / f"seed{config.seed}" for config in configs]
    # Training would do this first; done here so that the page can say how long it takes.
    for config, run in zip(configs, runs, strict=True):
        for part in corpus.split(config.held_out, config.seed):
            if len(part):
                FeatureCache(run / "features").features(backbone, part)
    done("encoded each sentence once")
    artifacts = [
        train(backbone, corpus, run, config, progress=progress)
        for config, run in zip(configs, runs, strict=True)
    ]
    stages = "four stages" if local else "three stages"
    done(f"trained {stages}{f', {seeds} seeds' if seeds > 1 else ''}")
    dataset = read_folder(demo_set())
    features = encode_set(backbone, dataset, artifacts=artifacts)
    result = ladder(artifacts, features)
    rows = [_row(rung) for rung in result.rungs]
    done(f"tagged {len(dataset.paths)} pictures in a style that was never trained on")
    first = artifacts[0]
    scores = first.head.probabilities(final_scores(first, features))
    page = Page(
        names=vocabulary.names,
        sentences=len(corpus),
        examples=corpus.sentences[:4],
        timings=tuple(timings),
        rows=tuple(rows),
        pictures=tuple(
            Picture(path.name, path.read_bytes(), tuple(score.tolist()), tuple(truth.tolist()))
            for path, score, truth in zip(dataset.paths, scores, dataset.labels, strict=True)
        ),
        prompts=tuple(png_uri(image) for image in _prompt_images(first, backbone)),
        curves=tuple(
            (title, read_curve(folder / "seed0" / stage / "log.csv"))
            for stage, title in STAGES.items()
            if local or stage != "local"
        ),
        threshold=float(first.head.thresholds.median()),
    )
    target = folder / "index.html"
    with atomic_write(target, "w") as stream:
        stream.write(build_page(page))
    done("wrote the page")
    if progress:
        console.print(result.table(), markup=False)
    return target


def _row(rung: Rung) -> Row:
    row: Row = {"name": rung.name}
    for key in ("map", "cf1", "of1"):
        values = getattr(rung, key)
        row[key] = statistics.fmean(values)
        if len(values) > 1:
            row[f"{key}_sd"] = statistics.stdev(values)
    return row


def _with_steps(config: Any, steps: int) -> Any:
    for name in ("visual", "text", "adapter", "local_prompts"):
        stage = getattr(config, name)
        loop = dataclasses.replace(stage.loop, steps=steps)
        config = dataclasses.replace(config, **{name: dataclasses.replace(stage, loop=loop)})
    return config


def _prompt_images(artifact: Artifact, backbone: Backbone) -> Tensor:
    pixels = artifact.training.pixels[:, 0]
    return (backbone.preprocess.denormalize(pixels) * 255).round().byte().permute(0, 2, 3, 1)
