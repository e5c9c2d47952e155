"""What calibration promises and what it keeps, on the pocket model over several seeds.

``python benchmarks/pocket_calibration.py [--seeds 3] [--runs DIR] [--json FILE]``

Thresholds for precision 0.8 and 0.9 come from the sentences that training held out, and are judged
out of fold, on 2000 new sentences, and on the demo images. Then they come from labelled images and
are judged on others: all of the demo set in five folds (about four images a category to learn
from), and a random 35 images (about one).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from common import write_results

from pvp_fast import Backbone, TrainConfig, Vocabulary, build_corpus, train
from pvp_fast.artifact import Artifact
from pvp_fast.demo import demo_set
from pvp_fast.evaluation import encode_set, read_folder
from pvp_fast.evaluation.calibrate import Scored, calibrate, score_images, score_sentences, unseen
from pvp_fast.metrics import counts_at_threshold, expected_calibration_error
from pvp_fast.sentences import grammar_sentences
from pvp_fast.training.thresholds import Target

Row = dict[str, float]


def judge(artifact: Artifact, data: Scored) -> Row:
    """Percentages of an artifact on rows that it was not calibrated on."""
    chances = artifact.head.probabilities(data.scores)
    counts = counts_at_threshold(chances, data.labels, artifact.head.thresholds)
    found = {
        "precision": counts.precision,
        "macro_precision": counts.macro_precision,
        "recall": counts.recall,
        "ece": expected_calibration_error(chances, data.labels),
    }
    return {key: 100 * value for key, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, help="train here, and go on with what is there")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()

    backbone = Backbone.load("pocket")
    vocabulary = Vocabulary.builtin("pocket70")
    corpus = build_corpus(grammar_sentences(vocabulary, 6000, seed=0), vocabulary)
    fresh = build_corpus(grammar_sentences(vocabulary, 2000, seed=99), vocabulary, templates=False)
    features = encode_set(backbone, read_folder(demo_set()))
    rows: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(options.seeds):
            run = (options.runs or Path(temporary)) / f"seed{seed}"
            artifact = train(backbone, corpus, run, TrainConfig.demo(seed))
            held = score_sentences(backbone, artifact, unseen(artifact, corpus)[0])
            new, images = (
                score_sentences(backbone, artifact, fresh),
                score_images(artifact, features),
            )
            order = torch.randperm(
                len(images.scores), generator=torch.Generator().manual_seed(seed)
            )
            few, rest = (Scored(images.scores[r], images.labels[r]) for r in order.split([35, 115]))
            rows.setdefault("as trained, new sentences", []).append(judge(artifact, new))
            rows.setdefault("as trained, images", []).append(judge(artifact, images))
            for value in (0.8, 0.9):
                target = Target("precision", value)
                result = calibrate(artifact, held, target)
                found = result.to_dict()["after"]
                out_of_fold = {key: 100 * found[key] for key in found}
                on_images = calibrate(artifact, images, target, common=True).to_dict()["after"]
                tuned = calibrate(artifact, few, target, common=True).artifact
                for name, row in {
                    "sentences, out of fold": out_of_fold,
                    "sentences -> new sentences": judge(result.artifact, new),
                    "sentences -> images": judge(result.artifact, images),
                    "120 images, out of fold": {key: 100 * on_images[key] for key in on_images},
                    "35 images -> the other 115": judge(tuned, rest),
                }.items():
                    rows.setdefault(f"{target}: {name}", []).append(row)
    summary = {}
    for name, values in rows.items():
        summary[name] = {key: [row[key] for row in values] for key in values[0]}
        cells = [
            f"{key} {statistics.fmean(v):.2f} ± {statistics.stdev(v) if len(v) > 1 else 0:.2f}"
            for key, v in summary[name].items()
        ]
        print(f"{name:45} {', '.join(cells)}")
    if options.json:
        write_results(options.json, {"percent": summary})


if __name__ == "__main__":
    main()
