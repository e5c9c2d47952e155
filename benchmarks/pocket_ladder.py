"""The ladder on the pocket model, three drawing styles and several seeds.

``python benchmarks/pocket_ladder.py --pictograms DIR [--seeds 3] [--local] [--gap auto|none|1.5]
[--per-step 35] [--learn full|text] [--vit FILE] [--supervised 6000] [--json FILE]``

Trains on grammar sentences only, then scores 600 new scenes each of the styles the pocket model was
trained on and of every style it never saw, at the trainer's own settings for test scenes. For scale
there is a linear classifier of the same features and labelled scenes of the styles seen. ``--vit``
takes the weights that ``tools/train_pocket_vit.py`` writes: timm's vision transformer in place of
the pocket model's image tower. Where the pictograms come from: pvp_fast/clip/weights/CARD.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import write_results
from torch import Tensor

from pvp_fast import Backbone, Vocabulary, build_corpus, train
from pvp_fast.cli.train import make_config
from pvp_fast.evaluation.ladder import Features, ladder
from pvp_fast.metrics import mean_average_precision
from pvp_fast.modules.tiles import image_regions
from pvp_fast.sentences import grammar_sentences
from pvp_fast.training import TrainConfig

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))
from pocket.train import PocketConfig, PocketTrainer

LABELLED_SEED = 1001  # of the supervised classifier's scenes; the test scenes have 1, 2 and 3
DECAYS = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4)


@torch.no_grad()
def encode(backbone: Backbone, pixels: Tensor) -> Tensor:
    return torch.cat([backbone.encode_image(part) for part in pixels.split(100)])


def labelled(trainer: PocketTrainer, backbone: Backbone, count: int) -> tuple[Tensor, Tensor]:
    """Features (N, D) and labels (N, C) of new scenes of the styles seen."""
    trainer.config = dataclasses.replace(trainer.config, evaluation_scenes=count)
    pixels, labels = trainer._scenes(trainer.renderer, LABELLED_SEED)
    return encode(backbone, pixels), labels


def logistic(z: Tensor, labels: Tensor, decay: float) -> Tensor:
    """Class vectors (C, D) of a logistic regression with squared penalty."""
    w = torch.zeros(labels.shape[1], z.shape[1], requires_grad=True)
    bias = torch.full((labels.shape[1],), -3.0, requires_grad=True)
    solver = torch.optim.LBFGS([w, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.binary_cross_entropy_with_logits(z @ w.T + bias, labels.float())
        loss = loss + decay * w.square().sum() / len(w)
        loss.backward()
        return loss

    solver.step(closure)
    return w.detach()


def supervised(z: Tensor, labels: Tensor) -> Tensor:
    """Class vectors of the classifier that does best on a tenth held out, fitted to all scenes."""
    held = torch.arange(len(z)) % 10 == 0
    judged = {
        decay: mean_average_precision(
            z[held] @ logistic(z[~held], labels[~held], decay).T, labels[held]
        )
        for decay in DECAYS
    }
    return logistic(z, labels, max(judged, key=lambda decay: judged[decay]))


def some_a_step(config: TrainConfig, count: int) -> TrainConfig:
    """Stages 1 and 2 with so many of the 70 categories a step, each as often as with all."""
    if not count:
        return config
    changed = {}
    for name in ("visual", "text"):
        section = getattr(config, name)
        loop = dataclasses.replace(section.loop, steps=round(section.loop.steps * 70 / count))
        changed[name] = dataclasses.replace(section, loop=loop, categories_per_step=count)
    return dataclasses.replace(config, **changed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictograms", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--local", action="store_true", help="train the local branch too")
    parser.add_argument("--learn", choices=("full", "text"), default="full")
    parser.add_argument("--vit", type=Path, help="weights of another image tower")
    parser.add_argument("--gap", default="auto", help="as pvp-fast train --gap")
    parser.add_argument(
        "--per-step",
        type=int,
        default=0,
        help="prompts of so many categories a step, in as many more steps",
    )
    parser.add_argument("--supervised", type=int, default=6000, help="labelled scenes; 0: none")
    parser.add_argument("--runs", type=Path, help="train here, and go on with what is there")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()

    backbone = learner = Backbone.load("pocket")
    if options.vit:
        from pocket.vit import load

        backbone = load(options.vit)
        if (
            options.learn == "full"
        ):  # else nothing is learned but by the text tower, which both have
            learner = backbone
    vocabulary = Vocabulary.builtin("pocket70")
    corpus = build_corpus(grammar_sentences(vocabulary, 6000, seed=0), vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        trainer = PocketTrainer(options.pictograms, [], Path(folder), PocketConfig())
        scenes = trainer.tests
        head = None
        if options.supervised:
            head = supervised(*labelled(trainer, backbone, options.supervised))
        configs = [
            some_a_step(
                dataclasses.replace(
                    make_config("demo", seed, None, options.local, options.gap),
                    learn=options.learn,
                ),
                options.per_step,
            )
            for seed in range(options.seeds)
        ]
        artifacts = [
            train(learner, corpus, (options.runs or Path(folder)) / f"seed{config.seed}", config)
            for config in configs
        ]
    results = {}
    linear = {}
    for style, (pixels, labels) in scenes.items():
        with torch.no_grad():
            z = encode(backbone, pixels)
            near = {
                artifact.version: torch.cat(
                    [
                        artifact.head.local_cosines(
                            image_regions(backbone, part, artifact.head.local.tile)
                        )
                        for part in pixels.split(100)
                    ]
                )
                for artifact in artifacts
                if artifact.head.local is not None
            }
        # 0 would mean "difficult" in signed labels: absent is −1.
        signs = labels.to(torch.int8) * 2 - 1
        result = ladder(artifacts, Features(z, signs, vocabulary.names, (), near))
        print(f"\n{style}\n{result.table()}\nat the artifact's thresholds: {result.tagging}")
        results[style] = result.to_dict()
        if options.learn == "text":  # the ladder has this rung where all stages were run
            prompts = [
                100 * mean_average_precision(z @ artifact.head.adapter.text.T, labels)
                for artifact in artifacts
            ]
            results[style]["text_prompts_map"] = prompts
            print(f"text prompts: {', '.join(f'{score:.1f}' for score in prompts)}")
        if head is not None:
            linear[style] = 100 * mean_average_precision(z @ head.T, labels)
            print(f"linear classifier, {options.supervised} labelled scenes: {linear[style]:.1f}")
    if options.json:
        record: dict[str, Any] = {
            "sigma": [artifact.metrics["gap_sigma"] for artifact in artifacts],
            "supervised": {"scenes": options.supervised, "map": linear},
            "styles": results,
        }
        if options.vit:
            record["vit"] = json.loads((options.vit.parent / "config.json").read_text())
        write_results(options.json, record)


if __name__ == "__main__":
    main()
