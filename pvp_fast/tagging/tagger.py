"""Tag images with a trained artifact."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pvp_fast.artifact import Artifact
from pvp_fast.clip.backbone import Backbone
from pvp_fast.errors import ArtifactError, ImageError, InputError
from pvp_fast.loaders import Batch, Failure, ImageStream, ItemSource
from pvp_fast.loaders.work import work_through
from pvp_fast.modules.tiles import require
from pvp_fast.pictures.settings import pictures_of
from pvp_fast.topk.index import TagIndex
from pvp_fast.vocabulary.categories import Category, Vocabulary

if TYPE_CHECKING:
    from pvp_fast.sentences.writers import Writer
    from pvp_fast.tagging.embeddings import EmbeddingStore


@dataclass(frozen=True)
class Tag:
    """One category of an image: its label, or its name where it has none; ``score`` is its
    calibrated probability, in [0, 1]."""

    name: str
    score: float
    index: int


@dataclass(frozen=True)
class TagResult:
    """The tags of one image, best first; or, when it could not be read, why.

    ``image`` is its path, its name in a shard, or its number among the images given.
    """

    image: str
    tags: tuple[Tag, ...]
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, one line of a JSONL file."""
        tags = [{"name": t.name, "score": round(t.score, 6)} for t in self.tags]
        return {"image": self.image, "tags": tags, "error": self.error}


class Tagger:
    """A frozen CLIP and an artifact, ready to tag. Threads may share one.

    Args:
        artifact: the trained vocabulary.
        backbone: the CLIP that trained it.

    Attributes:
        pictures: how images are opened; the artifact's own settings until another is assigned.

    Raises:
        ArtifactError: another backbone.
        BackboneError: the artifact has a local branch and the backbone has no region features.
    """

    def __init__(self, artifact: Artifact, backbone: Backbone) -> None:
        artifact.check_backbone(backbone.fingerprint)
        if (local := artifact.head.local) is not None:
            require(backbone, local.tile, "the artifact has a local branch")
        self.artifact, self.backbone = artifact, backbone
        self.pictures = pictures_of(artifact.config)
        self._head = artifact.head.to(backbone.device)
        vectors, intercept, gain = self._head.linear()
        self._index = TagIndex(vectors.cpu(), "auto", normalize=False)
        self._intercept = intercept.cpu()
        self._gain = None if gain is None else gain.cpu()

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "cpu",
        backbone: Backbone | None = None,
        precision: str | None = None,
    ) -> Tagger:
        """Load an artifact folder and, unless given, the CLIP it names.

        Args:
            precision: as for :meth:`Backbone.load`; any that the device has, whatever the
                artifact was trained in.

        Raises:
            ArtifactError: the folder is missing or damaged, or does not fit the backbone.
            BackboneError: the CLIP it names cannot be loaded.
        """
        artifact = Artifact.load(path)
        if backbone is None:
            spec = artifact.backbone
            backbone = Backbone.load(
                spec["name"],
                spec["pretrained"],
                device=device,
                precision=precision,
                like=spec.get("settings"),
            )
        return cls(artifact, backbone)

    @classmethod
    def from_names(
        cls,
        names: Vocabulary | Iterable[Category | str],
        *,
        backbone: Backbone,
        learn: str = "none",
        minutes: float | None = None,
        sentences: Sequence[str] | None = None,
        seed: int = 0,
        cache: str | os.PathLike[str] | None = None,
        writer: Writer | None = None,
    ) -> Tagger:
        """A tagger for a list of names; what is made for it is kept and found again.

        Args:
            names: a vocabulary, or categories.
            backbone: the CLIP that reads names and images.
            learn: "none" takes the names through prompt templates, at once; "text" learns class
                vectors from sentences and "full" runs all stages; "auto" takes the best of these
                that fits ``minutes``.
            minutes: bound for the learning; 10 with "auto".
            sentences: what to learn from; by default the grammar writes them.
            seed: of sentences and training.
            cache: folder of the cache; by default PVP_FAST_CACHE, else the user's cache folder.
            writer: a language model that writes more sentences, such as
                :class:`pvp_fast.sentences.OpenAIChat`; its answers are kept in the cache.

        Raises:
            InputError: unusable names or settings, or the machine is too small for them.
            CorpusError: the language model failed.
        """
        from pvp_fast.names import Request, prepare
        from pvp_fast.names.asked import asked_sentences

        words = names if isinstance(names, Vocabulary) else Vocabulary(names)
        texts = None if sentences is None else tuple(sentences)
        if writer is not None:
            Request(words, learn, minutes, ("",), seed)  # refused before anything is asked
            asked = asked_sentences(writer, words, cache=cache, progress=False)
            texts = (*(texts or ()), *asked)
        found = prepare(Request(words, learn, minutes, texts, seed), backbone, cache=cache)
        return cls(found.loaded(), backbone)

    def restricted(self, only: Sequence[str] = (), without: Sequence[str] = ()) -> Tagger:
        """A tagger of some of the categories, whose scores keep every bit; this one stays.

        Args:
            only: names to keep; all by default. without: names to leave out.

        Raises:
            InputError: a name that is not there, or none is left.
        """
        words = self.artifact.vocabulary
        kept = {words.index(name) for name in only} if only else set(range(len(words)))
        kept -= {words.index(name) for name in without}
        if not kept:
            raise InputError("only, without: no category is left to tag with")
        # A tagger looks at no training state: it need not be read.
        plain = dataclasses.replace(self.artifact, state=None).take(sorted(kept))
        tagger = Tagger(plain, self.backbone)
        tagger.pictures = self.pictures
        return tagger

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the artifact, with the categories added since."""
        self.artifact.save(path)

    def tag(
        self,
        images: Any,
        *,
        top_k: int | None = 5,
        threshold: float | None = None,
        batch_size: int = 64,
        prefetch: int | None = None,
        errors: str = "report",
    ) -> Any:
        """Tag images.

        Args:
            images: one image or a list of them (paths, PIL images, uint8 arrays (H, W, 3), encoded
                bytes, tensors (3, H, W) of pixels) gives a list; any other iterable gives an
                iterator that holds a few batches at most. A source of pvp_fast.loaders (TarSource,
                FileSource, …) is such an iterable.
            top_k: how many tags at most; None for all above the threshold.
            threshold: least probability; None uses each category's own threshold.
            batch_size: images encoded at once.
            prefetch: batches read in the background meanwhile; by default 2 for a list and 0 for
                another iterable, of which no more is taken than one batch. On a CPU, batches are
                then also encoded side by side (``pvp_fast.threads``), unless it is 0.
            errors: "report" puts a bad image's reason into its result, "raise" raises it.

        Returns:
            list or iterator of :class:`TagResult` in the order given.
        """
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k is {top_k}; give at least 1, or None for no limit")
        if threshold is not None and not 0 <= threshold <= 1:
            raise InputError(f"threshold is {threshold}; it is a probability, 0 to 1")
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; give at least 1")
        if prefetch is not None and prefetch < 0:
            raise InputError(f"prefetch is {prefetch}; give at least 0")
        if errors not in ("report", "raise"):
            raise InputError(f"errors={errors!r}: use 'report' or 'raise'")
        single = _is_single(images)
        source: Any = [images] if single else images
        listed = single or isinstance(images, Sequence | Tensor)
        ahead = (2 if listed else 0) if prefetch is None else prefetch
        results = self._stream(source, top_k, threshold, batch_size, ahead, errors == "raise")
        return list(results) if listed else results

    def __call__(self, images: Any, **options: Any) -> list[Any]:
        """As the image-classification pipeline of transformers: labels and scores as plain dicts.

        Args:
            images: one image, or a list of them, as for :meth:`tag`.
            options: those of :meth:`tag`.

        Returns:
            ``[{"label": str, "score": float}, …]`` of one image, best first; a list of such lists
            of several.

        Raises:
            ImageError: an image that cannot be read.
        """
        results = self.tag([images] if _is_single(images) else images, errors="raise", **options)
        lists = [[{"label": t.name, "score": t.score} for t in r.tags] for r in results]
        return lists[0] if _is_single(images) else lists

    def _stream(
        self,
        images: Iterable[Any],
        top_k: int | None,
        threshold: float | None,
        batch_size: int,
        prefetch: int,
        strict: bool,
    ) -> Iterator[TagResult]:
        source: Any = images
        if not hasattr(images, "samples"):
            source = ItemSource(_named(number, image) for number, image in enumerate(images))
        stream = ImageStream(
            source,
            self.backbone.preprocess,
            batch_size,
            self.backbone.device,
            prefetch=prefetch,
            pictures=self.pictures,
        )

        def tags_of(batch: Batch) -> list[tuple[Tag, ...]]:
            return self._tag_pixels(batch.pixels, top_k, threshold)

        with stream:
            for done in work_through(stream, tags_of, self.backbone.device, ahead=prefetch > 0):
                tagged = map(TagResult, done.keys, done.result or ())
                results = dict(zip(done.indices, tagged, strict=True))
                yield from _in_order(results, done.failures, strict)

    def tag_embeddings(
        self,
        store: EmbeddingStore,
        *,
        top_k: int | None = 5,
        threshold: float | None = None,
        batch_size: int = 1024,
    ) -> Iterator[TagResult]:
        """Tag images from embeddings on disk, in their order, the unreadable ones included.

        Raises:
            ArtifactError: the embeddings are of another CLIP, damaged, or lack the region features
                that an artifact with a local branch needs.
        """
        store.check_backbone(self.backbone.fingerprint)
        require_region_features(store, self.artifact)
        failures = deque(store.failures)
        for batch in store.batches(batch_size):
            tags = self.tag_features(batch.z, batch.regions, top_k=top_k, threshold=threshold)
            results = zip(batch.indices, map(TagResult, batch.keys, tags), strict=True)
            bad: list[Failure] = []
            while failures and failures[0].index < batch.indices[-1]:
                bad.append(failures.popleft())
            yield from _in_order(dict(results), bad, strict=False)
        yield from _in_order({}, failures, strict=False)

    def _tag_pixels(
        self, pixels: Tensor, top_k: int | None, threshold: float | None
    ) -> list[tuple[Tag, ...]]:
        z, regions = self.encode(pixels)
        return self.tag_features(z, regions, top_k=top_k, threshold=threshold)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """What :meth:`tag_features` takes, from normalised pixels (B, 3, H, W).

        Returns:
            Image features (B, D), and region features (B, L, D) where there is a local branch.
        """
        return self.backbone.encode_image(pixels), self._head.regions(self.backbone, pixels)

    @torch.no_grad()
    def tag_features(
        self,
        z: Tensor,
        regions: Tensor | None = None,
        *,
        top_k: int | None = 5,
        threshold: float | None = None,
    ) -> list[tuple[Tag, ...]]:
        """Tags from image features (B, D), unit rows, of the same backbone.

        Args:
            regions: (B, L, D) from ``head.regions``, for an artifact with a local branch.

        Raises:
            InputError: no regions though there is a local branch, or of another batch.
        """
        names = self.artifact.vocabulary.labels
        cut = self._head.cuts(threshold).cpu()
        queries = self._head.queries(z).cpu()
        if self._gain is None:
            best = self._index.topk(queries, top_k or len(names), cut, self._intercept)
            scores, indices, counts = best.scores, best.indices, best.counts
        else:
            logits = self._with_local(queries, regions, self._gain)
            logits = logits.masked_fill(logits < cut, -torch.inf)
            # Stable: of equal scores the lower index comes first, as in the index.
            order = logits.sort(stable=True, dim=1, descending=True)
            scores, indices = order.values[:, :top_k], order.indices[:, :top_k]
            counts = (scores > -torch.inf).sum(1)
        return [
            tuple(
                Tag(names[c], _probability(s), c)
                for s, c in zip(score[:count], index[:count], strict=True)
            )
            for score, index, count in zip(
                scores.tolist(), indices.tolist(), counts.tolist(), strict=True
            )
        ]

    def _with_local(self, queries: Tensor, regions: Tensor | None, gain: Tensor) -> Tensor:
        """Logits (B, C) of both branches. A category's bits do not depend on the others'."""
        near = self._head.check_regions(regions, len(queries))
        count = len(self.artifact.vocabulary)
        everything = torch.full((count,), -torch.inf)
        best = self._index.topk(queries, count, everything, self._intercept)
        overall = torch.empty_like(best.scores).scatter_(1, best.indices, best.scores)
        return overall + self._head.local_cosines(near).cpu() * gain

    def add_category(
        self,
        name: str,
        synonyms: Sequence[str] = (),
        sentences: Sequence[str] = (),
        **options: Any,
    ) -> Tagger:
        """A new tagger with one category more; this one stays as it is.

        See :func:`pvp_fast.training.add_category` for the arguments and what is learned.
        """
        from pvp_fast.training import add_category

        grown = add_category(self.backbone, self.artifact, name, synonyms, sentences, **options)
        return Tagger(grown, self.backbone)


def _is_single(images: Any) -> bool:
    if isinstance(images, Tensor):
        return images.ndim == 3
    return isinstance(images, str | os.PathLike | bytes | Image.Image | np.ndarray)


def _named(number: int, image: Any) -> tuple[str, Any]:
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        return path, path
    return str(number), image


def _in_order(
    tagged: dict[int, TagResult], failures: Iterable[Failure], strict: bool
) -> Iterator[TagResult]:
    for failure in failures:
        if strict:
            raise ImageError(failure.reason, failure.key)
        tagged[failure.index] = TagResult(failure.key, (), failure.reason)
    yield from (tagged[index] for index in sorted(tagged))


def require_region_features(store: EmbeddingStore, artifact: Artifact) -> None:
    """Raise ArtifactError if the embeddings lack the regions of the artifact's local branch."""
    local = artifact.head.local
    if local is None:
        return
    if not store.has_regions:
        raise ArtifactError(
            f"{store.folder} has no region features, which this artifact's local branch needs; "
            f"embed with --regions --tile {local.tile:g}"
        )
    if abs(store.tile - local.tile) > 1e-6:
        raise ArtifactError(
            f"{store.folder} has regions of tile {store.tile:g}, this artifact's local branch "
            f"needs {local.tile:g}; embed with --regions --tile {local.tile:g}"
        )


def _probability(logit: float) -> float:
    # Not torch.sigmoid: it rounds the ends of a tensor differently from its middle, and a tag's
    # score must not depend on how many categories there are.
    return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0
