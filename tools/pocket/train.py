"""Train the pocket model from scratch: ``python tools/train_pocket.py --help``.

Symmetric contrastive learning (CLIP, arXiv 2103.00020, section 2.3) on rendered scenes paired with
sentences that mention exactly their categories. In a batch, pairs of the same category set share
their target, and a sentence that tells a part of a scene is not its negative. A linear head that
images and sentences share predicts which categories each mentions; it makes a short training go
far, and is left behind when the weights are exported. ``name_weight`` above 0 also pairs scenes
with the bare names of their categories: zero-shot gains much, and text prompts then gain nothing.
The schedule follows the time budget, so a slow machine trains fewer steps, not longer. Resumable;
the weights that ship are an exponential moving average.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor

from pocket.pairs import FULL_COUNTS, PairSource
from pocket.scenes import SceneRenderer
from pocket.sprites import load_sprites, read_styles
from pvp_fast.clip.pocket import (
    EMBED_DIM,
    MEAN,
    STD,
    CompactVocabulary,
    build_model,
    save_weights,
    tokenizer,
)
from pvp_fast.files import atomic_write
from pvp_fast.metrics import mean_average_precision
from pvp_fast.modules.templates import CLIP_TEMPLATES
from pvp_fast.sentences import read_captions
from pvp_fast.vocabulary.categories import Vocabulary

# Styles never trained on. The demo set is drawn in the first.
UNSEEN = ("twemoji", "fxemoji")
# A token seen less often than this in captions shares the neutral row.
RAREST_TOKEN = 4
GRAMMAR_PROBE = 6000


@dataclass(frozen=True)
class PocketConfig:
    """What a run is made of; a resumed run must have the same."""

    minutes: float = 75.0
    batch_size: int = 256
    lr: float = 1.5e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    token_dropout: float = 0.03
    ema: float = 0.998
    head_weight: float = 1.0
    name_weight: float = 0.005
    max_steps: int | None = None
    evaluate_every_minutes: float = 3.0
    evaluation_scenes: int = 600
    seed: int = 0


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of rows of logits to rows of weights, each row of weights scaled to sum 1."""
    return -(target / target.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, sets: Tensor) -> Tensor:
    """Symmetric InfoNCE of B scenes and their sentences, from unit rows (B, D).

    Args:
        sets: (B, C) bool, the categories of each pair. Pairs of equal sets share their target. A
            sentence that tells a part of a scene is neither its positive nor its negative.
    """
    both = sets.float() @ sets.float().T
    size = sets.sum(1).float()
    equal = (both == size) & (both == size[:, None])
    part = (both == size) & ~equal  # [i, j]: sentence j tells a part of scene i
    logits = (scale * image @ text.T).masked_fill(part, -1e4)

    target = equal.float()
    return (soft_cross_entropy(logits, target) + soft_cross_entropy(logits.T, target)) / 2


def name_loss(image: Tensor, names: Tensor, scale: Tensor, sets: Tensor) -> Tensor:
    """Symmetric InfoNCE of B scenes (B, D) and the names of all categories (C, D), unit rows.

    Args:
        sets: (B, C) bool, the categories of each scene, all of them its targets. A name that no
            scene of the batch shows has no target among them and is only a negative.
    """
    logits, target = scale * image @ names.T, sets.float()
    shown = sets.any(0)
    to_scenes = soft_cross_entropy(logits.T[shown], target.T[shown])
    return (soft_cross_entropy(logits, target) + to_scenes) / 2


def multi_hot(sets: Sequence[Sequence[int]], n_categories: int) -> Tensor:
    """Sets of category indices as (len(sets), n_categories) bool."""
    labels = torch.zeros(len(sets), n_categories, dtype=torch.bool)
    for row, categories in zip(labels, sets, strict=True):
        row[list(categories)] = True
    return labels


def used_tokens(tokenize: Any, source: PairSource, vocabulary: Vocabulary) -> Tensor:
    """Ascending ids of the tokens worth a row of their own: frequent, or used by the grammar."""
    ids = tokenize([s for s, _ in source.captions] or ["a"])
    counts = torch.bincount(ids.flatten(), minlength=49408)
    grammar = source.draw(GRAMMAR_PROBE, 0.0)[0]
    names = [t.format(n) for t in CLIP_TEMPLATES for n in vocabulary.names]
    certain = torch.bincount(tokenize(grammar + names).flatten(), minlength=49408)
    return ((counts >= RAREST_TOKEN) | (certain > 0)).nonzero().flatten()


class PocketTrainer:
    """One training run in a folder.

    Args:
        pictograms: folder of style JSON files (see :mod:`pocket.sprites`).
        captions: caption files for the human sentences; may be empty.
        out: run folder (checkpoint, log.csv, and the exported weights in ``weights``).
        config: hyper-parameters.
    """

    def __init__(
        self, pictograms: Path, captions: list[Path], out: Path, config: PocketConfig
    ) -> None:
        self.config, self.out = config, out
        self.vocabulary = Vocabulary.builtin("pocket70")
        self.rng = random.Random(config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        sentences = list(chain.from_iterable(read_captions(path) for path in captions))
        self.pairs = PairSource(self.vocabulary, sentences, self.rng)
        self.tokenize = tokenizer()
        self.tokens = CompactVocabulary(used_tokens(self.tokenize, self.pairs, self.vocabulary))

        styles = read_styles(pictograms)
        names = self.vocabulary.names
        seen = [s for n, s in styles.items() if n not in UNSEEN]
        self.renderer = SceneRenderer(load_sprites(seen, names))
        self.tests = {"seen": self._scenes(self.renderer, 1)}
        for offset, name in enumerate(n for n in UNSEEN if n in styles):
            renderer = SceneRenderer(load_sprites([styles[name]], names))
            self.tests[name] = self._scenes(renderer, 2 + offset)

        with torch.random.fork_rng(devices=[]):  # open_clip initialises from the global generator
            torch.manual_seed(config.seed)
            self.model = build_model(self.tokens.size)
            # Of unit rows, as the contrastive term sees them; the bias starts at the base rate.
            self.head = torch.nn.Linear(EMBED_DIM, len(self.vocabulary))
        torch.nn.init.normal_(self.head.weight, std=0.5, generator=self.generator)
        torch.nn.init.constant_(self.head.bias, -3.0)
        self.model.visual.to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": [*vectors, *self.head.parameters()], "weight_decay": 0.0},
            ],
            lr=config.lr,
            betas=(0.9, 0.98),
        )
        self.step = 0
        self.seconds = 0.0

    def _scenes(self, renderer: SceneRenderer, seed: int) -> tuple[Tensor, Tensor]:
        """Test scenes (N, 3, 64, 64), normalised, and their labels (N, C) bool."""
        count = self.config.evaluation_scenes
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        numbers = rng.choices(range(1, len(FULL_COUNTS) + 1), FULL_COUNTS, k=count)
        sets = [rng.sample(renderer.categories, n) for n in numbers]
        parts = [
            renderer.render(sets[i : i + 100], generator, jitter=0.6) for i in range(0, count, 100)
        ]
        return normalise(torch.cat(parts)), multi_hot(sets, len(self.vocabulary))

    def loss(self, progress: float) -> Tensor:
        """The contrastive loss of one fresh batch at ``progress`` (0–1) through the run."""
        config = self.config
        easy = max(0.0, 1 - 4 * progress)
        sentences, sets = self.pairs.draw(config.batch_size, easy)
        template = self.rng.choice(CLIP_TEMPLATES)
        named = [template.format(name) for name in self.vocabulary.names if config.name_weight]
        rows = self.tokens.compact(self.tokenize([*sentences, *named]))
        forget = torch.rand(rows.shape, generator=self.generator) < config.token_dropout
        # The end-of-text token stays: it is where the text is pooled.
        rows = torch.where(forget & (rows != self.tokens.size - 1), 0, rows)
        jitter = 0.5 + 0.5 * min(1.0, 3 * progress)
        pixels = normalise(self.renderer.render(sets, self.generator, easy=easy, jitter=jitter))
        with torch.autocast("cpu", torch.bfloat16):
            image = self.model.encode_image(pixels.contiguous(memory_format=torch.channels_last))
            text = self.model.encode_text(rows)
        image, text = (F.normalize(v.float(), dim=-1) for v in (image, text))
        names, text = text[len(sentences) :], text[: len(sentences)]
        labels = multi_hot(sets, len(self.vocabulary))
        mentions = sum(
            F.binary_cross_entropy_with_logits(self.head(v), labels.float(), reduction="sum")
            for v in (image, text)
        )
        scale = self.model.logit_scale.exp()
        total = contrastive_loss(image, text, scale, labels)
        total = total + config.head_weight * mentions / (2 * len(sets))
        if named:
            total = total + config.name_weight * name_loss(image, names, scale, labels)
        return total

    def advance(self) -> float:
        """One optimiser step; returns its loss."""
        config, start = self.config, time.monotonic()
        progress = self.progress()
        rate = min(1.0, (self.step + 1) / config.warmup_steps)
        rate *= 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * rate
        loss = self.loss(progress)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.step}")
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
            keep = min(config.ema, (self.step + 1) / (self.step + 10))
            current = self.model.state_dict()
            for name, value in self.average.state_dict().items():
                if value.is_floating_point():
                    value.lerp_(current[name], 1 - keep)
                else:
                    value.copy_(current[name])
        self.step += 1
        self.seconds += time.monotonic() - start
        return loss.item()

    def progress(self) -> float:
        """How far through the run, 0 to 1: by steps when they are given, else by time."""
        if self.config.max_steps is not None:
            return min(1.0, self.step / self.config.max_steps)
        return min(1.0, self.seconds / 60 / self.config.minutes)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Zero-shot mAP in percent of the averaged weights on every test set."""
        model = self.average.eval()
        texts = [[t.format(n) for n in self.vocabulary.names] for t in CLIP_TEMPLATES]
        vectors = [model.encode_text(self.tokens.compact(self.tokenize(t))) for t in texts]
        classes = torch.stack([F.normalize(v, dim=-1) for v in vectors]).sum(0)
        result = {}
        for name, (pixels, labels) in self.tests.items():
            images = torch.cat([model.encode_image(p) for p in pixels.split(100)])
            scores = F.normalize(images, dim=-1) @ F.normalize(classes, dim=-1).T
            result[name] = 100 * mean_average_precision(scores, labels)
        return result

    def save(self) -> None:
        """Checkpoint: the run goes on from here bit for bit (given ``max_steps``)."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        tensors |= {f"head.{k}": v for k, v in self.head.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
        tensors["generator"] = self.generator.get_state()
        version, internal, gauss = self.rng.getstate()
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "rng": [version, list(internal), gauss],
            "config": asdict(self.config),
        }
        metadata = {"state": json.dumps(state)}
        with atomic_write(self.out / "checkpoint.safetensors") as stream:
            stream.write(save({k: v.contiguous().clone() for k, v in tensors.items()}, metadata))

    def resume(self) -> bool:
        """Go on from the checkpoint, if there is one; False when there is none."""
        path = self.out / "checkpoint.safetensors"
        if not path.exists():
            return False
        from safetensors import safe_open

        with safe_open(str(path), framework="pt") as stored:
            state = json.loads(stored.metadata()["state"])
        if state["config"] != asdict(self.config):
            raise ValueError(f"{path} belongs to a run with other settings: {state['config']}")
        tensors = load_file(path)
        pick = {
            prefix: {
                k.removeprefix(f"{prefix}."): v
                for k, v in tensors.items()
                if k.startswith(f"{prefix}.")
            }
            for prefix in ("model", "average", "head", "optimizer")
        }
        self.model.load_state_dict(pick["model"])
        self.average.load_state_dict(pick["average"])
        self.head.load_state_dict(pick["head"])
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {}
        for name, value in pick["optimizer"].items():
            index, key = name.split(".", 1)
            optimizer["state"].setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict(optimizer)
        self.generator.set_state(tensors["generator"])
        version, internal, gauss = state["rng"]
        self.rng.setstate((version, tuple(internal), gauss))
        self.step, self.seconds = state["step"], state["seconds"]
        return True

    def export(self, folder: Path) -> dict[str, float]:
        """Write the averaged weights as the pocket model ships them, with their metrics."""
        metrics = self.evaluate()
        info = {
            "training": {**asdict(self.config), "steps": self.step, "seconds": self.seconds},
            "zero_shot_map": metrics,
        }
        save_weights(self.average.state_dict(), self.tokens, folder, info)
        return metrics

    def run(self) -> dict[str, float]:
        """Train to the end of the budget, with a CSV log, then export; returns the metrics."""
        self.out.mkdir(parents=True, exist_ok=True)
        self.resume()
        every = self.config.evaluate_every_minutes * 60
        due = self.seconds + every
        total, count = 0.0, 0
        with open(self.out / "log.csv", "a", newline="", encoding="utf-8") as stream:
            log = csv.writer(stream)
            if stream.tell() == 0:
                log.writerow(["step", "seconds", "loss", *self.tests])
            while self.progress() < 1:
                total += self.advance()
                count += 1
                if self.seconds >= due or self.progress() >= 1:
                    due = self.seconds + every
                    metrics = self.evaluate()
                    mean = total / count
                    total, count = 0.0, 0
                    row = [self.step, f"{self.seconds:.0f}", f"{mean:.4f}"]
                    log.writerow([*row, *(f"{m:.2f}" for m in metrics.values())])
                    stream.flush()
                    self.save()
                    minutes = self.seconds / 60
                    print(f"step {self.step}, {minutes:.1f} min: loss {mean:.3f}", metrics)
        return self.export(self.out / "weights")


def normalise(pixels: Tensor) -> Tensor:
    """[0, 1] images (…, 3, H, W) in the pocket model's pixel space."""
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    return (pixels - mean[:, None, None]) / std[:, None, None]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the pocket model from scratch.")
    parser.add_argument("--pictograms", type=Path, required=True, help="folder of style JSON files")
    parser.add_argument("--captions", type=Path, nargs="*", default=[], help="caption files")
    parser.add_argument("--out", type=Path, required=True, help="run folder; resumed if it exists")
    parser.add_argument("--minutes", type=float, default=75.0)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    config = PocketConfig(minutes=options.minutes, batch_size=options.batch_size, seed=options.seed)
    trainer = PocketTrainer(options.pictograms, options.captions, options.out, config)
    print(trainer.run())
