"""A step of stage 2 beside its text tower's own forward and backward.

``python benchmarks/bench_text_towers.py [--rounds 7] [--json FILE]``

An XLM-R of four layers at its real width and the text tower of ViT-B-16-SigLIP, with random
weights, on which no time depends. "own" is the library's ``encode_text`` of the same 20 prompts,
and the gradient of the token embeddings; "tower" the same from embeddings, as stage 2 runs it,
without what a step adds: contexts, sentences, losses, the optimiser. Times are of the process, not
of the wall: neighbours on the machine do not lengthen them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from architectures import HUB, draw, untrained, without_a_hub
from bench_training import BATCH, step
from common import race, table, write_results

from pvp_fast import Backbone, Vocabulary, build_corpus
from pvp_fast.clip.undrawn import undrawn
from pvp_fast.sentences import grammar_sentences
from pvp_fast.training.features import Sentences, label_lists
from pvp_fast.training.loop import LoopConfig
from pvp_fast.training.text import TextPromptConfig, TextPromptStage

LAYERS = 4
TOWERS = {
    f"XLM-R, {LAYERS} layers": ("xlm-roberta-base-ViT-B-32", "transformer"),
    "SigLIP, 12 layers": ("ViT-B-16-SigLIP", "token_embedding"),
}


def own_step(backbone: Backbone, part: str, ids: torch.Tensor) -> Callable[[], object]:
    """The library's own encoder, forward and the gradient of the token embeddings."""
    model: Any = backbone.model
    table = getattr(model.text, part)
    if part == "transformer":
        table = table.get_input_embeddings()
    leaves: list[torch.Tensor] = []

    def leaf(_module: object, _given: object, out: torch.Tensor) -> torch.Tensor:
        leaves[:] = [out.detach().requires_grad_()]
        return leaves[0]

    def run() -> None:
        handle = table.register_forward_hook(leaf)
        try:
            features = model.encode_text(ids, normalize=True)
        finally:
            handle.remove()
        torch.autograd.grad(features[:, 0].sum(), leaves)

    return run


def tower_step(backbone: Backbone, ids: torch.Tensor) -> Callable[[], object]:
    """From token embeddings to features and back, as stage 2 does it."""
    end = backbone.text_end(ids)

    def run() -> None:
        embedded = backbone.embed_tokens(ids).detach().requires_grad_()
        features = backbone.encode_embedded(embedded, end, ids)
        torch.autograd.grad(features[:, 0].sum(), embedded)

    return run


def measured(architecture: str, part: str, rounds: int) -> dict[str, float]:
    """Milliseconds of each contender on one tower."""
    with untrained(), undrawn():
        backbone = Backbone.load(architecture, "random")
    draw(backbone.model)
    vocabulary = Vocabulary.builtin("voc2007")
    corpus = build_corpus(grammar_sentences(vocabulary, 2000, seed=0), vocabulary)
    chance = torch.Generator().manual_seed(0)
    width = backbone.embed_dim
    rows = F.normalize(torch.randn(len(corpus), width, generator=chance), dim=-1)
    labels = label_lists(corpus.labels)
    sentences = Sentences(rows.numpy(), labels, len(vocabulary), backbone.device)
    visual = F.normalize(torch.randn(len(vocabulary), 1, width, generator=chance), dim=-1)
    config = TextPromptConfig(LoopConfig(batch_size=BATCH))
    stage = TextPromptStage(backbone, vocabulary.names, sentences, sentences, config, visual=visual)
    ids = stage.module.prompts.ids
    contenders = {
        "own": own_step(backbone, part, ids),
        "tower": tower_step(backbone, ids),
        "step": step(stage),
    }
    return race(contenders, rounds=rounds, warmup=1, clock=time.process_time)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    without_a_hub()
    HUB["xlm-roberta-base"][1]["num_hidden_layers"] = LAYERS
    times = {name: measured(*tower, options.rounds) for name, tower in TOWERS.items()}
    lines = [
        [name, *(f"{ms[key]:.0f}" for key in ("own", "tower", "step")),
         f"{ms['step'] / ms['own']:.2f}", f"{ms['step'] / ms['tower']:.2f}"]
        for name, ms in times.items()
    ]  # fmt: skip
    header = ["text tower", "own, ms", "tower, ms", "step, ms", "step / own", "step / tower"]
    print(table(header, lines))
    if options.json:
        record = {"categories": 20, "batch": BATCH, "milliseconds": times}
        write_results(options.json, record)


if __name__ == "__main__":
    main()
