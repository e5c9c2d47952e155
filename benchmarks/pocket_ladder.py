"""The ladder on the pocket model, three drawing styles and several seeds.

``python benchmarks/pocket_ladder.py --pictograms DIR [--seeds 3] [--local] [--json FILE]``

Trains on grammar sentences only, then scores 600 new scenes each of the styles the pocket model was
trained on and of every style it never saw, at the trainer's own settings for test scenes. Where the
pictograms come from: pvp_fast/clip/weights/CARD.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

import torch
from common import write_results

from pvp_fast import Backbone, TrainConfig, Vocabulary, build_corpus, train
from pvp_fast.evaluation.ladder import Features, ladder
from pvp_fast.sentences import grammar_sentences

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))
from pocket.train import PocketConfig, PocketTrainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictograms", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--local", action="store_true", help="train the local branch too")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()

    backbone = Backbone.load("pocket")
    vocabulary = Vocabulary.builtin("pocket70")
    corpus = build_corpus(grammar_sentences(vocabulary, 6000, seed=0), vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        scenes = PocketTrainer(options.pictograms, [], Path(folder), PocketConfig()).tests
        configs = [
            dataclasses.replace(TrainConfig.demo(seed), local=options.local)
            for seed in range(options.seeds)
        ]
        artifacts = [
            train(backbone, corpus, Path(folder) / f"seed{config.seed}", config)
            for config in configs
        ]
    results = {}
    for style, (pixels, labels) in scenes.items():
        with torch.no_grad():
            z = torch.cat([backbone.encode_image(part) for part in pixels.split(100)])
            near = {
                artifact.version: torch.cat(
                    [
                        artifact.head.local_cosines(backbone.encode_regions(part))
                        for part in pixels.split(100)
                    ]
                )
                for artifact in artifacts
                if artifact.has_local
            }
        # 0 would mean "difficult" in signed labels: absent is −1.
        signs = labels.to(torch.int8) * 2 - 1
        result = ladder(artifacts, Features(z, signs, vocabulary.names, (), near))
        print(f"\n{style}\n{result.table()}\nat the artifact's thresholds: {result.tagging}")
        results[style] = result.to_dict()
    if options.json:
        write_results(options.json, {"styles": results})


if __name__ == "__main__":
    main()
