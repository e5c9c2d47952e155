"""From a corpus to an artifact: the three stages in their order, in one resumable run folder."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pvp_fast.artifact import Artifact, TrainingState
from pvp_fast.clip.backbone import Backbone
from pvp_fast.errors import InputError
from pvp_fast.files import atomic_write
from pvp_fast.modules.prompts import prompt_ensemble
from pvp_fast.modules.scoring import Head, LocalBranch
from pvp_fast.modules.tiles import require
from pvp_fast.sentences import Corpus, FeatureCache
from pvp_fast.training.adapter import AdapterConfig, AdapterStage
from pvp_fast.training.distributed import Ranks
from pvp_fast.training.features import (
    EVERY,
    WHOLE,
    Sentences,
    TokenSentences,
    label_lists,
)
from pvp_fast.training.few import FewConfig
from pvp_fast.training.gap import OFF, GapConfig, Perturbation, auto_sigma
from pvp_fast.training.local import LocalPromptConfig, LocalPromptStage, choose_weight
from pvp_fast.training.loop import LoopConfig, run_stage
from pvp_fast.training.sampled import SampledTextPrompts, SampledVisualPrompts, step_width
from pvp_fast.training.text import TextPromptConfig, TextPromptStage
from pvp_fast.training.thresholds import best_f1_thresholds, calibrate_many, fit_platt
from pvp_fast.training.visual import VisualPromptConfig, VisualPromptStage, image_vectors

if TYPE_CHECKING:
    from pvp_fast.evaluation.datasets import EvalSet

AUTO_ROWS = 4096  # sentences that the noise's length is measured on

LEARN = ("full", "text")
# How often the image and the context of each category are moved (NOTES-method.md).
VISUAL_MOVES = 16
TEXT_MOVES = 50

_SECTIONS: dict[str, Any] = {
    "visual": VisualPromptConfig,
    "text": TextPromptConfig,
    "adapter": AdapterConfig,
    "local_prompts": LocalPromptConfig,
}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a whole run; ``held_out`` is the share of sentences kept for judging.

    ``local`` trains the local branch too, with the settings ``local_prompts``. ``gap`` perturbs the
    sentences of the three stages, and those that judge them; :meth:`without_gap` trains on the
    sentences as they are. ``learn`` "text" leaves out stage 1 and what builds on it: text prompts
    and adapter alone, in an artifact without a training state.
    """

    visual: VisualPromptConfig = field(default_factory=VisualPromptConfig)
    text: TextPromptConfig = field(default_factory=TextPromptConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    local_prompts: LocalPromptConfig = field(default_factory=LocalPromptConfig)
    local: bool = False
    held_out: float = 0.1
    seed: int = 0
    gap: GapConfig = field(default_factory=GapConfig)
    learn: str = "full"

    def __post_init__(self) -> None:
        if self.learn not in LEARN:
            raise InputError(f"TrainConfig: learn={self.learn!r}: use one of {', '.join(LEARN)}")
        if self.learn == "text" and self.text.co_learn:
            raise InputError("TrainConfig: co_learn needs the pseudo visual prompts, learn='full'")

    @classmethod
    def demo(cls, seed: int = 0) -> TrainConfig:
        """Sized for the pocket model on two CPU cores: about a minute and a half."""
        return cls(
            visual=VisualPromptConfig(LoopConfig(steps=60, lr=0.1, batch_size=512, seed=seed)),
            text=TextPromptConfig(LoopConfig(steps=100, lr=5e-3, seed=seed)),
            local_prompts=LocalPromptConfig(LoopConfig(steps=100, lr=5e-3, seed=seed)),
        ).with_seed(seed)

    def sized(self, categories: int) -> TrainConfig:
        """The same settings for so many categories.

        Where a step moves only some of them, there are as many steps as move each one's image and
        context often enough.
        """
        sections = {}
        for name, often in (("visual", VISUAL_MOVES), ("text", TEXT_MOVES)):
            section = getattr(self, name)
            width = step_width(categories, section.categories_per_step)
            steps = max(section.loop.steps, math.ceil(often * categories / width))
            loop = dataclasses.replace(section.loop, steps=steps)
            if width < categories:
                sections[name] = dataclasses.replace(section, loop=loop)
        return dataclasses.replace(self, **sections)

    def without_gap(self) -> TrainConfig:
        """Sentences as they are, and the settings of the stages that go with them.

        Images are learned pixel by pixel then, in twice the steps.
        """
        loop = self.visual.loop
        if self.visual.frequencies:
            loop = dataclasses.replace(loop, steps=2 * loop.steps)
        return dataclasses.replace(
            self,
            gap=OFF,
            visual=dataclasses.replace(self.visual, loop=loop, both_ways=False, frequencies=0.0),
            adapter=AdapterConfig.plain(self.adapter.loop.seed),
            local_prompts=dataclasses.replace(self.local_prompts, weight=None, tile=0.0),
        )

    def with_seed(self, seed: int) -> TrainConfig:
        """The same settings with another seed everywhere."""

        def reseed(stage: Any) -> Any:
            return dataclasses.replace(stage, loop=dataclasses.replace(stage.loop, seed=seed))

        sections = {name: reseed(getattr(self, name)) for name in _SECTIONS}
        return dataclasses.replace(self, seed=seed, **sections)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TrainConfig:
        """The inverse of :meth:`to_dict`.

        Raises:
            InputError: an unknown or unusable field, by its name.
        """
        values: dict[str, Any] = dict(data)
        for name, section in _SECTIONS.items():
            if name in values:
                inner = dict(values[name])
                if "loop" in inner:
                    inner["loop"] = _build(LoopConfig, inner["loop"], f"{name}.loop")
                values[name] = _build(section, inner, name)
        if "gap" in values:
            values["gap"] = _build(GapConfig, values["gap"], "gap")
        built: TrainConfig = _build(cls, values, "config")
        return built


def _build(kind: Any, values: dict[str, Any], where: str) -> Any:
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise InputError(f"{where}: no field {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return kind(**values)


def train(
    backbone: Backbone,
    corpus: Corpus,
    out: str | os.PathLike[str],
    config: TrainConfig | None = None,
    *,
    images: EvalSet | None = None,
    unlabelled: Sequence[Path] = (),
    progress: bool = True,
    resume: bool = True,
) -> Artifact:
    """Run the three stages, and the local branch if asked for, and save ``out/artifact``.

    With ``images`` what text taught then goes on to learn from them, as
    :func:`pvp_fast.evaluation.adapt` does. Their part comes last and is computed anew in each call:
    a run may be given others when it goes on.

    Each stage writes its log and checkpoints under ``out``; called again after an interruption,
    it goes on from the last checkpoint and ends with the same numbers.

    Called by every process of an initialised ``torch.distributed`` group with the same arguments,
    the processes share the work; ``out`` must be a folder they all see. The first one writes it.

    Args:
        backbone: the frozen CLIP.
        corpus: labelled sentences (see :func:`pvp_fast.sentences.build_corpus`).
        out: run folder.
        config: settings; the defaults suit a real CLIP.
        images: images with labels, all or some.
        unlabelled: files of further images of the same kind, without labels.
        progress: show progress bars on stderr.
        resume: False refuses a folder that already holds a run.

    Returns:
        The artifact, as saved.

    Raises:
        InputError: the folder belongs to a run of other settings, corpus or backbone; the backbone
            computes in int8; or the images cannot be learned from: then the artifact is that of
            the text alone.
        TrainingDiverged: a loss term is not finite.
        BackboneError: prompts cannot be learned on the backbone's text tower, or ``config.local``
            with ``tile`` 0 and a backbone that has no region features; before any work.
    """
    config = config or TrainConfig()
    if unlabelled and images is None:
        raise InputError("unlabelled: images without labels need some with labels; give images too")
    if backbone.precision == "int8":
        raise InputError(
            "precision='int8' is for tagging: train in 'float32' or 'bfloat16'; the artifact can "
            "be used in any"
        )
    backbone.require_prompts()
    for group in backbone.same_texts(corpus.vocabulary.names):
        warnings.warn(
            f"{backbone.name} reads {', '.join(map(repr, group))} as one text: they will always "
            "have one score; rename them so that their letters differ",
            stacklevel=2,
        )
    if config.local:
        require(backbone, config.local_prompts.tile, "local=True with tile=0 needs region features")
    folder = Path(out)
    ranks = Ranks()
    with ranks.in_turn():
        _claim(folder, backbone, corpus, config, resume or not ranks.first)

    seen, unseen = corpus.split(config.held_out, config.seed)
    if not len(unseen):
        unseen = seen  # too few sentences to hold any out: judge on what is there
    cache = FeatureCache(folder / "features")
    with ranks.in_turn():
        data, clean = (
            Sentences(
                cache.features(backbone, part),
                label_lists(part.labels),
                len(corpus.vocabulary),
                backbone.device,
            )
            for part in (seen, unseen)
        )
    names = corpus.vocabulary.names
    many = len(names) > EVERY  # no images, contexts or labels of all of them at once
    if many and config.text.co_learn:
        raise InputError(
            f"co_learn moves the images of all {len(names)} categories in every step, of {EVERY} "
            "at most; train without it"
        )
    if config.local and not clean.few:
        raise InputError(
            f"local=True scores all of {len(clean)} held-out sentences and {len(names)} categories "
            "at once; train without it, or on fewer"
        )
    original = prompt_ensemble(backbone, names)
    gap, sigma = config.gap, config.gap.sigma
    if isinstance(sigma, str):
        sigma = _noise_length(data, original)
    noisy, mixed = Perturbation(sigma, gap.visual_mix), Perturbation(sigma, gap.mix)

    def judges(perturbation: Perturbation) -> Sentences:
        return dataclasses.replace(clean, gap=perturbation).perturbed()

    metrics: dict[str, float] = {}

    visual: VisualPromptStage | SampledVisualPrompts | None = None
    if config.learn == "full":
        noise, judge = dataclasses.replace(data, gap=noisy), judges(noisy)
        if step_width(len(names), config.visual.categories_per_step) == len(names):
            visual = VisualPromptStage(backbone, noise, judge, config.visual)
        else:
            path = folder / "visual" / "images.rows"
            visual = SampledVisualPrompts(backbone, noise, judge, config.visual, path)
        metrics["visual"] = run_stage(
            visual, config.visual.loop, folder / "visual", progress=progress
        )

    data, judge = dataclasses.replace(data, gap=mixed), judges(mixed)

    learned = None if visual is None or many else visual.prompts()

    def text_stage(
        settings: TextPromptConfig, where: str, vectors: Tensor | None = None
    ) -> TextPromptStage | SampledTextPrompts:
        wide = step_width(len(names), settings.categories_per_step) == len(names)
        if not wide and (settings.class_specific or settings.co_learn):
            path = folder / where / "contexts.rows"
            return SampledTextPrompts(backbone, names, data, judge, settings, path, visual=vectors)
        return TextPromptStage(
            backbone, names, data, judge, settings, visual=vectors, images=learned
        )

    text_only: Tensor | None = None
    if visual is None or not many:  # of many names, only what the artifact needs
        plain_config = dataclasses.replace(config.text, transfer=0.0, co_learn=False)
        text = text_stage(plain_config, "text_only")
        metrics["text_only"] = run_stage(
            text, config.text.loop, folder / "text_only", progress=progress
        )
        text_only = text.vectors()
        vectors = text_only[:, None]
    if visual is not None:
        vectors = visual.vectors()
        text = text_stage(config.text, "text", vectors)
        metrics["text"] = run_stage(text, config.text.loop, folder / "text", progress=progress)
        if config.text.co_learn and learned is not None:
            with torch.no_grad():
                vectors = image_vectors(backbone, learned)
    words = text.vectors()

    adapter = AdapterStage(original, words, vectors, data, judge, config.adapter)
    metrics["adapter"] = run_stage(
        adapter, config.adapter.loop, folder / "adapter", progress=progress
    )

    head = Head.uncalibrated(adapter.module)
    near: Tensor | None = None
    local_ctx: Tensor | None = None
    if config.local:
        with ranks.in_turn():
            tokens, token_judge = _token_sentences(cache, backbone, seen, unseen)
        local = LocalPromptStage(backbone, names, tokens, token_judge, config.local_prompts)
        metrics["local"] = run_stage(
            local, config.local_prompts.loop, folder / "local", progress=progress
        )
        x, y = clean.all()
        near, weight = local.held_out_scores(), config.local_prompts.weight
        if weight is None:
            weight = choose_weight(head.global_cosines(x), near, y)
        temperature = torch.tensor([config.local_prompts.temperature])
        branch = LocalBranch(
            local.vectors(),
            torch.full((len(names),), weight),
            temperature,
            config.local_prompts.tile,
        )
        head = Head.uncalibrated(adapter.module, branch)
        local_ctx = local.module.ctx.detach().cpu()
    head = head.calibrated(*_calibration(head, clean, near))
    state = None
    if learned is not None and text_only is not None:
        with torch.no_grad():  # no graph of all images
            pixels = learned.pixels.cpu()
        state = TrainingState(
            text_only=text_only.cpu(),
            pixels=pixels,
            ctx=text.contexts(),
            local_ctx=local_ctx,
        )
    artifact = Artifact(
        vocabulary=corpus.vocabulary,
        backbone=backbone.record(),
        head=head.to("cpu"),
        state=state,
        config=config.to_dict(),
        metrics={
            "held_out_map": metrics,
            "sentences": len(seen),
            "held_out": len(unseen),
            "gap_sigma": sigma,
            "corpus": corpus.fingerprint,  # tells later whether sentences were held out
        },
    )
    with ranks.in_turn():
        if ranks.first:
            artifact.save(folder / "artifact")
            if images is not None:
                artifact = _with_images(backbone, artifact, images, unlabelled, config.seed)
                artifact.save(folder / "artifact")
        elif images is not None:
            artifact = Artifact.load(folder / "artifact")
    return artifact


def _with_images(
    backbone: Backbone,
    artifact: Artifact,
    images: EvalSet,
    unlabelled: Sequence[Path],
    seed: int,
) -> Artifact:
    from pvp_fast.evaluation.adapt import adapt  # it uses what is trained here

    found = adapt(backbone, artifact, images, unlabelled=unlabelled, config=FewConfig(seed=seed))
    for path, reason in found.failures:
        warnings.warn(f"images: {path}: {reason}; trained without it", stacklevel=3)
    return found.artifact


def _noise_length(data: Sentences, names: Tensor) -> float:
    """:func:`auto_sigma` over some of the sentences, and of many categories over some."""
    rows = torch.arange(0, len(data), max(1, len(data) // AUTO_ROWS))
    if data.categories > EVERY and len(rows) * data.categories > WHOLE:
        x, y, known = data.some()
        return auto_sigma(x, y, names[known.to(names.device)])
    part = data.rows(rows)
    return auto_sigma(part.x, part.dense(data.categories), names)


def _calibration(head: Head, clean: Sentences, near: Tensor | None) -> tuple[Tensor, Tensor]:
    """Slopes and intercepts (C, 2), and thresholds (C,), from held-out sentences."""
    if clean.few:
        x, y = clean.all()
        scores = head.cosines(x, local=near)
        platt = fit_platt(scores, y)
        return platt, best_f1_thresholds(scores, y, platt)
    every = clean.rows(torch.arange(len(clean)))

    def columns(index: Tensor) -> tuple[Tensor, Tensor]:
        return head.take(index).cosines(every.x), every.among(index)

    x, y, known = clean.some()
    return calibrate_many(columns, (head.take(known).cosines(x), y), len(head))


def _token_sentences(
    cache: FeatureCache, backbone: Backbone, *parts: Corpus
) -> list[TokenSentences]:
    """Token features of each part; positions that are padding in all its sentences are not kept."""
    found = []
    for part in parts:
        ends = backbone.text_end(backbone.tokenize(part.sentences))
        tokens, mask = cache.token_features(backbone, part, max_tokens=int(ends.max()) + 1)
        lists = label_lists(part.labels)
        found.append(TokenSentences(tokens, mask, lists, len(part.vocabulary), backbone.device))
    return found


def _claim(
    folder: Path, backbone: Backbone, corpus: Corpus, config: TrainConfig, resume: bool
) -> None:
    """Record what the run is, or check that the folder holds the same run."""
    run = {
        "config": config.to_dict(),
        "corpus": corpus.fingerprint,
        "backbone": backbone.fingerprint,
    }
    path = folder / "config.json"
    if not path.exists():
        with atomic_write(path, "w") as stream:
            json.dump(run, stream, indent=2)
        return
    if not resume:
        raise InputError(f"out: {folder} already holds a run; give another folder or resume")
    found = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(found.get("config"), dict):
        # A run from before there was a gap trained on the sentences as they are.
        stored = {"gap": dataclasses.asdict(OFF), **found["config"]}
        earlier = (
            ("adapter", {"centre": False}),
            ("visual", {"both_ways": False, "frequencies": 0.0}),
            ("local_prompts", {"tile": 0.0}),
        )
        for section, default in earlier:
            if isinstance(stored.get(section), dict):
                stored[section] = {**default, **stored[section]}
        found["config"] = _settings(TrainConfig.from_dict(stored))
    run["config"] = _settings(config)
    for part, value in run.items():
        if found.get(part) != value:
            raise InputError(
                f"out: {folder} holds a run with another {part}; give another folder, or the "
                f"same {part} to resume"
            )


def _settings(config: TrainConfig) -> dict[str, Any]:
    """What makes a run what it is, as read back from JSON: not the settings of an unused branch."""
    values: dict[str, Any] = json.loads(json.dumps(config.to_dict()))
    if not config.local:
        del values["local_prompts"]
    return values
