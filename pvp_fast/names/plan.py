"""What learning a list of names will cost, from measured unit costs, before it starts.

    seconds ≈ names + drawings · picture + sentences · text
              + Σ over stages of steps · (prompts in a step · prompt + rest)

Four numbers are measured on the model and the device at hand: encoding one text and one picture,
one text prompt forward and backward, one learned image forward and backward. They are kept for the
next run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from pvp_fast.clip.backbone import Backbone
from pvp_fast.errors import BackboneError, InputError
from pvp_fast.files import atomic_write
from pvp_fast.modules.images import image_space
from pvp_fast.modules.prompts import PseudoVisualPrompts, TextPrompts
from pvp_fast.modules.templates import CLIP_TEMPLATES
from pvp_fast.training import TrainConfig
from pvp_fast.training.features import EVERY, SAMPLED
from pvp_fast.training.parts import BUDGET, activation_bytes
from pvp_fast.training.rows import ROW_COPIES
from pvp_fast.training.sampled import step_width
from pvp_fast.training.vectors import VectorConfig

LEARN = ("none", "text", "full", "auto")
LEAST_SHARE = 0.25  # of a stage's steps; with fewer, the cheaper way is the better one
FLOPS = 2e10  # of a product on two cores; only the adapter's small part depends on it
STEP = 0.007  # seconds of a step beside its prompts: loss, optimiser, log
VECTOR_STEP = 0.004  # of one over class vectors alone
AT_ONCE = (4, 16, 64)  # prompts that are measured
QUICK = 0.2  # seconds
RUN = 200 << 20  # bytes of a run beside the model: sentences, features, optimisers
WRITING = 0.0005  # seconds of a sentence: written and labelled
NAMING = 0.0003  # of a name: kept, saved and read again
DECODING = 0.002  # of a drawing
FIXED = ("names", "drawings", "sentences")  # stages that take what they take, whatever the steps
GIB = 1 << 30


@dataclass(frozen=True)
class Costs:
    """Seconds of one item, measured: a text and a picture encoded; a text prompt and a learned
    image, with their gradients; and the bytes that the image's gradient keeps."""

    text: float
    prompt: float
    image: float
    picture: float
    kept: int = 0

    @classmethod
    def of(cls, backbone: Backbone, folder: Path, *, learns: bool = True) -> Costs:
        """Measure, or read what an earlier run with the same model, device and threads measured.

        Args:
            learns: measure prompts and learned images too, which on a large tower takes longer
                than to tag with a few names.
        """
        place = f"{backbone.device.type}-{torch.get_num_threads()}"
        path = folder / f"{backbone.fingerprint[:16]}.{place}.costs.json"
        with contextlib.suppress(OSError, ValueError, TypeError):
            kept = cls(**json.loads(path.read_text(encoding="utf-8")))
            if not learns or kept.prompt < float("inf"):
                return kept
        costs = cls.measured(backbone, learns=learns)
        # A home that cannot be written is no reason not to train.
        with contextlib.suppress(OSError), atomic_write(path, "w") as stream:
            json.dump(dataclasses.asdict(costs), stream)
        return costs

    @classmethod
    def measured(cls, backbone: Backbone, *, learns: bool = True) -> Costs:
        """Time each item; a few seconds on a small model."""
        texts = [f"a photo of a thing number {i}." for i in range(64)]
        pixels = torch.zeros(4, 3, *backbone.image_size, device=backbone.device)
        text = _seconds(lambda: backbone.encode_text(texts), backbone) / len(texts)
        picture = _seconds(lambda: backbone.encode_image(pixels), backbone) / len(pixels)
        prompt = image = float("inf")
        kept = 0
        with contextlib.suppress(BackboneError):  # a tower that learns no prompts: full is out
            if learns:
                prompt = _cost_at_once(
                    lambda n: TextPrompts(backbone, [f"thing {i}" for i in range(n)], n_ctx=4),
                    backbone,
                )
                image = _cost_at_once(
                    lambda n: PseudoVisualPrompts(n, backbone.image_size), backbone
                )
                kept = activation_bytes(backbone.encode_image, pixels[:2])
        return cls(text, prompt, image, picture, kept)


def _cost_at_once(made: Callable[[int], torch.nn.Module], backbone: Backbone) -> float:
    """Seconds of one of several prompts: many at once take less each; of a large tower, few do."""
    each = float("inf")
    for count in AT_ONCE:
        prompts = made(count).to(backbone.device)
        taken = _seconds(partial(_learn, prompts, backbone), backbone)
        each = taken / count
        if taken > QUICK:
            break
    return each


def _learn(prompts: torch.nn.Module, backbone: Backbone) -> None:
    prompts(backbone).sum().backward()


def _seconds(work: Callable[[], object], backbone: Backbone) -> float:
    """The best of three goes behind one that warms up."""
    best = float("inf")
    for go in range(4):
        start = time.perf_counter()
        work()
        if backbone.device.type == "cuda":
            torch.cuda.synchronize(backbone.device)
        if go:
            best = min(best, time.perf_counter() - start)
    return best


@dataclass(frozen=True)
class Plan:
    """What will be done and what it takes.

    Attributes:
        learn: "none", "text" or "full". config: of the learning; None for "none".
        categories: C. sentences: how many there will be, templates among them; 0 for "none".
        stages: (name, seconds). memory, disk: bytes.
        why: what decided, where something did.
    """

    learn: str
    config: TrainConfig | VectorConfig | None
    categories: int
    sentences: int
    stages: tuple[tuple[str, float], ...]
    memory: int
    disk: int
    why: str = ""

    @property
    def seconds(self) -> float:
        return sum(seconds for _, seconds in self.stages)

    @property
    def fixed(self) -> float:
        """Seconds that fewer steps do not save."""
        return sum(seconds for name, seconds in self.stages if name in FIXED)

    def behind(self, other: Plan) -> Plan:
        """This plan with the stages of ``other`` before its own."""
        return dataclasses.replace(self, stages=(*other.stages, *self.stages))

    def lines(self) -> list[str]:
        """The plan in words, for a person."""
        what = {
            "none": "nothing is learned, names through prompt templates",
            "text": "class vectors, learned from sentences",
            "full": "all stages: pseudo visual prompts, transfer, dual adapter",
        }[self.learn]
        counted = f"{self.categories} categories"
        if self.sentences:
            counted += f", about {self.sentences} sentences"
        parts = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in self.stages)
        lines = [
            f"plan: {counted}; {what} (--learn {self.learn})",
            f"plan: {_duration(self.seconds)} ({parts}); {_bytes(self.memory)} of memory, "
            f"{_bytes(self.disk)} on disk",
        ]
        return [*lines, f"plan: {self.why}"] if self.why else lines

    def check(self, memory: int | None = None) -> None:
        """Raise InputError, with the option that helps, where it cannot fit the machine.

        Args:
            memory: bytes that there are; what the machine has free by default.
        """
        free = available_memory() if memory is None else memory
        if free and self.memory > free:
            other = "--learn text" if self.learn == "full" else "--learn none"
            way = f"give {other}, or fewer categories" if self.learn != "none" else "give fewer"
            raise InputError(
                f"{self.categories} categories need about {_bytes(self.memory)} of memory and "
                f"{_bytes(free)} are free; {way}"
            )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _bytes(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB // 2 else f"{max(1, count >> 20)} MiB"


def available_memory() -> int:
    """Bytes that could be had now, or 0 where the system does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return int(os.sysconf("SC_AVPHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE"))
    return 0


def plan_none(
    backbone: Backbone, names: int, missing_texts: int, costs: Costs, drawings: int = 0
) -> Plan:
    """Names through the templates, which every way of learning starts from.

    Args:
        missing_texts: so many are not in the cache yet. drawings: nor are so many of the pictures
            that probabilities come from.
    """
    width = backbone.embed_dim
    stages = [("names", missing_texts * costs.text + names * NAMING)]
    if drawings:
        stages.append(("drawings", drawings * (costs.picture + DECODING)))
    return Plan(
        learn="none",
        config=None,
        categories=names,
        sentences=0,
        stages=tuple(stages),
        memory=_model_bytes(backbone) + names * width * 4 * 14 + names * 2000,
        disk=names * width * 4 * 2,
    )


def plan_vectors(
    backbone: Backbone, config: VectorConfig, names: int, sentences: int, costs: Costs
) -> Plan:
    """Class vectors from so many sentences that the grammar writes."""
    width = backbone.embed_dim
    products = 6 * config.batch_size * min(names, config.sampled) * width / FLOPS
    stages = (
        ("sentences", sentences * (costs.text + WRITING)),
        ("class vectors", config.steps(sentences) * (products + VECTOR_STEP)),
    )
    memory = _model_bytes(backbone) + names * (width * 4 * 20 + 4000) + sentences * 1000
    disk = sentences * width * 2 + names * width * 4 * 4
    return Plan("text", config, names, sentences, stages, memory, disk)


def plan_training(
    backbone: Backbone, config: TrainConfig, names: int, sentences: int, costs: Costs
) -> Plan:
    """The stages of a run of ``train`` with ``config`` on so many sentences."""
    width = backbone.embed_dim
    text, visual, adapter = config.text, config.visual, config.adapter
    many = names > EVERY
    templates = names * len(CLIP_TEMPLATES)  # the ensemble of the original bank
    stages = [("sentences", (sentences + templates) * costs.text + sentences * WRITING)]
    pixels = 3 * math.prod(backbone.image_size) * visual.prompts_per_category
    learned = math.prod(image_space(backbone.image_size, visual.frequencies).shape)
    learned *= visual.prompts_per_category
    memory = _model_bytes(backbone) + names * (width * 4 * 20 + 4000) + sentences * 1000
    memory += RUN
    disk = sentences * width * 2 + names * width * 4 * 3
    if config.learn == "full":
        at_once = step_width(names, visual.categories_per_step)
        images = at_once * visual.prompts_per_category
        stages.append(("visual prompts", visual.loop.steps * (images * costs.image + STEP)))
        # A step's activations, and what passes through them backward.
        memory += 2 * min(BUDGET, images * costs.kept)
        memory += at_once * 4 * (5 * learned + 2 * pixels)
        disk += names * 4 * (learned * ROW_COPIES if at_once < names else 3 * learned + pixels)
    prompts = step_width(names, text.categories_per_step) * costs.prompt
    words = text.loop.steps * (prompts + STEP)
    if config.learn != "full" or not many:
        stages.append(("text prompts", words))
    if config.learn == "full":
        stages.append(("transfer", words))
    products = 6 * adapter.loop.batch_size * min(names, SAMPLED) * 2 * width / FLOPS
    stages.append(("adapter", adapter.loop.steps * (products + STEP)))
    return Plan(config.learn, config, names, sentences, tuple(stages), int(memory), int(disk))


def _model_bytes(backbone: Backbone) -> int:
    """The process with the model in it: Python and libraries, the weights and a copy on the way."""
    weights = sum(p.numel() * p.element_size() for p in backbone.model.parameters())
    return 900 * (1 << 20) + 2 * weights


def shortened(config: TrainConfig | VectorConfig, share: float) -> TrainConfig | VectorConfig:
    """The same stages with that share of their steps."""
    if isinstance(config, VectorConfig):
        return dataclasses.replace(config, epochs=config.epochs * share)
    sections = {}
    for name in ("visual", "text", "adapter", "local_prompts"):
        section = getattr(config, name)
        steps = max(1, int(section.loop.steps * share))  # minutes are a bound
        loop = dataclasses.replace(section.loop, steps=steps)
        sections[name] = dataclasses.replace(section, loop=loop)
    return dataclasses.replace(config, **sections)


def choose(
    plans: Sequence[Plan],
    minutes: float | None,
    replan: Callable[[Plan, float], Plan],
    memory: int | None = None,
) -> Plan:
    """The best of the plans, given best first, that fits the time and the memory.

    A plan that is too long is taken with fewer steps, down to a quarter; the last one is taken
    whatever it costs, as it is the cheapest.

    Args:
        replan: the same plan with a share of its steps.
    """
    free = available_memory() if memory is None else memory
    limit = float("inf") if minutes is None else 60 * minutes
    for plan in plans[:-1]:
        if free and plan.memory > free:
            continue
        steps = plan.seconds - plan.fixed
        share = min(1.0, (limit - plan.fixed) / steps) if steps > 0 else 1.0
        if share >= LEAST_SHARE:
            why = f"the best that fits {minutes:g} minutes" if minutes is not None else ""
            if share < 1:
                plan, why = replan(plan, share), f"{why}, with {share:.0%} of the steps"
            return dataclasses.replace(plan, why=why)
    why = "" if minutes is None else f"nothing that learns fits {minutes:g} minutes"
    return dataclasses.replace(plans[-1], why=why)
