"""Stage 1 of a ViT to the same mAP on held-out sentences: today's way beside the plain one.

``python benchmarks/bench_visual.py [--model ViT-B-32 | --vit FILE] [--steps 40] [--json FILE]``

The ways take turns, a step each, so that a busy machine slows all of them: float32 with torch's
own attention and patch convolution and images learned pixel by pixel, which is how this began; the
same with ``pvp_fast.clip.frozen``; in the precision that "auto" takes here; with images learned by
their frequencies; and the last with some of the patches a step. All learn
the same 80 categories from the same features, batches and seed. Every few steps the held-out mAP is
noted beside the seconds of the processor that were spent on steps; judging is not counted. Without
weights at hand they are random: the encoder's time does not depend on them, the mAP does. ``--vit``
takes the trained tower that ``tools/train_pocket_vit.py`` writes, and the 70 categories it knows.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import table, write_results
from torch import nn

from pvp_fast import Backbone, Vocabulary, build_corpus
from pvp_fast.clip import frozen
from pvp_fast.sentences import grammar_sentences
from pvp_fast.training.features import Sentences, label_lists
from pvp_fast.training.gap import Perturbation
from pvp_fast.training.loop import LoopConfig
from pvp_fast.training.visual import VisualPromptConfig, VisualPromptStage

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))
from pocket.vit import load

SIGMA = 1.5  # the noise of sentences, about what auto_sigma finds


def torchs_own(backbone: Backbone) -> Backbone:
    """The layers as they were before :func:`pvp_fast.clip.frozen.for_inputs`."""
    for module in backbone.modules():
        if type(module) is frozen.MultiheadAttention:
            module.__class__ = nn.MultiheadAttention
        elif type(module) is frozen.Conv2d:
            module.__class__ = nn.Conv2d
    return backbone


class Way:
    """One way to train stage 1: its state, and what was noted of it."""

    def __init__(self, name: str, stage: VisualPromptStage) -> None:
        self.name, self.stage = name, stage
        loop = stage.config.loop
        self.optimizer = torch.optim.AdamW(stage.module.parameters(), loop.lr)
        self.batches = torch.Generator().manual_seed(0)
        self.chance = torch.Generator().manual_seed(1)
        self.cpu = self.wall = 0.0
        self.curve: list[dict[str, float]] = []

    def step(self) -> None:
        batch = torch.randint(
            len(self.stage), (self.stage.config.loop.batch_size,), generator=self.batches
        )
        cpu, wall = time.process_time(), time.perf_counter()
        total = torch.stack(list(self.stage.losses(batch, self.chance).values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        self.cpu += time.process_time() - cpu
        self.wall += time.perf_counter() - wall

    def note(self, step: int) -> None:
        found = round(self.stage.evaluate(), 2)
        self.curve.append(
            {"step": step, "map": found, "cpu_s": round(self.cpu, 2), "wall_s": round(self.wall, 2)}
        )
        print(f"{self.name:44} {self.curve[-1]}", flush=True)

    def seconds_to(self, aim: float, clock: str) -> float:
        """Seconds until the mAP was reached, between two notes in a straight line; else NaN."""
        before = {"map": 0.0, "cpu_s": 0.0, "wall_s": 0.0}
        for point in self.curve:
            if point["map"] >= aim:
                rise = point["map"] - before["map"]
                part = (aim - before["map"]) / rise if rise > 0 else 1.0
                return before[clock] + part * (point[clock] - before[clock])
            before = point
        return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--weights", default="random", help="a tag or file")
    parser.add_argument("--vit", type=Path, help="weights of the pocket model with a ViT")
    parser.add_argument("--sentences", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=40, help="of each way")
    parser.add_argument("--every", type=int, default=5, help="steps between two notes")
    parser.add_argument("--patches", type=float, nargs="+", default=[0.5])
    parser.add_argument("--skip-plain", action="store_true", help="leave out torch's own layers")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    torch.manual_seed(0)
    if options.vit:
        first, vocabulary = load(options.vit), Vocabulary.builtin("pocket70")
    else:
        first = Backbone.load(options.model, options.weights)
        vocabulary = Vocabulary.builtin("coco80")
    corpus = build_corpus(grammar_sentences(vocabulary, options.sentences, seed=0), vocabulary)
    seen, unseen = corpus.split(0.1, 0)
    sentences, held_out = (
        Sentences(
            first.encode_text(part.sentences).numpy(),
            label_lists(part.labels),
            len(vocabulary),
            gap=Perturbation(SIGMA),
        )
        for part in (seen, unseen)
    )

    def backbone(precision: str, plain: bool = False) -> Backbone:
        model = copy.deepcopy(first.model)
        made = Backbone(model, first._tokenizer, first.preprocess, precision=precision)
        return torchs_own(made) if plain else made

    fast = Backbone(
        copy.deepcopy(first.model), first._tokenizer, first.preprocess, precision="auto"
    )
    usual = VisualPromptConfig().frequencies
    kinds: list[tuple[str, Any, float, float]] = []
    if not options.skip_plain:
        plain = backbone("float32", plain=True)
        kinds.append(("float32, torch's own layers, pixels", plain, 1.0, 0.0))
        kinds.append(("float32, pixels", backbone("float32"), 1.0, 0.0))
    if options.skip_plain or fast.precision != "float32":
        kinds.append((f"{fast.precision}, pixels", fast, 1.0, 0.0))
    kinds.append((f"{fast.precision}, frequencies", fast, 1.0, usual))
    kinds += [
        (f"{fast.precision}, frequencies, {share:g} of the patches", fast, share, usual)
        for share in options.patches
    ]
    ways = []
    for name, model, share, frequencies in kinds:
        loop = LoopConfig(lr=0.1, batch_size=512)
        config = VisualPromptConfig(loop, patches=share, frequencies=frequencies)
        stage = VisualPromptStage(model, sentences, held_out.perturbed(), config)
        ways.append(Way(name, stage))
    for step in range(options.steps + 1):
        for way in ways:
            if step:
                way.step()
            if step % options.every == 0:
                way.note(step)
    aim = min(max(point["map"] for point in way.curve) for way in ways)
    rows, times = [], {}
    for way in ways:
        found = {clock: way.seconds_to(aim, clock) for clock in ("cpu_s", "wall_s")}
        times[way.name] = found
        ratio = times[ways[0].name]["cpu_s"] / found["cpu_s"]
        rows.append([way.name, f"{found['cpu_s']:.1f}", f"{found['wall_s']:.1f}", f"{ratio:.2f}"])
    print(table(["way", "CPU s", "wall s", "times as fast"], rows))
    if options.json:
        record = {
            "model": "the pocket model with a ViT" if options.vit else options.model,
            "weights": options.vit.name if options.vit else options.weights,
            "categories": len(vocabulary),
            "aim_map": aim,
            "seconds_to_aim": times,
            "curves": {way.name: way.curve for way in ways},
        }
        write_results(options.json, record)


if __name__ == "__main__":
    main()
