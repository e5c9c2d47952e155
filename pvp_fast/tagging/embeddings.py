"""Image embeddings on disk, so that vocabularies can change without touching pixels again.

A folder of safetensors shards and a manifest. A shard is written whole, then the manifest that
names it; what a killed run or a full disk leaves is a shorter folder that the next run completes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from pvp_fast.clip.backbone import Backbone
from pvp_fast.clip.regions import require_regions
from pvp_fast.errors import ArtifactError, InputError
from pvp_fast.files import atomic_write
from pvp_fast.loaders import Failure, ImageStream
from pvp_fast.pictures import PictureSettings

MANIFEST = "embeddings.json"
_VERSION = 1


@dataclass(frozen=True)
class EmbeddedImages:
    """Some rows of a store.

    Attributes:
        keys: B names. indices: B places in the order of the images.
        z: (B, D) float32, unit rows up to float16's rounding.
        regions: (B, L, D) float32, where the store has them.
    """

    keys: tuple[str, ...]
    indices: tuple[int, ...]
    z: Tensor
    regions: Tensor | None


class EmbeddingStore:
    """A folder of image embeddings, as :func:`embed_images` writes it.

    Attributes:
        backbone: name, pretrained and fingerprint of the CLIP that made them.
        complete: whether every image of the source is in it.
        pictures: how the images were opened.
        has_regions: whether region features are there for the local branch.
        failures: the images that could not be read.

    Raises:
        ArtifactError: no such folder, or its manifest is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        manifest = _manifest(self.folder)
        if manifest is None:
            raise ArtifactError(f"{self.folder} has no {MANIFEST}; make it with pvp-fast embed")
        try:
            self.backbone: dict[str, Any] = dict(manifest["backbone"])
            self.complete = bool(manifest["complete"])
            self.has_regions = bool(manifest["regions"])
            self.pictures = PictureSettings.from_dict(manifest.get("pictures", {}))
            self._rows = [int(rows) for rows in manifest["rows"]]
            self.failures = tuple(
                Failure(str(k), str(r), int(i)) for k, r, i in manifest["state"]["failures"]
            )
            self._fingerprint = str(self.backbone["fingerprint"])
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{self.folder / MANIFEST} is damaged: {error!r}") from error

    def __len__(self) -> int:
        return sum(self._rows)

    def check_backbone(self, fingerprint: str) -> None:
        """Raise ArtifactError unless this CLIP made the embeddings."""
        if fingerprint != self._fingerprint:
            raise ArtifactError(
                f"{self.folder} holds embeddings of {self.backbone.get('name')} "
                f"({self._fingerprint[:12]}), the artifact is of {fingerprint[:12]}; embed the "
                "images with the artifact's CLIP"
            )

    def batches(self, batch_size: int = 1024) -> Iterator[EmbeddedImages]:
        """All rows in the order of the images; one batch is in memory at a time.

        Raises:
            ArtifactError: a shard is missing, damaged or of another size.
        """
        for number, rows in enumerate(self._rows):
            path = self.folder / _shard(number)
            try:
                with safetensors.safe_open(path, "pt") as shard:
                    keys = json.loads(shard.metadata()["keys"])
                    indices = shard.get_tensor("indices").tolist()
                    z = shard.get_slice("z")
                    near = shard.get_slice("regions") if self.has_regions else None
                    if not len(keys) == len(indices) == z.get_shape()[0] == rows:
                        raise ArtifactError(f"{path} does not hold the {rows} rows it should")
                    for at in range(0, rows, batch_size):
                        part = slice(at, min(at + batch_size, rows))
                        yield EmbeddedImages(
                            tuple(keys[part]),
                            tuple(indices[part]),
                            z[part].float(),
                            None if near is None else near[part].float(),
                        )
            except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
                raise ArtifactError(f"{path} is missing or damaged: {error}") from error


def _shard(number: int) -> str:
    return f"embeddings-{number:05d}.safetensors"


def _manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict) or found.get("version") != _VERSION:
        raise ArtifactError(f"{path} is no manifest of version {_VERSION}")
    return found


def embed_images(
    backbone: Backbone,
    source: Any,
    out: str | os.PathLike[str],
    *,
    regions: bool = False,
    batch_size: int = 64,
    shard_rows: int = 16_384,
    progress: Callable[[int], None] | None = None,
    pictures: PictureSettings | None = None,
    **options: Any,
) -> EmbeddingStore:
    """Encode the images of a source into a folder; goes on where an earlier run stopped.

    Args:
        backbone: the CLIP.
        source: as for :class:`~pvp_fast.loaders.ImageStream`, in an order that is the same again
            when resumed.
        out: the folder.
        regions: also keep region features (L times the space) for artifacts with a local branch.
        batch_size: images encoded at once.
        shard_rows: images of a shard; what a killed run repeats at most.
        progress: called with the number of images listed so far.
        pictures: how images are opened; kept in the manifest.
        options: for the stream (backend, workers, rank, world, …).

    Raises:
        ArtifactError: the folder holds embeddings of another CLIP or kind.
        InputError: the source is not the one the folder was begun with.
        OSError: the disk is full, say; what was written before stays whole.
    """
    if shard_rows < 1:
        raise InputError(f"shard_rows is {shard_rows}; give at least 1")
    if regions:
        require_regions(backbone.model, "regions=True")
    folder = Path(out)
    identity = {
        "version": _VERSION,
        "backbone": {
            "name": backbone.name,
            "pretrained": backbone.pretrained,
            "fingerprint": backbone.fingerprint,
        },
        "regions": regions,
        "pictures": (pictures or PictureSettings()).to_dict(),
    }
    manifest = _manifest(folder)
    rows: list[int] = []
    with ImageStream(
        source, backbone.preprocess, batch_size, backbone.device, pictures=pictures, **options
    ) as stream:
        if manifest is not None:
            _check_same(folder, manifest, identity)
            rows = list(manifest["rows"])
            stream.load_state_dict(manifest["state"])
            if manifest["complete"]:
                return EmbeddingStore(folder)
        shard = _Shard()
        for batch in stream:
            with torch.no_grad():
                z = backbone.encode_image(batch.pixels)
                near = backbone.encode_regions(batch.pixels) if regions else None
            shard.add(batch.keys, batch.indices, z, near)
            if progress:
                progress(stream.listed)
            if len(shard) >= shard_rows:
                rows = shard.write(folder, rows)
                _record(folder, identity, rows, stream)
                shard = _Shard()
        if len(shard):
            rows = shard.write(folder, rows)
        _record(folder, identity, rows, stream)
        if progress:
            progress(stream.listed)
    return EmbeddingStore(folder)


def _check_same(folder: Path, manifest: dict[str, Any], identity: dict[str, Any]) -> None:
    kept = manifest.get("backbone")
    mine = identity["backbone"]["fingerprint"]
    if not isinstance(kept, dict) or kept.get("fingerprint") != mine:
        raise ArtifactError(f"{folder} holds embeddings of another CLIP; give another folder")
    if manifest.get("regions") != identity["regions"]:
        raise ArtifactError(
            f"{folder} was begun with regions={manifest.get('regions')}; give another folder"
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
        self._parts: dict[str, list[Tensor]] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def add(
        self, keys: tuple[str, ...], indices: tuple[int, ...], z: Tensor, regions: Tensor | None
    ) -> None:
        self.keys += keys
        self._indices += indices
        for name, values in (("z", z), ("regions", regions)):
            if values is not None:
                self._parts.setdefault(name, []).append(values.cpu().to(torch.float16))

    def write(self, folder: Path, rows: list[int]) -> list[int]:
        """Write the next shard, whole or not at all; the rows of all shards with this one."""
        tensors = {name: torch.cat(parts) for name, parts in self._parts.items()}
        tensors["indices"] = torch.tensor(self._indices, dtype=torch.int64)
        with atomic_write(folder / _shard(len(rows))) as stream:
            stream.write(save(tensors, {"keys": json.dumps(self.keys)}))
        return [*rows, len(self)]


def _record(folder: Path, identity: dict[str, Any], rows: list[int], stream: ImageStream) -> None:
    state = stream.state_dict()
    with atomic_write(folder / MANIFEST, "w") as out:
        json.dump({**identity, "rows": rows, "complete": state["done"], "state": state}, out)
