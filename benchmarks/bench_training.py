"""A training step of each stage, beside the plain way of doing the same.

``python benchmarks/bench_training.py [--model pocket|ViT-B-32] [--rounds 5] [--json FILE]``

The plain way runs the text encoder on every sentence of every step, in float32, and holds the
ranking hinge of TaI-DPT as a dense (B, C, C) table. Both minimise the same loss of the same
sentences, so the ratio of the step times is the ratio of the times to the same loss. "encoder" is
the image tower's forward and backward alone: what a step of stage 1 cannot do without; "torch's own
layers" are those that ``pvp_fast.clip.frozen`` replaces. "without streams" all threads of OpenMP
work on one step together (:mod:`pvp_fast.training.parts`); ``OMP_WAIT_POLICY=PASSIVE`` lets its
threads sleep between, as `pvp-fast` does. bfloat16 is that of weights cast once.
ViT-B-32 has random weights here; the time does not depend on them.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from bench_visual import torchs_own
from common import race, table, write_results
from torch import Tensor

from pvp_fast import Backbone, Vocabulary, build_corpus
from pvp_fast.sentences import grammar_sentences
from pvp_fast.sentences.cache import FeatureCache
from pvp_fast.threads.budget import set_budget
from pvp_fast.training.adapter import AdapterConfig, AdapterStage
from pvp_fast.training.features import Sentences, label_lists
from pvp_fast.training.loop import LoopConfig
from pvp_fast.training.parts import in_parts
from pvp_fast.training.sampled import SampledTextPrompts, SampledVisualPrompts
from pvp_fast.training.text import TextPromptConfig, TextPromptStage
from pvp_fast.training.visual import VisualPromptConfig, VisualPromptStage

BATCH = 512


def dense_ranking(x: Tensor, w: Tensor, y: Tensor, scale: float) -> Tensor:
    """The hinge over all (B, C, C) pairs, masked: what TaI-DPT's formula says, word by word."""
    s = scale * F.normalize(x, dim=-1) @ F.normalize(w, dim=-1).T
    hinge = (1 - s[:, :, None] + s[:, None, :]).clamp(min=0)
    pairs = y[:, :, None] & ~y[:, None, :]
    return (hinge * pairs).sum() / len(x)


def step(
    stage: VisualPromptStage
    | SampledVisualPrompts
    | TextPromptStage
    | SampledTextPrompts
    | AdapterStage,
    rows: int = BATCH,
) -> Callable[[], object]:
    """One whole step: loss, backward, optimiser; another batch each time."""
    optimizer: torch.optim.Optimizer
    if isinstance(stage, SampledVisualPrompts | SampledTextPrompts):
        optimizer = stage.optimizer
    else:
        parameters = [p for p in stage.module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, 1e-3)
    generator = torch.Generator().manual_seed(0)

    def run() -> None:
        batch = torch.randint(len(stage), (rows,), generator=generator)
        total = torch.stack(list(stage.losses(batch, generator).values())).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()

    return run


def without_streams(call: Callable[[], object]) -> Callable[[], object]:
    """The same by all threads of OpenMP together."""

    def run() -> None:
        set_budget(1)
        try:
            call()
        finally:
            set_budget(None)

    return run


def plain_step(
    backbone: Backbone, texts: list[str], labels: Tensor, count: int, scale: float
) -> Callable[[], object]:
    """Stage 1 the plain way."""
    size = backbone.image_size
    pixels = torch.randn(count, 3, *size, device=backbone.device, requires_grad=True)
    optimizer = torch.optim.AdamW([pixels], 1e-3)
    generator = torch.Generator().manual_seed(0)

    def run() -> None:
        rows = torch.randint(len(texts), (BATCH,), generator=generator)
        with torch.no_grad():
            x = backbone.encode_text([texts[i] for i in rows.tolist()])
        v = backbone.encode_image(pixels)
        loss = dense_ranking(x, v, labels[rows].to(v.device), scale)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return run


def encoder_step(backbone: Backbone, count: int) -> Callable[[], object]:
    """The image tower alone, forward and the gradient of the pixels."""
    pixels = torch.randn(count, 3, *backbone.image_size, device=backbone.device)
    pixels.requires_grad_()

    def run() -> None:
        z = in_parts(backbone.encode_image, pixels)
        (grad,) = torch.autograd.grad(z.sum(), pixels)
        del grad

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--vocabulary", default=None, help="default: pocket70, or voc2007")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()

    pocket = options.model == "pocket"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = None if pocket else "random"
    backbone = Backbone.load(options.model, weights, device=device, precision="float32")
    half = Backbone.load(options.model, weights, device=device, precision="bfloat16")
    own = torchs_own(Backbone.load(options.model, weights, device=device, precision="float32"))
    vocabulary = Vocabulary.builtin(options.vocabulary or ("pocket70" if pocket else "voc2007"))
    corpus = build_corpus(grammar_sentences(vocabulary, 2000, seed=0), vocabulary)
    count = len(vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        if pocket:
            features = FeatureCache(folder).features(backbone, corpus)
        else:
            # Random unit rows: encoding the corpus with random weights would teach nothing more.
            features = F.normalize(torch.randn(len(corpus), backbone.embed_dim), dim=-1).numpy()
        labels = corpus.multi_hot()
        sentences = Sentences(features, label_lists(corpus.labels), count, backbone.device)
        loop = LoopConfig(batch_size=BATCH)
        scale = VisualPromptConfig().scale
        part = max(1, count // 4)
        whole = VisualPromptConfig(loop)

        def visual(clip: Backbone, config: VisualPromptConfig = whole) -> VisualPromptStage:
            return VisualPromptStage(clip, sentences, sentences, config)

        def words(clip: Backbone) -> TextPromptStage:
            names, config = vocabulary.names, TextPromptConfig(loop)
            return TextPromptStage(clip, names, sentences, sentences, config, visual=v)

        partial = SampledVisualPrompts(
            half,
            sentences,
            sentences,
            VisualPromptConfig(loop, categories_per_step=part),
            Path(folder) / "images.rows",
        )
        v = visual(backbone).vectors()
        text = words(backbone)
        adapter = AdapterStage(
            v[:, 0], text.vectors(), v, sentences, sentences, AdapterConfig(loop)
        )
        contenders = {
            "stage 1, the plain way": plain_step(
                backbone, list(corpus.sentences), labels, count, scale
            ),
            "stage 1, torch's own layers": step(visual(own)),
            "stage 1": step(visual(backbone)),
            "stage 1, without streams": without_streams(step(visual(backbone))),
            "stage 1, bfloat16": step(visual(half)),
            f"stage 1, bfloat16, {part} categories a step": step(partial),
            "encoder": encoder_step(backbone, count),
            "encoder, bfloat16": encoder_step(half, count),
            "stage 2, torch's own layers": step(words(own)),
            "stage 2": step(text),
            "stage 2, bfloat16": step(words(half)),
            "stage 3": step(adapter),
        }
        if half.patches:
            some = visual(half, VisualPromptConfig(loop, patches=0.5))
            contenders["stage 1, bfloat16, half of the patches"] = step(some)
        times = race(contenders, rounds=options.rounds, warmup=1)
    plain = times["stage 1, the plain way"]
    rows = [
        [name, f"{ms:.1f}", f"{plain / ms:.1f}" if name.startswith("stage 1") else ""]
        for name, ms in times.items()
    ]
    print(table(["step", "ms", "times the plain way's speed"], rows))
    share = {
        "float32": times["encoder"] / times["stage 1"],
        "bfloat16": times["encoder, bfloat16"] / times["stage 1, bfloat16"],
    }
    print(f"inside the encoder: {share['float32']:.0%}, bfloat16 {share['bfloat16']:.0%}")
    if options.json:
        record = {
            "model": options.model,
            "categories": count,
            "batch": BATCH,
            "sentences": len(corpus),
            "openmp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "not set"),
            "milliseconds": times,
            "share_of_stage_1_inside_the_encoder": share,
        }
        write_results(options.json, record)


if __name__ == "__main__":
    main()
