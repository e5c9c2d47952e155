"""Image embeddings on disk, so that vocabularies can change without touching pixels again.

A folder of safetensors shards and a manifest. A shard is written whole, then the manifest that
names it; what a killed run or a full disk leaves is a shorter folder that the next run completes.

The folder knows which images of which size and time it was made from, so a source that has grown
is gone on with and one that has changed is an error. What could not be read is tried again by the
next run, unless it is damaged and has not changed.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from pvp_fast.clip.backbone import Backbone
from pvp_fast.errors import ArtifactError, InputError
from pvp_fast.files import atomic_write
from pvp_fast.loaders import Batch, Failure, ImageStream, ItemSource
from pvp_fast.loaders.samples import Sample, Source
from pvp_fast.loaders.sources import open_source
from pvp_fast.loaders.work import work_through
from pvp_fast.modules.tiles import TILE, check_tile, image_regions, require
from pvp_fast.pictures import PictureSettings
from pvp_fast.sinks.ledger import Content, content_of, is_lasting, place

MANIFEST = "embeddings.json"
_VERSION = 2


@dataclass(frozen=True)
class EmbeddedImages:
    """Some rows of a store.

    Attributes:
        keys: B names. indices: B places in the order of the images.
        z: (B, D) float32, unit rows up to float16's rounding.
        regions: (B, L, D) float32, where the store has them.
        contents: B files as they were when they were read, or None.
    """

    keys: tuple[str, ...]
    indices: tuple[int, ...]
    z: Tensor
    regions: Tensor | None
    contents: tuple[Content | None, ...] = ()


class EmbeddingStore:
    """A folder of image embeddings, as :func:`embed_images` writes it.

    Attributes:
        backbone: name, pretrained and fingerprint of the CLIP that made them.
        complete: whether every image of the source is in it.
        pictures: how the images were opened.
        has_regions: whether region features are there for the local branch.
        tile: what they are of, see :func:`pvp_fast.modules.tiles.image_regions`.
        failures: the images that could not be read.
        made: images that the run which gave this store has encoded; 0 for one that was opened.
        tried: indices of the failures that it has met itself; the others are of earlier runs.

    Raises:
        ArtifactError: no such folder, or its manifest is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.made = 0
        self.tried: frozenset[int] = frozenset()
        manifest = _manifest(self.folder)
        if manifest is None:
            raise ArtifactError(f"{self.folder} has no {MANIFEST}; make it with pvp-fast embed")
        try:
            self.backbone: dict[str, Any] = dict(manifest["backbone"])
            self.complete = bool(manifest["complete"])
            self.has_regions = bool(manifest["regions"])
            self.tile = float(manifest.get("tile", 0.0))  # patches, as it used to be
            self.pictures = PictureSettings.from_dict(manifest.get("pictures", {}))
            self._rows = [int(rows) for rows in manifest["rows"]]
            self._dropped = {(int(shard), int(row)) for shard, row in manifest["dropped"]}
            self.failures = tuple(
                Failure(str(k), str(r), int(i)) for k, r, i, _ in manifest["failures"]
            )
            self._fingerprint = str(self.backbone["fingerprint"])
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{self.folder / MANIFEST} is damaged: {error!r}") from error

    def __len__(self) -> int:
        return sum(self._rows) - len(self._dropped)

    def check_backbone(self, fingerprint: str) -> None:
        """Raise ArtifactError unless this CLIP made the embeddings."""
        if fingerprint != self._fingerprint:
            raise ArtifactError(
                f"{self.folder} holds embeddings of {self.backbone.get('name')} "
                f"({self._fingerprint[:12]}), the artifact is of {fingerprint[:12]}; embed the "
                "images with the artifact's CLIP"
            )

    def batches(self, batch_size: int = 1024) -> Iterator[EmbeddedImages]:
        """All rows in the order they were made; one batch is in memory at a time.

        Raises:
            ArtifactError: a shard is missing, damaged or of another size.
        """
        for number, rows in enumerate(self._rows):
            path = self.folder / _shard(number)
            try:
                with safetensors.safe_open(path, "pt") as shard:
                    keys, contents = _said(shard.metadata())
                    indices = shard.get_tensor("indices").tolist()
                    z = shard.get_slice("z")
                    near = shard.get_slice("regions") if self.has_regions else None
                    if not len(keys) == len(indices) == z.get_shape()[0] == rows:
                        raise ArtifactError(f"{path} does not hold the {rows} rows it should")
                    for at in range(0, rows, batch_size):
                        part = slice(at, min(at + batch_size, rows))
                        kept = [
                            row
                            for row in range(at, part.stop)
                            if (number, row) not in self._dropped
                        ]
                        if not kept:
                            continue
                        mine = torch.tensor(kept) - at
                        yield EmbeddedImages(
                            tuple(keys[row] for row in kept),
                            tuple(indices[row] for row in kept),
                            z[part][mine].float(),
                            None if near is None else near[part][mine].float(),
                            tuple(contents[row] for row in kept),
                        )
            except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
                raise ArtifactError(f"{path} is missing or damaged: {error}") from error


def _said(metadata: Mapping[str, str]) -> tuple[list[str], list[Content | None]]:
    """Keys of a shard, and what each was read from."""
    keys = json.loads(metadata["keys"])
    contents = [_content(k, c) for k, c in zip(keys, json.loads(metadata["contents"]), strict=True)]
    return keys, contents


def _content(key: str, kept: Sequence[Any] | None) -> Content | None:
    if kept is None:
        return None
    path, size, time = kept
    return Content(key if path is None else str(path), int(size), int(time))


def _kept(key: str, content: Content | None) -> list[Any] | None:
    """The reverse: place (None where the key is it), size and time."""
    return content and [None if content.path == key else content.path, *content[1:]]


def _shard(number: int) -> str:
    return f"embeddings-{number:05d}.safetensors"


def _manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("version") != _VERSION:
        raise ArtifactError(f"{path} is no manifest of version {_VERSION}")
    return manifest


def embed_images(
    backbone: Backbone,
    source: Any,
    out: str | os.PathLike[str],
    *,
    regions: bool = False,
    tile: float = TILE,
    batch_size: int = 64,
    shard_rows: int = 16_384,
    progress: Callable[[int], None] | None = None,
    pictures: PictureSettings | None = None,
    redo: bool = False,
    retry_failed: bool = False,
    rank: int = 0,
    world: int = 1,
    **options: Any,
) -> EmbeddingStore:
    """Encode the images of a source into a folder; goes on where an earlier run stopped.

    Images that were added to the source since are encoded, those that could not be read are tried
    again.

    Args:
        backbone: the CLIP.
        source: as for :class:`~pvp_fast.loaders.ImageStream`. An iterator must begin with the same
            items again when resumed.
        out: the folder.
        regions: also keep region features (L times the space) for artifacts with a local branch.
        tile: which, see :func:`pvp_fast.modules.tiles.image_regions`; that of the artifact.
        batch_size: images encoded at once.
        shard_rows: images of a shard; what a killed run repeats at most.
        progress: called with the number of images listed so far.
        pictures: how images are opened; kept in the manifest.
        redo: encode again what has changed since, and drop what is no longer in the source, instead
            of refusing.
        retry_failed: try damaged images again though their files have not changed.
        rank, world: this folder takes every ``world``-th image of the source, from ``rank`` on.
        options: for the stream (backend, workers, …).

    Raises:
        ArtifactError: the folder holds embeddings of another CLIP or kind.
        InputError: the source has changed since the folder was begun, or an unusable argument.
        OSError: the disk is full, say; what was written before stays whole.
    """
    if shard_rows < 1:
        raise InputError(f"shard_rows is {shard_rows}; give at least 1")
    if not 0 <= rank < world:
        raise InputError(f"rank is {rank} of world={world}; give 0 to {world - 1}")
    if regions:
        check_tile("regions", tile)
        require(backbone, tile, "regions=True with tile=0")
    folder = Path(out)
    identity = {
        "version": _VERSION,
        "backbone": {
            "name": backbone.name,
            "pretrained": backbone.pretrained,
            "fingerprint": backbone.fingerprint,
        },
        "regions": regions,
        "tile": tile if regions else 0.0,
        "pictures": (pictures or PictureSettings()).to_dict(),
        "split": [rank, world],
    }
    manifest = _manifest(folder)
    if manifest is not None:
        _check_same(folder, manifest, identity)
    known = _Known(folder, manifest)
    left = _Left(open_source(source), known, rank, world, redo, retry_failed)
    with ImageStream(
        left, backbone.preprocess, batch_size, backbone.device, pictures=pictures, **options
    ) as stream:
        left.check(folder)
        shard = _Shard()
        made, tried = 0, set()

        def encode(batch: Batch) -> tuple[Tensor, Tensor | None]:
            with torch.no_grad():
                z = backbone.encode_image(batch.pixels)
                return z, image_regions(backbone, batch.pixels, tile) if regions else None

        for done in work_through(stream, encode, backbone.device):
            for failure in done.failures:
                known.fail(failure, left.contents.pop(failure.index))
                tried.add(known.first + failure.index)
            if done.result is not None:
                contents = [left.contents.pop(index) for index in done.indices]
                indices = tuple(known.first + index for index in done.indices)
                shard.add(done.keys, indices, *done.result, contents)
                made += len(indices)
            if progress:
                progress(known.first + done.listed)
            ended = done.result is None
            if len(shard) >= (1 if ended else shard_rows):
                known.rows = shard.write(folder, known.rows)
                shard = _Shard()
                if not ended:
                    known.write(identity, done.listed, complete=False)
        known.write(identity, stream.listed, complete=True)
    store = EmbeddingStore(folder)
    store.made, store.tried = made, frozenset(tried)
    return store


class _Image(NamedTuple):
    """An image that the folder knows: what was read, and its row or the index of its failure."""

    content: Content | None
    row: tuple[int, int] | None
    failure: int = -1


class _Known:
    """The images in a folder, and its manifest."""

    def __init__(self, folder: Path, manifest: dict[str, Any] | None) -> None:
        self.folder = folder
        self.rows: list[int] = []
        self.dropped: set[tuple[int, int]] = set()
        self.failures: dict[int, tuple[str, str, Content | None]] = {}
        self.first = 0  # index of this run's first image
        # By place; several where an image was listed several times.
        self.images: dict[str, list[_Image]] = {}
        if manifest is None:
            return
        try:
            self.rows = [int(rows) for rows in manifest["rows"]]
            self.dropped = {(int(shard), int(row)) for shard, row in manifest["dropped"]}
            self.first = int(manifest["listed"])
            for key, reason, index, kept in manifest["failures"]:
                content = _content(key, kept)
                self.failures[int(index)] = (str(key), str(reason), content)
                self._add(key, _Image(content, None, int(index)))
            for shard in range(len(self.rows)):
                with safetensors.safe_open(folder / _shard(shard), "pt") as opened:
                    said = zip(*_said(opened.metadata()), strict=True)
                for row, (key, content) in enumerate(said):
                    if (shard, row) not in self.dropped:
                        self._add(key, _Image(content, (shard, row)))
        except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
            raise ArtifactError(f"{folder} is damaged: {error!r}") from error

    def _add(self, key: str, image: _Image) -> None:
        name = key if image.content is None else image.content.path
        self.images.setdefault(name, []).append(image)

    def name(self, key: str) -> str:
        """What a listed image is known as."""
        there = place(key)
        return there if there in self.images else key

    def take(self, key: str) -> _Image | None:
        """What is known of an image, as often as it is known."""
        found = self.images.get(self.name(key))
        return found.pop(0) if found else None

    def forget(self, image: _Image) -> None:
        """Take out a row, or a failure."""
        if image.row is not None:
            self.dropped.add(image.row)
        else:
            self.failures.pop(image.failure, None)

    def fail(self, failure: Failure, content: Content | None) -> None:
        """Take a failure of this run."""
        index = self.first + failure.index
        self.failures[index] = (failure.key, failure.reason, content)

    def write(self, identity: dict[str, Any], listed: int, *, complete: bool) -> None:
        """Write the manifest, after ``listed`` images of this run."""
        failures = [[k, r, i, _kept(k, c)] for i, (k, r, c) in sorted(self.failures.items())]
        with atomic_write(self.folder / MANIFEST, "w") as out:
            json.dump(
                {
                    **identity,
                    "rows": self.rows,
                    "dropped": sorted(self.dropped),
                    "failures": failures,
                    "listed": self.first + listed,
                    "complete": complete,
                },
                out,
            )


class _Left:
    """A source without the images that a folder has already.

    Args:
        source: the whole one.
        known: what the folder has; images are taken out of it as they are listed.
        rank, world: of the new images those at every ``world``-th place are listed.
        redo, retry_failed: see :func:`embed_images`.

    Attributes:
        contents: what each image listed here is, as it was before it was read.
    """

    def __init__(
        self, source: Source, known: _Known, rank: int, world: int, redo: bool, retry_failed: bool
    ) -> None:
        self.source, self.known = source, known
        self.rank, self.world = rank, world
        self.redo, self.retry_failed = redo, retry_failed
        self.contents: dict[int, Content | None] = {}
        self._once = False  # an iterator cannot be looked through beforehand

    def count(self) -> int | None:
        return self.source.count()

    def check(self, folder: Path) -> None:
        """Compare the source with what the folder was made from, before any work.

        Raises:
            InputError: it has changed.
        """
        if not self.known.images:
            return
        if isinstance(self.source, ItemSource) and self.source.count() is None:
            self._once = True
            return
        seen: Counter[str] = Counter()
        changed = []
        for sample in self.source.samples(None):
            name = self.known.name(sample.key)
            there = self.known.images.get(name, [])
            if seen[name] < len(there):
                image = there[seen[name]]
                seen[name] += 1
                if image.row is not None and _differs(image, content_of(sample.key)):
                    changed.append(sample.key)
        gone = [
            (name, image)
            for name, there in self.known.images.items()
            for image in there[seen[name] :]
        ]
        lost = [name for name, image in gone if image.row is not None]
        if (changed or lost) and not self.redo:
            raise InputError(
                f"source: of the images in {folder} {len(changed)} have changed since and "
                f"{len(lost)} are no longer there (the first: {(changed or lost)[0]}); give the "
                "same source, unchanged but for new images, another folder, or --redo"
            )
        for name, image in gone:
            self.known.forget(image)
            self.known.images[name].remove(image)
        self.known.images = {name: there for name, there in self.known.images.items() if there}

    def samples(self, shuffle: random.Random | None) -> Iterator[Sample]:
        number = 0
        for position, sample in enumerate(self.source.samples(shuffle)):
            content = content_of(sample.key)
            image = self.known.take(sample.key)
            if image is None:
                if self._once and any(self.known.images.values()):
                    self._refuse(repr(sample.key))
                if position % self.world != self.rank:
                    continue
            elif self._stands(image, content):
                continue
            else:
                self.known.forget(image)
            self.contents[number] = content
            number += 1
            yield sample
        if self._once and any(self.known.images.values()) and not self.redo:
            self._refuse("nothing")

    def _refuse(self, found: str) -> None:
        wanted = next(name for name, there in self.known.images.items() if there)
        raise InputError(
            f"source: it has {found} where the folder has {wanted!r}; give the same source, "
            "unchanged but for new images at its end, or another folder"
        )

    def _stands(self, image: _Image, content: Content | None) -> bool:
        if image.row is not None:
            return not (self.redo and _differs(image, content))
        reason = self.known.failures[image.failure][1]
        same = content is not None and not _differs(image, content)
        return same and is_lasting(reason) and not self.retry_failed


def _differs(image: _Image, content: Content | None) -> bool:
    known = image.content
    return content is not None and known is not None and content[1:] != known[1:]


def _check_same(folder: Path, manifest: dict[str, Any], identity: dict[str, Any]) -> None:
    kept = manifest.get("backbone")
    mine = identity["backbone"]["fingerprint"]
    if not isinstance(kept, dict) or kept.get("fingerprint") != mine:
        raise ArtifactError(f"{folder} holds embeddings of another CLIP; give another folder")
    if manifest.get("regions") != identity["regions"]:
        raise ArtifactError(
            f"{folder} was begun with regions={manifest.get('regions')}; give another folder"
        )
    if manifest.get("tile", 0.0) != identity["tile"]:
        raise ArtifactError(
            f"{folder} was begun with tile={manifest.get('tile', 0.0)}; give the same, or another "
            "folder"
        )
    if manifest.get("split") != identity["split"]:
        raise InputError(
            f"{folder} was begun as part {manifest.get('split')} of its source, this is "
            f"{identity['split']} (rank, world); give the same, or another folder"
        )
    opened = PictureSettings.from_dict(manifest.get("pictures", {}))
    if opened != PictureSettings.from_dict(identity["pictures"]):
        raise ArtifactError(
            f"{folder} was begun with images opened as {opened}; give the same settings, or "
            "another folder"
        )


class _Shard:
    """Rows of float16 waiting to be written."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self._indices: list[int] = []
        self._contents: list[list[Any] | None] = []
        self._parts: dict[str, list[Tensor]] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def add(
        self,
        keys: tuple[str, ...],
        indices: tuple[int, ...],
        z: Tensor,
        regions: Tensor | None,
        contents: Sequence[Content | None],
    ) -> None:
        self.keys += keys
        self._contents += [_kept(key, c) for key, c in zip(keys, contents, strict=True)]
        self._indices += indices
        for name, values in (("z", z), ("regions", regions)):
            if values is not None:
                self._parts.setdefault(name, []).append(values.cpu().to(torch.float16))

    def write(self, folder: Path, rows: list[int]) -> list[int]:
        """Write the next shard, whole or not at all; the rows of all shards with this one."""
        tensors = {name: torch.cat(parts) for name, parts in self._parts.items()}
        tensors["indices"] = torch.tensor(self._indices, dtype=torch.int64)
        with atomic_write(folder / _shard(len(rows))) as stream:
            said = {"keys": json.dumps(self.keys), "contents": json.dumps(self._contents)}
            stream.write(save(tensors, said))
        return [*rows, len(self)]
