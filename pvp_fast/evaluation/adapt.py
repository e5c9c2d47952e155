"""Adapt a finished artifact to labelled images: encode them, learn from them, calibrate on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pvp_fast.artifact import Artifact
from pvp_fast.clip.backbone import Backbone
from pvp_fast.errors import InputError
from pvp_fast.evaluation.calibrate import score_images
from pvp_fast.evaluation.datasets import EvalSet
from pvp_fast.evaluation.ladder import encode_set
from pvp_fast.loaders import Augment
from pvp_fast.pictures import PictureSettings
from pvp_fast.training.few import Adapted, FewConfig, Images, adapt_head


@dataclass(frozen=True)
class Adaptation:
    """An artifact that learned from images; ``adapted`` says what they changed.

    ``images`` and ``unlabelled`` are how many were read, ``failures`` (path, reason) of the
    others.
    """

    artifact: Artifact
    adapted: Adapted
    images: int
    unlabelled: int
    failures: tuple[tuple[Path, str], ...]


def adapt(
    backbone: Backbone,
    artifact: Artifact,
    dataset: EvalSet,
    *,
    unlabelled: Sequence[Path] = (),
    config: FewConfig | None = None,
    views: int = 3,
    pictures: PictureSettings | None = None,
) -> Adaptation:
    """Learn from labelled images; on left-out ones never worse than before.

    Args:
        dataset: its labels may be partial, 0 for unknown; categories that it lacks are unknown.
        unlabelled: files of further images of the same kind, without labels: hundreds or more help
            as much as labels do.
        views: augmented views of each image (crops and mirror images) to learn from beside it.
        pictures: how images are opened.

    Raises:
        ArtifactError: another backbone. InputError: no category in common, or too few images.
    """
    config = config or FewConfig()
    if views < 0:
        raise InputError(f"views is {views}; give 0 or more")
    artifact.check_backbone(backbone.fingerprint)
    plain = encode_set(backbone, dataset, artifacts=[artifact], pictures=pictures)
    labels = score_images(artifact, plain).labels
    z = [plain.z]
    for seed in range(config.seed, config.seed + views):
        view = encode_set(backbone, dataset, pictures=pictures, augment=Augment(), seed=seed)
        if len(view.z) == len(plain.z):  # a file may have gone meanwhile
            z.append(view.z)
    rest = Images(plain.z[:0])
    failures = plain.failures
    if unlabelled:
        others = EvalSet.unlabelled(unlabelled)
        far = encode_set(backbone, others, artifacts=[artifact], pictures=pictures)
        rest = Images(far.z, far.local.get(artifact.version))
        failures += far.failures
    found = adapt_head(
        artifact.head,
        torch.stack(z),
        labels,
        local=plain.local.get(artifact.version),
        unlabelled=rest,
        config=config,
    )
    counts = {"count": len(plain.z), "unlabelled": len(rest.z)}
    metrics = {**artifact.metrics, "images": {**counts, **found.to_dict()}}
    new = dataclasses.replace(artifact, head=found.head, metrics=metrics)
    return Adaptation(new, found, len(plain.z), len(rest.z), failures)
