"""An artifact from names: planned, made once, and found again in the cache."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F

from pvp_fast.artifact import Artifact
from pvp_fast.clip.backbone import Backbone
from pvp_fast.errors import ArtifactError, InputError
from pvp_fast.files import atomic_write, cache_folder
from pvp_fast.modules.scoring import Head
from pvp_fast.modules.templates import CLIP_TEMPLATES
from pvp_fast.names.cache import Progress
from pvp_fast.names.plan import (
    LEARN,
    Costs,
    Plan,
    choose,
    plan_none,
    plan_training,
    plan_vectors,
    shortened,
)
from pvp_fast.names.zero_shot import RECIPE, TEMPLATES, carried, head_of, missing, zero_shot
from pvp_fast.sentences import Corpus, FeatureCache, build_corpus, grammar_sentences
from pvp_fast.training import TrainConfig, train
from pvp_fast.training.features import Sentences, label_lists
from pvp_fast.training.gap import Perturbation
from pvp_fast.training.vectors import VectorConfig, judged_map, learn_vectors, noise_length
from pvp_fast.vocabulary.categories import Vocabulary

FORMAT = 2  # of the keys: another way to make an artifact is another key
GRAMMAR = 6000
PER_NAME = 6  # sentences, where that is more
MOST = 100_000  # sentences, whatever the number of names
HELD_OUT = 0.1
MIX = 0.5  # share of sentences averaged with another (NOTES-method.md)
AUTO_MINUTES = 10.0

try:
    import fcntl
except ImportError:  # not a POSIX system: two processes may do the same work twice
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Request:
    """What an artifact is made from, besides the model.

    Attributes:
        vocabulary: C categories. learn: "none", "text", "full" or "auto".
        minutes: bound for the learning; with "none" it has no say.
        sentences: what to learn from; the grammar's by default.
        parts: (name, number) of the files that they came from, for what is said of them.
        seed: of the sentences and the run.
    """

    vocabulary: Vocabulary
    learn: str = "none"
    minutes: float | None = None
    sentences: tuple[str, ...] | None = None
    seed: int = 0
    parts: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        if self.learn not in LEARN:
            raise InputError(f"learn={self.learn!r}: use one of {', '.join(LEARN)}")
        if self.minutes is not None and not self.minutes > 0:
            raise InputError(f"minutes is {self.minutes:g}; give more than 0")
        if self.sentences is not None and self.learn == "none":
            raise InputError("sentences: learn='none' reads none; use 'text', 'full' or 'auto'")

    def key(self, backbone: Backbone) -> str:
        """Names the artifact: 24 hexadecimal digits of everything that it depends on."""
        parts: dict[str, Any] = {
            "format": FORMAT,
            "vocabulary": self.vocabulary.to_dict(),
            "backbone": backbone.fingerprint,
            "learn": self.learn,
        }
        if self.learn == "none":
            parts["recipe"] = RECIPE
        else:
            parts |= {
                "minutes": self.minutes,
                "seed": self.seed,
                "sentences": self.sentences,
                "config": [
                    dataclasses.asdict(_config(backbone, learn, self.seed, len(self.vocabulary)))
                    for learn in ("full", "text")
                ],
            }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Prepared:
    """An artifact in the cache: its folder, and whether it was there before.

    ``plan`` is what was done, None for one that was found; ``artifact`` None after a dry run.
    """

    path: Path
    cached: bool
    plan: Plan | None
    artifact: Artifact | None

    def loaded(self) -> Artifact:
        """The artifact.

        Raises:
            ArtifactError: it was not made, in a dry run.
        """
        if self.artifact is None:
            raise ArtifactError(f"{self.path} was not made: this is a dry run's plan")
        return self.artifact


def prepare(
    request: Request,
    backbone: Backbone,
    *,
    cache: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
    encoded: Progress | None = None,
) -> Prepared:
    """The artifact of a request: found in the cache, or made there.

    Args:
        cache: the cache's folder (see :func:`pvp_fast.names.cache_folder`).
        dry_run: stop behind the plan.
        progress: show the bars of training on stderr.
        say: called with each line of the plan and about the corpus.
        encoded: called with (names encoded, C).

    Raises:
        InputError: the plan does not fit the machine, or the cache cannot be written.
    """
    root = cache_folder(cache)
    folder = root / "vocabularies" / request.key(backbone)
    path = folder / "artifact"
    with contextlib.suppress(ArtifactError):
        return Prepared(path, True, None, Artifact.load(path))
    plan = _plan(request, backbone, root)
    for line in plan.lines():
        say(line)
    if dry_run:
        return Prepared(path, False, plan, None)
    plan.check()
    try:
        with _locked(folder):
            with contextlib.suppress(ArtifactError):  # another process was faster
                return Prepared(path, True, None, Artifact.load(path))
            artifact = _make(request, plan, backbone, root, folder, progress, say, encoded)
    except OSError as error:
        raise InputError(
            f"cache: {folder} cannot be written ({error.strerror or error}); give another folder "
            "with --cache or PVP_FAST_CACHE"
        ) from error
    return Prepared(path, False, plan, artifact)


def _config(
    backbone: Backbone, learn: str, seed: int, categories: int
) -> TrainConfig | VectorConfig:
    if learn == "text":
        return VectorConfig(seed=seed)
    config = TrainConfig.demo(seed) if backbone.name == "pocket" else TrainConfig().with_seed(seed)
    return config.sized(categories)


def _sentences(request: Request) -> int:
    """How many there are, or the grammar is to write."""
    if request.sentences is not None:
        return len(request.sentences)
    return min(max(GRAMMAR, PER_NAME * len(request.vocabulary)), MOST)


def _plan(request: Request, backbone: Backbone, root: Path) -> Plan:
    costs = Costs.of(backbone, root / "models", learns=request.learn != "none")
    names = request.vocabulary.names
    texts, drawings = missing(backbone, names, root / "models")
    at_once = plan_none(backbone, len(names), texts, costs, drawings)
    if request.learn == "none":
        return at_once
    count = _sentences(request)

    def planned(config: TrainConfig | VectorConfig) -> Plan:
        if isinstance(config, VectorConfig):
            return plan_vectors(backbone, config, len(names), count, costs).behind(at_once)
        templates = len(names) * len(CLIP_TEMPLATES)
        plan = plan_training(backbone, config, len(names), count + templates, costs)
        return plan.behind(at_once)

    def shorter(plan: Plan, share: float) -> Plan:
        return plan if plan.config is None else planned(shortened(plan.config, share))

    plans = [
        planned(_config(backbone, learn, request.seed, len(names))) for learn in ("full", "text")
    ]
    if request.learn != "auto":
        plans = [plan for plan in plans if plan.learn == request.learn]
        if request.minutes is None:
            return plans[0]
    minutes = AUTO_MINUTES if request.minutes is None else request.minutes
    return choose([*plans, at_once], minutes, shorter)


def _make(
    request: Request,
    plan: Plan,
    backbone: Backbone,
    root: Path,
    folder: Path,
    progress: bool,
    say: Callable[[str], None],
    encoded: Progress | None,
) -> Artifact:
    vocabulary, models = request.vocabulary, root / "models"
    plain = zero_shot(backbone, vocabulary.names, models, progress=encoded)
    if plan.config is None:
        artifact = Artifact(
            vocabulary=vocabulary,
            backbone=backbone.record(),
            head=plain,
            config={"learn": "none"},
            metrics={"templates": list(TEMPLATES)},
        )
    else:
        texts: Sequence[str] | None = request.sentences
        source = "given sentences"
        if texts is None:
            texts = grammar_sentences(vocabulary, _sentences(request), seed=request.seed)
            source = f"grammar {len(texts)}"
        # Names through templates are there already; class vectors start from them.
        vectors = isinstance(plan.config, VectorConfig)
        corpus = build_corpus(
            texts, vocabulary, templates=not vectors, source=source, parts=request.parts
        )
        for line in corpus.summary(templates=not vectors):
            say(line)
        config = _settled(plan.config, folder)
        if isinstance(config, VectorConfig):
            artifact = _from_vectors(backbone, corpus, plain, config, folder)
        else:
            artifact = train(backbone, corpus, folder, config, progress=progress)
        head = carried(backbone, artifact.head, plain, models)
        artifact = dataclasses.replace(artifact, head=head)
    artifact.save(folder / "artifact")
    return artifact


def _from_vectors(
    backbone: Backbone, corpus: Corpus, plain: Head, config: VectorConfig, folder: Path
) -> Artifact:
    """Class vectors half way from the names' to those that centred sentences teach.

    What all sentences have in common, the names do not have, being centred; nor is it in an image.
    Left in, it is what a class vector first learns to avoid, and the more so the fewer of the
    sentences are about it: among many names each would rank worse than alone (NOTES-method.md).
    """
    seen, unseen = corpus.split(HELD_OUT, config.seed)
    cache = FeatureCache(folder / "features")
    train_on, judged = (
        Sentences(cache.features(backbone, part), label_lists(part.labels), len(plain))
        for part in (seen, unseen if len(unseen) else seen)
    )
    middle = train_on.middle()
    train_on, judged = train_on.without(middle), judged.without(middle)
    names = plain.adapter.original
    sigma = noise_length(train_on, names, config.seed)
    perturbed = dataclasses.replace(train_on, gap=Perturbation(sigma, MIX))
    found = learn_vectors(perturbed, judged, names, config)
    vectors = F.normalize(names + found.w, dim=-1)
    return Artifact(
        vocabulary=corpus.vocabulary,
        backbone=backbone.record(),
        head=head_of(names, vectors, alpha=1.0),
        config={"learn": "text", **dataclasses.asdict(config)},
        metrics={
            "held_out_map": {
                "names": found.names_map,
                "class vectors": judged_map(judged, vectors, config.seed),
            },
            "sentences": len(seen),
            "held_out": len(unseen),
            "gap_sigma": sigma,
        },
    )


def _settled(config: TrainConfig | VectorConfig, folder: Path) -> TrainConfig | VectorConfig:
    """The configuration of a run that was cut off goes on, though costs measure anew."""
    path = folder / "plan.json"
    with contextlib.suppress(OSError, ValueError, TypeError, InputError):
        values = json.loads(path.read_text(encoding="utf-8"))
        return VectorConfig(**values) if "epochs" in values else TrainConfig.from_dict(values)
    with atomic_write(path, "w") as stream:
        json.dump(dataclasses.asdict(config), stream)
    return config


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time makes an artifact; the others wait for it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a") as stream:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # shares without locks: the work is done twice
                fcntl.flock(stream, fcntl.LOCK_EX)
        yield
