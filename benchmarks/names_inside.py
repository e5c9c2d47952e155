"""What 70 categories lose among thousands of other names: nothing is to be.

``python benchmarks/names_inside.py [--counts 70 10000] [--learn none text] [--json FILE]``

The pocket model's 70 categories alone, and with as many other names as make each count (two-word
compounds, all different, as in ``bench_names.py``). ``map`` is the mean average precision, in
percent, of the 70 on the demo's scenes, ranking them among themselves: what the other names score
does not enter, what they did to the vectors of the 70 does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from common import write_results

from pvp_fast import Backbone, Vocabulary
from pvp_fast.demo import demo_set
from pvp_fast.evaluation import encode_set, read_folder
from pvp_fast.metrics import mean_average_precision
from pvp_fast.names import Request, prepare

HEADS = ("lamp", "boat", "tree", "cake", "shirt", "tower", "chair", "plate", "glove", "fence")


def inside(own: tuple[str, ...], count: int) -> Vocabulary:
    """``own`` names, spread evenly among others, ``count`` in all."""
    others = [f"kind{i} {HEADS[i % len(HEADS)]}" for i in range(count - len(own))]
    size = -(-len(others) // len(own)) + 1
    names: list[str] = []
    for place, name in enumerate(own):
        names += [name, *others[place * (size - 1) : (place + 1) * (size - 1)]]
    return Vocabulary(names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[70, 10_000])
    parser.add_argument("--learn", nargs="+", default=["none", "text"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    backbone = Backbone.load("pocket")
    own = Vocabulary.builtin("pocket70").names
    scenes = read_folder(demo_set())
    z, labels = encode_set(backbone, scenes).z, scenes.labels > 0
    order = [scenes.names.index(name) for name in own]
    rows = []
    for learn in options.learn:
        for count in options.counts:
            words = inside(own, count)
            start = time.process_time()
            with tempfile.TemporaryDirectory() as cache:
                head = prepare(Request(words, learn), backbone, cache=cache).loaded().head
                seconds = time.process_time() - start
                places = torch.tensor([words.index(name) for name in own])
                with torch.no_grad():
                    scores = head.take(places).cosines(z)
            score = 100 * mean_average_precision(scores, labels[:, order])
            row = {"learn": learn, "names": count, "map": score, "cpu_seconds": round(seconds, 1)}
            rows.append(row)
            print(json.dumps(row), flush=True)
    if options.json:
        write_results(options.json, {"model": "pocket", "cases": rows})


if __name__ == "__main__":
    main()
