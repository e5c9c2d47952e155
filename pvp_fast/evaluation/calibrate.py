"""Calibrate a finished artifact again: for another target, other sentences, or labelled images."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pvp_fast.artifact import Artifact
from pvp_fast.clip.backbone import Backbone
from pvp_fast.errors import InputError
from pvp_fast.evaluation.ladder import Features, final_scores, match_categories
from pvp_fast.metrics import Counts, Reliability, counts_at_threshold, reliability
from pvp_fast.sentences import Corpus
from pvp_fast.training.thresholds import Target, cross_fit, fit_platt, thresholds_for


@dataclass(frozen=True)
class Scored:
    """Rows to calibrate on: ``scores`` (N, C) final cosines, ``labels`` (N, C) int8 in −1/0/1.

    0 is unknown (a category the data set does not have, or VOC's difficult): it counts nowhere.
    """

    scores: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Calibration:
    """A recalibrated artifact and what can be expected of it.

    ``before`` and ``counts_before`` judge the artifact as it came. ``after`` and ``counts`` are
    out-of-fold: five times, four fifths of the rows gave probabilities and thresholds and the last
    fifth judged them. The artifact itself is calibrated on all rows.
    """

    artifact: Artifact
    target: Target
    rows: int
    before: Reliability
    after: Reliability
    counts_before: Counts
    counts: Counts

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; None where nothing was kept."""

        def summary(diagram: Reliability, counts: Counts) -> dict[str, Any]:
            numbers = {
                "ece": diagram.ece,
                "precision": counts.precision,
                "macro_precision": counts.macro_precision,
                "recall": counts.recall,
            }
            return {k: None if v != v else round(v, 6) for k, v in numbers.items()}

        thresholds = self.artifact.head.thresholds.tolist()
        return {
            "target": str(self.target),
            "rows": self.rows,
            "before": summary(self.before, self.counts_before),
            "after": summary(self.after, self.counts),
            "categories": [
                {"name": n, "threshold": t, "kept": k, "right": r, "present": p}
                for n, t, k, r, p in zip(
                    self.artifact.vocabulary.names,
                    thresholds,
                    self.counts.kept.tolist(),
                    self.counts.right.tolist(),
                    self.counts.present.tolist(),
                    strict=True,
                )
            ],
        }


def calibrate(
    artifact: Artifact, data: Scored, target: Target, *, common: bool = False, seed: int = 0
) -> Calibration:
    """A new artifact with other probabilities and thresholds; all else is the same.

    Args:
        data: from :func:`score_sentences` or :func:`score_images`; rows that training never saw.
        common: one threshold for all categories: for images, of which there are few.
        seed: of the folds.

    Raises:
        InputError: fewer than ten rows, or no positive label.
    """
    scores = data.scores.float().cpu()
    labels = data.labels.cpu()
    if len(scores) < 10 or not bool((labels > 0).any()):
        raise InputError(
            f"data: {len(scores)} rows with {int((labels > 0).sum())} positive labels are too few "
            "to calibrate on; give at least ten rows, some with labels"
        )
    positive, known = labels > 0, labels != 0
    platt = fit_platt(scores, positive, known)
    thresholds = thresholds_for(target, scores, positive, platt, known, common=common)
    held = cross_fit(target, scores, positive, known, common=common, seed=seed)
    head = artifact.head
    old = head.probabilities(scores)
    ignore = "ignore"
    result = Calibration(
        artifact=dataclasses.replace(artifact, head=head.calibrated(platt, thresholds)),
        target=target,
        rows=len(scores),
        before=reliability(old, labels, difficult=ignore),
        after=reliability(held.chances, labels, difficult=ignore),
        counts_before=counts_at_threshold(head.accepted(scores), labels, 0.5, difficult=ignore),
        counts=counts_at_threshold(held.chances, labels, held.thresholds, difficult=ignore),
    )
    record = {k: v for k, v in result.to_dict().items() if k != "categories"}
    metrics = {**artifact.metrics, "calibration": {**record, "common": common}}
    return dataclasses.replace(
        result, artifact=dataclasses.replace(result.artifact, metrics=metrics)
    )


def score_sentences(backbone: Backbone, artifact: Artifact, corpus: Corpus) -> Scored:
    """Scores of labelled sentences.

    Raises:
        ArtifactError: another backbone. InputError: a corpus of another vocabulary.
    """
    artifact.check_backbone(backbone.fingerprint)
    if corpus.vocabulary.names != artifact.vocabulary.names:
        raise InputError("corpus: its categories are not the artifact's; label with its vocabulary")
    head = artifact.head.to(backbone.device)
    local = None
    if artifact.has_local:
        near = []
        for start in range(0, len(corpus), 256):
            tokens, mask = backbone.encode_text_tokens(corpus.sentences[start : start + 256])
            near.append(head.local_cosines(tokens, mask))
        local = torch.cat(near)
    scores = head.cosines(backbone.encode_text(corpus.sentences), local=local)
    return Scored(scores.cpu(), corpus.multi_hot().to(torch.int8) * 2 - 1)


def score_images(artifact: Artifact, features: Features) -> Scored:
    """Scores of labelled images, encoded by :func:`pvp_fast.evaluation.encode_set`.

    Raises:
        InputError: no category in common.
    """
    pairs = match_categories(artifact, features.names)
    if not pairs:
        raise InputError("dataset: it has no category of the artifact's vocabulary")
    labels = torch.zeros(len(features.z), len(artifact.vocabulary), dtype=torch.int8)
    for category, column in pairs:
        labels[:, category] = features.labels[:, column]
    return Scored(final_scores(artifact, features), labels)


def unseen(artifact: Artifact, corpus: Corpus) -> tuple[Corpus, bool]:
    """The part of ``corpus`` that training held out, and True; all of it and False if another.

    The artifact knows the fingerprint of its corpus and how it was split, so giving ``train``'s
    own sentences again is enough.
    """
    if artifact.metrics.get("corpus") != corpus.fingerprint:
        return corpus, False
    held_out, seed = artifact.config.get("held_out", 0.1), artifact.config.get("seed", 0)
    return corpus.split(float(held_out), int(seed))[1], True
