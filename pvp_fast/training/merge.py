"""Two categories of an artifact made one."""

from __future__ import annotations

import dataclasses

import torch.nn.functional as F
from torch import Tensor

from pvp_fast.artifact import Artifact, TrainingState
from pvp_fast.errors import InputError
from pvp_fast.modules.adapters import DualAdapter
from pvp_fast.modules.scoring import Head
from pvp_fast.vocabulary.categories import Category, Vocabulary


def merge_categories(artifact: Artifact, kept: str, other: str) -> Artifact:
    """A new artifact in which ``kept`` stands for ``other`` too; the rest keep every bit.

    Every vector of the merged category is the normalised mean of the two, and so are its mixture,
    calibration and threshold the means. Name and label are those of ``kept``; the other's name and
    synonyms become synonyms. Of a training state it keeps the images of ``kept``.

    Raises:
        InputError: there is no such category, or both are one.
    """
    words = artifact.vocabulary
    first, second = words.index(kept), words.index(other)
    if first == second:
        raise InputError(f"{kept!r} and {other!r} are one category; give two")

    def joined(rows: Tensor) -> Tensor:
        mean = rows.clone()
        mean[first] = (rows[first] + rows[second]) / 2
        return mean

    def unit(rows: Tensor) -> Tensor:
        mean = rows.clone()
        mean[first] = F.normalize(rows[first] + rows[second], dim=-1)
        return mean

    head = artifact.head
    state = {name: value.detach().clone() for name, value in head.adapter.state_dict().items()}
    for name in ("original", "text", "visual"):
        state[name] = unit(state[name])
    for name in ("alpha_logit", "beta_logit"):
        state[name] = joined(state[name])
    adapter = DualAdapter.from_state(state["original"], state["text"], state["visual"], state)
    local = head.local
    if local is not None:
        local = dataclasses.replace(local, vectors=unit(local.vectors), weight=joined(local.weight))
    merged = Head(adapter.eval(), joined(head.platt), joined(head.thresholds), local)
    learned = None
    if artifact.state is not None:
        old = artifact.training

        def own(ctx: Tensor) -> Tensor:
            return joined(ctx) if ctx.ndim == 3 else ctx

        local_ctx = None if old.local_ctx is None else own(old.local_ctx)
        learned = TrainingState(unit(old.text_only), old.pixels, own(old.ctx), local_ctx)
    one, two = words[first], words[second]
    more = (word for word in (two.name, *two.synonyms) if word not in (one.name, *one.synonyms))
    items = list(words)
    ignore = tuple(dict.fromkeys((*one.ignore, *two.ignore)))
    items[first] = Category(one.name, (*one.synonyms, *more), ignore, one.label)
    joint = dataclasses.replace(artifact, vocabulary=Vocabulary(items), head=merged, state=learned)
    return joint.take([row for row in range(len(words)) if row != second])
