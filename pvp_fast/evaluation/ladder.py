"""The ladder: what each part of the method adds, in one table."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pvp_fast.artifact import Artifact
from pvp_fast.clip.backbone import Backbone
from pvp_fast.errors import InputError
from pvp_fast.evaluation.datasets import EvalSet
from pvp_fast.loaders import Augment, Batch, ImageStream, ItemSource
from pvp_fast.loaders.work import work_through
from pvp_fast.metrics import average_precision, check_scores, f1_at_threshold, f1_at_topk
from pvp_fast.modules.tiles import image_regions
from pvp_fast.pictures import PictureSettings


@dataclass(frozen=True)
class Features:
    """Encoded images of an evaluation set; unreadable ones are listed and left out.

    Attributes:
        z: (N, D) unit rows. labels: (N, C) of the images that were read.
        failures: (path, reason) of the others.
        local: local cosines (N, C) by the version of the artifact whose local branch made them.
    """

    z: Tensor
    labels: Tensor
    names: tuple[str, ...]
    failures: tuple[tuple[Path, str], ...]
    local: Mapping[str, Tensor] = field(default_factory=dict)


def encode_set(
    backbone: Backbone,
    dataset: EvalSet,
    *,
    artifacts: Sequence[Artifact] = (),
    batch_size: int = 64,
    pictures: PictureSettings | None = None,
    augment: Augment | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """Encode every image of a set once.

    Args:
        artifacts: those with a local branch get their local scores on the way; region features
            of a whole set are too many to keep.
        pictures: how images are opened.
        augment: encode a random view of each image, drawn by ``seed``, instead of the image.

    Raises:
        InputError: no image could be read.
        BackboneError: an artifact has a local branch and the backbone has no region features.
    """
    parts: list[Tensor] = []
    heads = {a.version: a.head.to(backbone.device) for a in artifacts if a.has_local}
    tiles = {version: head.local.tile for version, head in heads.items() if head.local}
    near: dict[str, list[Tensor]] = {version: [] for version in heads}
    kept: list[int] = []
    items = [(os.fspath(path), path) for path in dataset.paths]
    stream = ImageStream(
        ItemSource(items),
        backbone.preprocess,
        batch_size,
        backbone.device,
        pictures=pictures,
        augment=augment,
        seed=seed,
    )

    @torch.no_grad()
    def encode(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        z = backbone.encode_image(batch.pixels).cpu()
        if not heads:
            return z, {}
        kinds = set(tiles.values())
        regions = {tile: image_regions(backbone, batch.pixels, tile) for tile in kinds}
        return z, {v: h.local_cosines(regions[tiles[v]]).cpu() for v, h in heads.items()}

    with stream:
        for done in work_through(stream, encode, backbone.device):
            if done.result is not None:
                kept += done.indices
                parts.append(done.result[0])
                for version, cosines in done.result[1].items():
                    near[version].append(cosines)
            if progress:
                progress(done.listed, len(items))
    failures = tuple((dataset.paths[f.index], f.reason) for f in stream.failures)
    if not parts:
        path, reason = failures[0] if failures else ("dataset", "it lists no image")
        raise InputError(
            f"dataset: none of the {len(dataset.paths)} images could be read; {path}: {reason}"
        )
    local = {version: torch.cat(values) for version, values in near.items()}
    return Features(torch.cat(parts), dataset.labels[kept], dataset.names, failures, local)


@dataclass(frozen=True)
class Rung:
    """One method's numbers, in percent: each a list with one value per artifact (seed)."""

    name: str
    map: list[float] = field(default_factory=list)
    cf1: list[float] = field(default_factory=list)
    of1: list[float] = field(default_factory=list)
    per_category: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Ladder:
    """The rungs from zero-shot to the full method.

    ``tagging`` holds CF1 and OF1 in percent of the full method at the artifact's own thresholds.
    ``counted`` of ``categories`` have a positive: the means are over those.
    """

    rungs: list[Rung]
    tagging: dict[str, float]
    images: int
    failures: int
    unmatched: tuple[str, ...]
    difficult: str
    categories: int
    counted: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values; a category without a positive has NaN (null in a JSON file)."""
        return {
            "rungs": [vars(rung) for rung in self.rungs],
            "tagging": self.tagging,
            "images": self.images,
            "failures": self.failures,
            "unmatched": list(self.unmatched),
            "difficult": self.difficult,
            "categories": self.categories,
            "counted": self.counted,
        }

    def table(self) -> str:
        """Mean (± standard deviation over artifacts) of mAP, and F1 at the top three."""
        lines = [f"{'':26}{'mAP':>14}{'CF1@3':>14}{'OF1@3':>14}"]
        for rung in self.rungs:
            cells = "".join(f"{_spread(v):>14}" for v in (rung.map, rung.cf1, rung.of1))
            lines.append(f"{rung.name:26}{cells}")
        lines.append(
            f"{self.images} images, {self.failures} unreadable; over {self.counted} of "
            f"{self.categories} categories"
            + (", the others have no positive" if self.counted < self.categories else "")
        )
        return "\n".join(lines)


def _spread(values: list[float]) -> str:
    mean = statistics.fmean(values)
    return f"{mean:.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else f"{mean:.1f}"


def match_categories(artifact: Artifact, names: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs (artifact category, data set category) of equal names or synonyms."""
    known: dict[str, int] = {}
    for index, category in enumerate(artifact.vocabulary):
        for name in (category.name, *category.synonyms):
            known.setdefault(plain_name(name), index)
    for index, name in enumerate(artifact.vocabulary.names):
        known[plain_name(name)] = index  # a name outranks another category's synonym
    return [
        (known[plain_name(n)], column) for column, n in enumerate(names) if plain_name(n) in known
    ]


def plain_name(name: str) -> str:
    """What is left of a category's name to compare: lower-case letters and digits."""
    return "".join(ch for ch in name.lower() if ch.isalnum())


@torch.no_grad()
def ladder(
    artifacts: Sequence[Artifact], features: Features, *, difficult: str = "ignore"
) -> Ladder:
    """Score every rung on one set, over one artifact or several seeds.

    Args:
        artifacts: of one backbone and vocabulary.
        features: from :func:`encode_set`.
        difficult: how VOC's label 0 counts (see :mod:`pvp_fast.metrics`).

    Raises:
        InputError: no artifact, no category in common, or local scores that are missing.
    """
    if not artifacts:
        raise InputError("artifacts: give at least one")
    if len({artifact.has_local for artifact in artifacts}) > 1:
        raise InputError("artifacts: some have a local branch and some have not; give one kind")
    pairs = match_categories(artifacts[0], features.names)
    if not pairs:
        raise InputError("dataset: it has no category of the artifact's vocabulary")
    rows = torch.tensor([a for a, _ in pairs])
    columns = [c for _, c in pairs]
    labels = features.labels[:, columns]
    present = (labels >= 0 if difficult == "positive" else labels > 0).any(0)
    if not bool(present.any()):
        raise InputError(
            f"dataset: none of its {len(features.z)} images shows one of the {len(pairs)} "
            "categories it shares with the artifact; nothing can be measured"
        )
    matched = {features.names[c] for c in columns}

    rungs: dict[str, Rung] = {}
    tagging: list[tuple[float, float]] = []
    for artifact in artifacts:
        steps = _scores(artifact, features)
        for name, scores in steps.items():
            rung = rungs.setdefault(name, Rung(name))
            check_scores(scores[:, rows], [features.names[c] for c in columns])
            precision = average_precision(scores[:, rows], labels, difficult=difficult)
            f1 = f1_at_topk(scores[:, rows], labels, 3, difficult=difficult)
            rung.map.append(100 * float(precision[~precision.isnan()].mean()))
            rung.cf1.append(100 * f1.cf1)
            rung.of1.append(100 * f1.of1)
            for column, value in zip(columns, precision.tolist(), strict=True):
                rung.per_category[features.names[column]] = 100 * value
        kept = artifact.head.accepted(final_scores(artifact, features))[:, rows]
        own = f1_at_threshold(kept.float(), labels, 0.5, difficult=difficult)
        tagging.append((100 * own.cf1, 100 * own.of1))
    return Ladder(
        rungs=list(rungs.values()),
        tagging={
            "CF1": statistics.fmean(t[0] for t in tagging),
            "OF1": statistics.fmean(t[1] for t in tagging),
        },
        images=len(features.z),
        failures=len(features.failures),
        unmatched=tuple(n for n in features.names if n not in matched),
        difficult=difficult,
        categories=len(pairs),
        counted=int(present.sum()),
    )


def final_scores(artifact: Artifact, features: Features) -> Tensor:
    """Final cosines (N, C) of the full method, before calibration; what the tagger uses.

    Raises:
        InputError: the features lack the local scores of an artifact with a local branch.
    """
    if artifact.has_local and artifact.version not in features.local:
        raise InputError(
            "features: they lack the local scores of an artifact with a local branch; give "
            "the artifacts to encode_set"
        )
    return artifact.head.cosines(features.z, local=features.local.get(artifact.version))


def _scores(artifact: Artifact, features: Features) -> dict[str, Tensor]:
    """Cosines (N, C) of every rung; the last one is what the tagger uses."""
    z, head = features.z, artifact.head
    steps = {"zero-shot CLIP": z @ head.adapter.original.T}
    if artifact.state is not None:  # else not all stages were run
        visual = F.normalize(head.adapter.visual.mean(1), dim=-1)
        steps |= {
            "pseudo visual prompts": z @ visual.T,
            "text prompts": z @ artifact.training.text_only.T,
            "text prompts + transfer": z @ head.adapter.text.T,
        }
    steps["+ dual adapter"] = head.global_cosines(z)
    if artifact.has_local:
        steps["+ local"] = final_scores(artifact, features)
    return steps
