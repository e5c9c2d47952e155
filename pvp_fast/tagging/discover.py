"""Categories that occur in untagged images and are missing from a vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pvp_fast.artifact import Artifact
from pvp_fast.errors import InputError
from pvp_fast.modules.prompts import prompt_ensemble
from pvp_fast.tagging.tagger import Tagger, require_region_features
from pvp_fast.training.thresholds import Target, fit_platt, thresholds_for
from pvp_fast.vocabulary.categories import Category
from pvp_fast.vocabulary.matching import noun_lemma, tokenize

if TYPE_CHECKING:
    from pvp_fast.tagging.embeddings import EmbeddingStore

FEWEST = 30  # images; a median of fewer says little
ANCHORS = 20  # tags of the artifact's own categories that the calibration needs
PAIRS = 200_000  # the highest scores of the artifact's categories, to calibrate on
CHUNK = 64  # names scored at once: N x 64 numbers
LEVEL = 0.01  # probability that one proposal, of all names, is an accident


@dataclass(frozen=True)
class Proposal:
    """A name that the images speak for.

    Attributes:
        name: as in the list of names.
        images: how many show it.
        nearest: the category of the artifact whose scores are most like its own.
        similarity: their correlation over the images.
        examples: keys of the images that show it best, with probabilities.
        also: further names of the list that say the same of these images.
    """

    name: str
    images: int
    nearest: str
    similarity: float
    examples: tuple[tuple[str, float], ...]
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Discovery:
    """What :func:`discover` found.

    Attributes:
        proposals: most images first.
        images: how many were looked at. names: how many names competed.
        threshold: the probability from which on an image counts.
        accidents: images that a name gets though it is in none. least: images a proposal needs.
        known: names left out, and the category that each repeats.
    """

    proposals: tuple[Proposal, ...]
    images: int
    names: int
    threshold: float
    accidents: float
    least: int
    known: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def discover(
    tagger: Tagger,
    store: EmbeddingStore,
    names: Sequence[str],
    *,
    precision: float = 0.9,
    similarity: float = 0.9,
    least_images: int | None = None,
    examples: int = 8,
) -> Discovery:
    """Names of a list that occur in the images and are missing from the artifact's vocabulary.

    The evidence is zero-shot: cosines of the images with the mean feature of a name's templates.

    1. Each name's cosines are centred on their median over the images and divided by their median
       deviation, since some names lie nearer to all images than others. That supposes that a name
       is missing from most images: one that is in half of them or more is not found.
    2. What such a score is worth is calibrated on the artifact's own categories, whose presence
       its tags, at its own thresholds, tell: one logistic curve for all, and the lowest threshold
       at which the expected precision of what is kept reaches ``precision``.
    3. An image counts for a name when it passes the threshold and the name scores higher than its
       nearest category, so that "wolf" does not live on images of dogs. Nearest is the category
       of the highest correlation over the images.
    4. How many images pass for the artifact's categories though they are not tagged gives the
       number that a name gets by accident. A proposal has more: of a Poisson law with that mean,
       its count has a probability below 1 % after Bonferroni's correction for all names.

    Names that read like a category or a synonym (plurals aside) are left out, and those that
    correlate with a category by ``similarity`` or more: the images cannot tell them apart. Of the
    proposals that correlate like this, or have half of their images in common, the first stands
    for all.

    Args:
        tagger: its vocabulary is what is known; its CLIP must have made the embeddings.
        store: embeddings of N images; all are held in memory, in float32.
        names: the candidates; repeats count once.
        precision: of the tags that the threshold keeps, 0 to 1.
        similarity: correlation from which on two names are one, 0 to 1.
        least_images: take this number for the one of step 4. Fewer may bring up what is rare in a
            small collection, and more accidents.
        examples: images shown of each proposal.

    Raises:
        ArtifactError: embeddings of another CLIP, or without the region features that an artifact
            with a local branch needs.
        InputError: too few images, no name that is new, or so few tags of the artifact in these
            images that nothing can be calibrated.
    """
    for argument, value in (("precision", precision), ("similarity", similarity)):
        if not 0 < value < 1:
            raise InputError(f"{argument} is {value}; give a number between 0 and 1")
    if examples < 0:
        raise InputError(f"examples is {examples}; give 0 or more")
    if least_images is not None and least_images < 1:
        raise InputError(f"least_images is {least_images}; give at least 1, or None")
    artifact, backbone = tagger.artifact, tagger.backbone
    store.check_backbone(backbone.fingerprint)
    wanted, known = _new_names(artifact, names)
    keys, z, tagged = _read(artifact, store)
    count = len(keys)
    # The correlation of two names' scores is the cosine of their vectors in the metric of the
    # images' covariance; no score is needed for it.
    centred = z - z.mean(0)
    metric = centred.T @ centred / count
    bank = artifact.head.adapter.original.float()
    own = _Scores(z, bank)
    platt, threshold, wrong = _calibrate(own, tagged, precision)
    everything = prompt_ensemble(backbone, wanted).float().cpu()
    alike = _correlation(everything, bank, metric)
    like, nearest = alike.max(1)
    labels = artifact.vocabulary.names
    for row in (like >= similarity).nonzero().flatten().tolist():
        known[wanted[row]] = labels[int(nearest[row])]
    rows = (like < similarity).nonzero().flatten()
    if not len(rows):
        raise InputError(f"names: all {len(wanted)} repeat categories of the artifact")
    accidents = wrong * count
    least = least_images or _least(accidents, len(rows))
    candidates: list[_Candidate] = []
    for start, score in _Scores(z, everything[rows]).chunks():
        part = rows[start : start + score.shape[1]]
        logits = score * platt[0] + platt[1]
        shown = (logits.sigmoid() >= threshold) & (score > own.columns(nearest[part]))
        for column in (shown.sum(0) >= least).nonzero().flatten().tolist():
            images = shown[:, column].nonzero().flatten()
            order = logits[images, column].sort(descending=True, stable=True)
            candidates.append(_Candidate(int(part[column]), images[order.indices], order.values))
    candidates.sort(key=lambda candidate: (-len(candidate.images), candidate.row))
    proposals = tuple(
        Proposal(
            wanted[first.row],
            len(first.images),
            labels[int(nearest[first.row])],
            round(float(like[first.row]), 4),
            tuple(
                (keys[image], round(probability, 4))
                for image, probability in zip(
                    first.images[:examples].tolist(),
                    first.logits[:examples].sigmoid().tolist(),
                    strict=True,
                )
            ),
            tuple(wanted[row] for row in also),
        )
        for first, also in _grouped(candidates, everything, metric, similarity)
    )
    return Discovery(proposals, count, len(rows), threshold, round(accidents, 4), least, known)


def _new_names(artifact: Artifact, names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Names that read like no category and no earlier name; the others with their category."""
    if isinstance(names, str) or not len(names):
        raise InputError(f"names is {names!r}; give a list of names")
    taken = {
        _lemmas(word): category.name
        for category in artifact.vocabulary
        for word in (category.name, *category.synonyms)
    }
    wanted: dict[tuple[str, ...], str] = {}
    known = {}
    for name in names:
        key = _lemmas(Category(name).name)
        if key in taken:
            known[name] = taken[key]
        else:
            wanted.setdefault(key, name)
    if not wanted:
        raise InputError(f"names: all {len(names)} are categories of the artifact already")
    return list(wanted.values()), known


def _lemmas(name: str) -> tuple[str, ...]:
    return tuple(noun_lemma(token) for token in tokenize(name))


def _read(artifact: Artifact, store: EmbeddingStore) -> tuple[list[str], Tensor, Tensor]:
    """Keys, features (N, D) and which categories the tagger gives, (N, C) bool."""
    require_region_features(store, artifact)
    if len(store) < FEWEST:
        raise InputError(
            f"store: {store.folder} has {len(store)} images; give at least {FEWEST}, they are "
            "compared with one another"
        )
    keys: list[str] = []
    features, tagged = [], []
    for batch in store.batches():
        keys += batch.keys
        tagged.append(artifact.head.accepted(artifact.head.cosines(batch.z, batch.regions)))
        features.append(batch.z)
    return keys, torch.cat(features), torch.cat(tagged)


class _Scores:
    """Standardised scores of images (N, D) with names (M, D), some columns at a time."""

    def __init__(self, z: Tensor, vectors: Tensor) -> None:
        self._z, self._vectors = z, vectors

    def columns(self, index: Tensor) -> Tensor:
        """(N, n) scores of the names in ``index``."""
        raw = self._z @ self._vectors[index].T
        raw -= raw.median(0).values
        # 1.4826 median deviations of a normal law are one standard deviation.
        return raw / (1.4826 * raw.abs().median(0).values).clamp(min=1e-6)

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """The first column's number and (N, up to 64) scores, over all names."""
        for part in torch.arange(len(self._vectors)).split(CHUNK):
            yield int(part[0]), self.columns(part)


def _calibrate(own: _Scores, tagged: Tensor, precision: float) -> tuple[Tensor, float, float]:
    """Slope and intercept (2,), the threshold, and the rate of untagged pairs that pass it."""
    if int(tagged.sum()) < ANCHORS:
        raise InputError(
            f"store: the artifact tags {int(tagged.sum())} things in these {len(tagged)} images; "
            f"it needs {ANCHORS} to judge names by, give more images like those it was made for"
        )
    scores = torch.empty(0)
    labels = torch.empty(0, dtype=torch.bool)
    for start, part in own.chunks():
        # The probability at a score is the same whether or not low scores are in the fit.
        truth = tagged[:, start : start + part.shape[1]]
        scores, labels = torch.cat([scores, part.flatten()]), torch.cat([labels, truth.flatten()])
        if len(scores) > PAIRS:
            scores, order = scores.topk(PAIRS)
            labels = labels[order]
    platt = fit_platt(scores[:, None], labels[:, None])
    target = Target("precision", precision)
    threshold = float(thresholds_for(target, scores[:, None], labels[:, None], platt, common=True))
    passed = (scores * platt[0, 0] + platt[0, 1]).sigmoid() >= threshold
    # Laplace's rule: no accident among n does not prove that there is none.
    wrong = (int((passed & ~labels).sum()) + 1) / (int((~tagged).sum()) + 2)
    return platt[0], threshold, wrong


def _least(mean: float, names: int) -> int:
    """The smallest count that a Poisson law of that mean reaches in 1 % of 1 / names."""
    count = 1
    while float(_poisson_tail(count, mean)) * names >= LEVEL:
        count += 1
    return count


def _poisson_tail(count: int, mean: float) -> Tensor:
    """P(X >= count): the regularised lower incomplete gamma function."""
    pair = torch.tensor([float(count), mean], dtype=torch.double)
    return torch.special.gammainc(pair[0], pair[1])


def _correlation(first: Tensor, second: Tensor, metric: Tensor) -> Tensor:
    """(n, m) correlations of the images' cosines with vectors (n, D) and (m, D)."""
    a, b = first.double(), second.double()
    m = metric.double()
    norm = [((v @ m) * v).sum(1).clamp(min=1e-18).sqrt() for v in (a, b)]
    return ((a @ m @ b.T) / (norm[0][:, None] * norm[1])).float()


class _Candidate(NamedTuple):
    """A name's row, the images that show it, best first, and their logits."""

    row: int
    images: Tensor
    logits: Tensor


def _grouped(
    candidates: Sequence[_Candidate], vectors: Tensor, metric: Tensor, similarity: float
) -> list[tuple[_Candidate, list[int]]]:
    """Candidates, each with the rows of those behind it that say the same."""
    groups: list[tuple[_Candidate, list[int]]] = []
    for candidate in candidates:
        images = set(candidate.images.tolist())
        for first, also in groups:
            both = len(images.intersection(first.images.tolist()))
            pair = _correlation(vectors[[candidate.row]], vectors[[first.row]], metric)
            if float(pair) >= similarity or 2 * both >= len(images):
                also.append(candidate.row)
                break
        else:
            groups.append((candidate, []))
    return groups
