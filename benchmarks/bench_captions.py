"""Captions encoded once, as training begins: batches of like length, in a fast precision.

``python benchmarks/bench_captions.py CAPTIONS [--model ViT-B-32] [--count 1024] [--json FILE]``

CAPTIONS holds one caption a line, as Flickr8k's ``image#n<TAB>caption``. The contenders take turns
on the same captions: ours on batches in the file's order, each cut to its longest caption; ours as
it is, which sorts them by length; and the same in the precision that "auto" takes here. open_clip's
own ``encode_text``, which computes all padding, is timed once. Weights are random: no time depends
on them. Times are of the process, one thread.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import race, table, write_results
from torch import Tensor

from pvp_fast import Backbone

BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("captions", type=Path)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--count", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    torch.set_num_threads(1)
    with options.captions.open(encoding="utf-8") as stream:
        texts = [line.rstrip("\n").rpartition("\t")[2] for line in stream][: options.count]
    plain = Backbone.load(options.model, "random")
    fast = Backbone(
        copy.deepcopy(plain.model), plain._tokenizer, plain.preprocess, precision="auto"
    )
    model: Any = plain.model
    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]

    @torch.no_grad()
    def own() -> Tensor:
        parts = (model.encode_text(plain.tokenize(batch), normalize=True) for batch in batches)
        return torch.cat(list(parts))

    contenders = {
        "file's order, float32": lambda: torch.cat([plain.encode_text(b) for b in batches]),
        "like length, float32": lambda: plain.encode_text(texts, batch_size=BATCH),
        f"like length, {fast.precision}": lambda: fast.encode_text(texts, batch_size=BATCH),
    }
    begin = time.process_time()
    expected = own()
    padded = 1e3 * (time.process_time() - begin)
    least = {
        name: float(F.cosine_similarity(expected, encode().float()).min())
        for name, encode in contenders.items()
    }
    times = race(contenders, rounds=options.rounds, warmup=0, clock=time.process_time)
    times["open_clip, float32, once"] = padded
    first = times["file's order, float32"]
    rows = [
        [name, f"{ms / len(texts):.2f}", f"{first / ms:.2f}", f"{least.get(name, 1.0):.6f}"]
        for name, ms in times.items()
    ]
    print(table(["", "ms a caption", "times as fast", "least cosine"], rows))
    if options.json:
        record = {
            "model": options.model,
            "captions": len(texts),
            "ms_a_caption": {name: ms / len(texts) for name, ms in times.items()},
            "times_as_fast": {name: first / ms for name, ms in times.items()},
            "least_cosine": least,
        }
        write_results(options.json, record)


if __name__ == "__main__":
    main()
