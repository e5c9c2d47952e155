"""Which of many names occur in images and are missing from a vocabulary."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pvp_fast.embeddings import EmbeddedImages, EmbeddingStore
from pvp_fast.errors import InputError
from pvp_fast.labelling import noun_lemma, tokenize
from pvp_fast.prompts import prompt_ensemble
from pvp_fast.tagger import Tagger

LEAST_SHARE = 0.2
_NAMES_AT_ONCE = 512


@dataclass(frozen=True)
class Proposal:
    """A category that the images seem to show and the vocabulary lacks.

    Attributes:
        name: as the list has it.
        images: how many images give it at least ``least_share``.
        evidence: the sum of its shares over these images; proposals are ordered by it.
        nearest: the category of the vocabulary whose text features are closest.
        similarity: their cosine; near 1 the two may be one thing under two names.
        examples: keys of the images with the largest shares, and these shares, best first.
    """

    name: str
    images: int
    evidence: float
    nearest: str
    similarity: float
    examples: tuple[tuple[str, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "images": self.images,
            "evidence": round(self.evidence, 4),
            "nearest": self.nearest,
            "similarity": round(self.similarity, 4),
            "examples": [{"image": key, "share": round(share, 4)} for key, share in self.examples],
        }


@dataclass
class _Found:
    images: int = 0
    evidence: float = 0.0
    best: list[tuple[float, int, str]] = field(default_factory=list)  # a heap, worst first


def discover(
    tagger: Tagger,
    store: EmbeddingStore,
    names: Iterable[str],
    *,
    top: int = 20,
    least_images: int = 3,
    least_share: float = LEAST_SHARE,
    examples: int = 6,
    progress: Callable[[int], object] | None = None,
) -> list[Proposal]:
    """Propose categories for images that a vocabulary explains badly.

    All names, those of the vocabulary and those of the list, compete for each image in CLIP's own
    softmax over cosines, so a candidate has a share only where no known category says the same
    better. Before, the mean of all images is taken out of their features: it is what makes some
    names near to everything. Names are encoded by the templates of zero-shot CLIP, on both sides.

    Args:
        tagger: its vocabulary is what is known; its CLIP must have made the embeddings.
        names: candidates; those the vocabulary has, under any number or synonym, are left out.
        top: how many to propose at most.
        least_images: fewer images than these are no proposal.
        least_share: what an image must give a name to count for it, in (0, 1).
        examples: images to name for each.
        progress: called with the number of images seen.

    Returns:
        Proposals, the strongest evidence first.

    Raises:
        InputError: no candidate is left, or an argument out of its range.
        ArtifactError: embeddings of another CLIP, or damaged ones.
    """
    if not 0 < least_share < 1:
        raise InputError(f"least_share is {least_share}; give a share between 0 and 1")
    for name, value in (("top", top), ("least_images", least_images), ("examples", examples)):
        if value < 1:
            raise InputError(f"{name} is {value}; give at least 1")
    store.check_backbone(tagger.backbone.fingerprint)
    if not len(store):
        raise InputError(f"{store.folder} holds no image")
    known = tagger.artifact.vocabulary
    wanted = candidates(names, tagger)
    if not wanted:
        raise InputError("names: the vocabulary has them all; give a longer list")
    parts = [
        prompt_ensemble(tagger.backbone, wanted[i : i + _NAMES_AT_ONCE]).cpu()
        for i in range(0, len(wanted), _NAMES_AT_ONCE)
    ]
    fresh, own = torch.cat(parts), prompt_ensemble(tagger.backbone, known.names).cpu()
    table = torch.cat([fresh, own]) * tagger.backbone.logit_scale
    mean = _mean(store)
    found = [_Found() for _ in wanted]
    seen = 0
    for batch in store.batches():
        shares = ((batch.z - mean) @ table.T).softmax(1)[:, : len(wanted)]
        _count(found, batch, shares, least_share, examples)
        seen += len(batch.keys)
        if progress is not None:
            progress(seen)
    likeness, nearest = (fresh @ own.T).max(1)
    order = sorted(range(len(wanted)), key=lambda n: -found[n].evidence)
    return [
        Proposal(
            wanted[n],
            found[n].images,
            found[n].evidence,
            known.names[int(nearest[n])],
            float(likeness[n]),
            tuple((key, share) for share, _, key in sorted(found[n].best, reverse=True)),
        )
        for n in order
        if found[n].images >= least_images
    ][:top]


def candidates(names: Iterable[str], tagger: Tagger) -> list[str]:
    """Each name once, without what the tagger's vocabulary has as a name or synonym."""
    taken = {
        _key(word)
        for category in tagger.artifact.vocabulary
        for word in (category.name, *category.synonyms)
    }
    return list(_new(names, taken))


def _new(names: Iterable[str], taken: set[str]) -> Iterator[str]:
    for name in names:
        key = _key(name)
        if key and key not in taken:
            taken.add(key)
            yield name.strip()


def _key(name: str) -> str:
    return " ".join(map(noun_lemma, tokenize(name)))


def _mean(store: EmbeddingStore) -> Tensor:
    total = sum(batch.z.sum(0, dtype=torch.float64) for batch in store.batches())
    return (torch.as_tensor(total) / len(store)).float()


def _count(
    found: Sequence[_Found],
    batch: EmbeddedImages,
    shares: Tensor,
    least_share: float,
    examples: int,
) -> None:
    rows, columns = (shares >= least_share).nonzero(as_tuple=True)
    for row, column, share in zip(
        rows.tolist(), columns.tolist(), shares[rows, columns].tolist(), strict=True
    ):
        of = found[column]
        of.images += 1
        of.evidence += share
        item = (share, -batch.indices[row], batch.keys[row])  # of equal ones the earlier image
        if len(of.best) < examples:
            heapq.heappush(of.best, item)
        else:
            heapq.heappushpop(of.best, item)
