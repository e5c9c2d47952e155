"""Categories added to an artifact that has no training state: their names are all there is."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import torch

from pvp_fast.artifact import Artifact
from pvp_fast.clip.backbone import Backbone
from pvp_fast.errors import InputError
from pvp_fast.files import cache_folder
from pvp_fast.modules.prompts import prompt_ensemble
from pvp_fast.modules.scoring import Head
from pvp_fast.names.zero_shot import CENTRE, centred, vectors_of
from pvp_fast.vocabulary.categories import Category, Vocabulary


def add_names(
    backbone: Backbone,
    artifact: Artifact,
    categories: Sequence[Category | str],
    *,
    cache: str | os.PathLike[str] | None = None,
) -> Artifact:
    """A new artifact with categories behind the present ones, which keep every bit.

    The vector of each is its name's through prompt templates, as of the names that the artifact
    began from; slope, intercept and threshold are the means of the others'. Any number at once.

    Args:
        cache: where vectors of names are kept (see :func:`pvp_fast.names.cache_folder`).

    Raises:
        ArtifactError: another backbone.
        InputError: a name is there already, or the artifact has a local branch, which names alone
            cannot extend.
    """
    artifact.check_backbone(backbone.fingerprint)
    if artifact.has_local:
        raise InputError("artifact: it has a local branch but no training state to extend it with")
    vocabulary = artifact.vocabulary.extended(*categories)
    names = vocabulary.names[len(artifact.vocabulary) :]
    if artifact.config.get("learn") in ("none", "text"):  # made from names: they were centred
        models = cache_folder(cache) / "models"
        middle = vectors_of(backbone, Vocabulary.builtin(CENTRE).names, models).mean(0)
        new = centred(vectors_of(backbone, names, models), middle)
    else:
        new = prompt_ensemble(backbone, names).cpu()
    head = artifact.head
    prompts = head.adapter.visual.shape[1]
    adapter = head.adapter.extended(new, new, new[:, None].expand(-1, prompts, -1), alpha=0.0)
    platt = head.platt.mean(0).expand(len(names), 2)
    cut = head.thresholds.mean().expand(len(names))
    grown = Head(adapter, torch.cat([head.platt, platt]), torch.cat([head.thresholds, cut]))
    return dataclasses.replace(artifact, vocabulary=vocabulary, head=grown)
