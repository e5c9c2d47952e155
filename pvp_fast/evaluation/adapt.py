"""Adapt a finished artifact to labelled images: encode them, learn from them, calibrate on them."""

from __future__ import annotations

import dataclasses
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
from pvp_fast.training.few import Adapted, FewConfig, adapt_head


@dataclass(frozen=True)
class Adaptation:
    """An artifact that learned from images; ``adapted`` says what they changed.

    ``failures`` are (path, reason) of those that could not be read.
    """

    artifact: Artifact
    adapted: Adapted
    images: int
    failures: tuple[tuple[Path, str], ...]


def adapt(
    backbone: Backbone,
    artifact: Artifact,
    dataset: EvalSet,
    *,
    config: FewConfig | None = None,
    views: int = 3,
    pictures: PictureSettings | None = None,
) -> Adaptation:
    """Learn the new banks from labelled images; on left-out ones never worse than before.

    Args:
        dataset: its labels may be partial, 0 for unknown; categories that it lacks are unknown.
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
    found = adapt_head(
        artifact.head,
        torch.stack(z),
        labels,
        local=plain.local.get(artifact.version),
        config=config,
    )
    metrics = {**artifact.metrics, "images": {"count": len(plain.z), **found.to_dict()}}
    new = dataclasses.replace(artifact, head=found.head, metrics=metrics)
    return Adaptation(new, found, len(plain.z), plain.failures)
