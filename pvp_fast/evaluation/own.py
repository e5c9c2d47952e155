"""Calibrate with what a model says itself: SigLIP's sigmoid, and no labels.

A model whose pairs were judged one by one (SigLIP, arXiv 2303.15343) has learned a scale and a bias
with which a cosine becomes a probability that text and image belong together:

    p_ic = sigmoid(scale · ⟨z_i, e_c⟩ + bias),   e_c = f_T("a photo of a {name of c}.")

An artifact's scores are other cosines, of learned and centred vectors. Over some images, p are soft
labels for them: the slope, the intercepts and the threshold are fitted to these. It is a starting
point: the probabilities are as right as the model's own are for these names and images, and as
unsure. Scores that rank better than names alone are right more often than it expects: with a
sigmoid that was right on the demo's drawings, 84 % where 50 % were asked of centred names.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pvp_fast.artifact import Artifact
from pvp_fast.clip.backbone import Backbone
from pvp_fast.clip.logit_record import LogitRecord
from pvp_fast.errors import InputError
from pvp_fast.evaluation.ladder import Features, final_scores
from pvp_fast.metrics import check_scores
from pvp_fast.modules.prompts import prompt_ensemble
from pvp_fast.training.thresholds import Target, fit_platt, thresholds_for

TEMPLATE = "a photo of a {}."


@dataclass(frozen=True)
class OwnCalibration:
    """An artifact with the probabilities of its model's own sigmoid.

    Attributes:
        target: a precision or recall. images: how many were looked at.
        record: the model's scale and bias.
        precision: mean probability of the tags at the new threshold, NaN without any.
        kept, kept_before: tags an image, with the new threshold and with the old ones.
    """

    artifact: Artifact
    target: Target
    images: int
    record: LogitRecord
    precision: float
    kept: float
    kept_before: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; None where nothing was kept."""
        return {
            "target": str(self.target),
            "images": self.images,
            "scale": round(self.record.scale, 6),
            "bias": round(self.record.bias, 6),
            "precision": None if self.precision != self.precision else round(self.precision, 6),
            "kept": round(self.kept, 6),
            "kept_before": round(self.kept_before, 6),
            "threshold": float(self.artifact.head.thresholds[0]),
        }

    def table(self) -> str:
        """What was used and what is expected, in words for the command line."""
        scale, bias, _ = self.record
        right = "nothing kept"
        if self.precision == self.precision:
            right = f"expected precision {100 * self.precision:.1f} %"
        return (
            f"probabilities of the model's own sigmoid, scale {scale:.4g} and bias {bias:.4g}\n"
            f"tags an image: {self.kept_before:.2f} before, {self.kept:.2f} after; {right}"
        )


@torch.no_grad()
def own_probabilities(backbone: Backbone, names: tuple[str, ...], z: Tensor) -> Tensor:
    """p (N, C) of images z (N, D) and names, by the model's own scale and bias; on the CPU.

    Raises:
        InputError: the model compares texts with each other, and a cosine says nothing alone.
    """
    record = backbone.logit_record
    if record.kind != "sigmoid":
        raise InputError(
            f"own: {backbone.name!r} was trained with a softmax over texts, its cosines are no "
            "probabilities; a SigLIP's are. Calibrate without labels from 100 images on, or with"
        )
    texts = prompt_ensemble(backbone, names, (TEMPLATE,)).cpu()
    return torch.sigmoid(z.cpu().double() @ texts.double().T * record.scale + record.bias)


def calibrate_own(
    backbone: Backbone, artifact: Artifact, features: Features, target: Target
) -> OwnCalibration:
    """A new artifact with the probabilities of the model's own sigmoid and one threshold.

    Args:
        features: of images without labels, from :func:`pvp_fast.evaluation.encode_set`; any
            number, like those to be tagged.
        target: a precision or a recall; without labels there is no F1.

    Raises:
        ArtifactError: another backbone.
        InputError: a model without a sigmoid of its own, an F1, or features without the local
            scores that the artifact needs.
    """
    artifact.check_backbone(backbone.fingerprint)
    if target.value is None:
        raise InputError(f"target {target}: without labels give precision=… or recall=…")
    names = artifact.vocabulary.names
    chance = own_probabilities(backbone, names, features.z)
    scores = final_scores(artifact, features).cpu()
    check_scores(scores, names)
    platt = fit_platt(scores, chance)
    unknown = torch.zeros_like(scores, dtype=torch.bool)
    thresholds = thresholds_for(target, scores, unknown, platt, common=True)
    old = artifact.head
    head = old.calibrated(platt, thresholds)
    kept = head.accepted(scores)
    found = OwnCalibration(
        artifact=dataclasses.replace(artifact, head=head),
        target=target,
        images=len(scores),
        record=backbone.logit_record,
        precision=float(head.probabilities(scores)[kept].mean()),
        kept=float(kept.sum() / len(scores)),
        kept_before=float(old.accepted(scores).sum() / len(scores)),
    )
    metrics = {**artifact.metrics, "calibration": {"own": True, **found.to_dict()}}
    return dataclasses.replace(found, artifact=dataclasses.replace(found.artifact, metrics=metrics))
