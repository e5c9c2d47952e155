"""What training leaves behind: class vectors, adapters and vocabulary in one small folder.

``artifact.safetensors`` holds every tensor, ``artifact.json`` the rest: vocabulary, backbone
fingerprint, settings, metrics and the tensors' SHA-256. The JSON is written last, so a folder
with a JSON that verifies is whole.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pvp_fast.errors import ArtifactError, InputError
from pvp_fast.files import atomic_write, json_text
from pvp_fast.losses.pooling import spatial_softmax_pool
from pvp_fast.modules.adapters import DualAdapter
from pvp_fast.vocabulary.categories import Vocabulary

FORMAT = 1
TENSORS = "artifact.safetensors"
MANIFEST = "artifact.json"
BANKS = ("original", "text_only", "text", "visual")
ADAPTER = "adapter."
# The local branch, optional: all four or none.
LOCAL = ("local", "local_ctx", "local_weight", "local_temperature")
LOCAL_TILE = 128

# What a manifest of the wrong shape or depth, absurd values in it, or a bad file can raise.
_UNREADABLE = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    OSError,
    SafetensorError,
)


@dataclass(frozen=True)
class Artifact:
    """A trained vocabulary.

    Attributes:
        vocabulary: the C categories.
        backbone: ``name``, ``pretrained``, ``fingerprint`` and ``embed_dim`` (D) of the CLIP that
            made the vectors; no other can use them.
        tensors: float32. ``original`` e (C, D), ``text_only`` (C, D; prompts trained without
            transfer), ``text`` g (C, D), ``visual`` v (C, P, D), ``pixels`` (C, P, 3, H, W),
            ``ctx`` (the prompts' context), ``adapter.*``, ``platt`` (C, 2) slope and intercept
            from mixed cosine to probability, ``thresholds`` (C,) probabilities, and optionally
            the local branch: ``local`` g' (C, D), ``local_ctx`` (its context), ``local_weight``
            (C,) share of the local score, ``local_temperature`` (1,) of the spatial softmax.
        config: the training settings. metrics: what training measured.
    """

    vocabulary: Vocabulary
    backbone: dict[str, Any]
    tensors: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count, width = len(self.vocabulary), int(self.backbone.get("embed_dim", 0))
        for name in BANKS:
            if name not in self.tensors:
                raise ArtifactError(f"the artifact lacks the tensor {name!r}")
            shape = tuple(self.tensors[name].shape)
            if shape[0] != count or shape[-1] != width:
                raise ArtifactError(
                    f"tensor {name!r} has shape {shape}; the vocabulary has {count} categories "
                    f"and the backbone width {width}"
                )
        for name, shape in (("thresholds", (count,)), ("platt", (count, 2))):
            if name not in self.tensors or tuple(self.tensors[name].shape) != shape:
                raise ArtifactError(f"the artifact needs a tensor {name!r} of shape {shape}")
        self._check_local(count, width)

    def _check_local(self, count: int, width: int) -> None:
        present = [name for name in LOCAL if name in self.tensors]
        if not present:
            return
        shapes = {"local": (count, width), "local_weight": (count,), "local_temperature": (1,)}
        for name in LOCAL:
            if name not in present:
                raise ArtifactError(f"the artifact has {present[0]!r} but lacks {name!r}")
            found = tuple(self.tensors[name].shape)
            if found != shapes.get(name, found):
                raise ArtifactError(f"tensor {name!r} has shape {found}, not {shapes[name]}")
        weight, heat = self.tensors["local_weight"], self.tensors["local_temperature"]
        if not bool(((weight >= 0) & (weight <= 1)).all()):
            raise ArtifactError("tensor 'local_weight' has values outside 0 to 1")
        if not bool(((heat > 0) & heat.isfinite()).all()):
            raise ArtifactError("tensor 'local_temperature' is not a number above 0")

    @property
    def has_local(self) -> bool:
        """Whether there is a local branch: then images need region features too."""
        return "local" in self.tensors

    def local_scores(self, regions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Local cosines (B, C) of region or token features (B, L, D); see :func:`local_scores`.

        Raises:
            ArtifactError: the artifact has no local branch.
        """
        if not self.has_local:
            raise ArtifactError("the artifact has no local branch; train with local=True")
        vectors = self.tensors["local"].to(regions.device)
        return local_scores(regions, vectors, float(self.tensors["local_temperature"]), mask)

    def adapter(self) -> DualAdapter:
        """The dual adapter over the artifact's banks."""
        state = {
            name.removeprefix(ADAPTER): value
            for name, value in self.tensors.items()
            if name.startswith(ADAPTER)
        }
        banks = (self.tensors["original"], self.tensors["text"], self.tensors["visual"])
        try:
            return DualAdapter.from_state(*banks, state).eval()
        except InputError as error:
            raise ArtifactError(f"the adapter cannot be rebuilt: {error}") from error

    @cached_property
    def version(self) -> str:
        """Twelve hexadecimal digits that name this content."""
        digest = sha256(self._payload())
        digest.update(json.dumps(self.vocabulary.to_dict(), sort_keys=True).encode())
        digest.update(str(self.backbone.get("fingerprint")).encode())
        return digest.hexdigest()[:12]

    def _payload(self) -> bytes:
        tensors = {k: v.detach().cpu().contiguous() for k, v in sorted(self.tensors.items())}
        return save(tensors)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the folder ``path``; a reader sees the old artifact or the new one."""
        folder = Path(path)
        payload = self._payload()
        # Named by content: the old manifest keeps its tensors until the new one takes its place.
        name = f"{sha256(payload).hexdigest()[:16]}.{TENSORS}"
        previous = {p for p in folder.glob(f"*.{TENSORS}") if p.name != name}
        manifest = {
            "format": FORMAT,
            "tensors": name,
            "sha256": sha256(payload).hexdigest(),
            "vocabulary": self.vocabulary.to_dict(),
            "backbone": self.backbone,
            "config": self.config,
            "metrics": self.metrics,
        }
        with atomic_write(folder / name) as stream:
            stream.write(payload)
        with atomic_write(folder / MANIFEST, "w") as stream:
            stream.write(json_text(manifest, indent=2))
        for old in previous:
            old.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Artifact:
        """Read and verify an artifact folder.

        Raises:
            ArtifactError: a file is missing, damaged, or of a later format.
        """
        folder = Path(path)
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            found = manifest["format"]
            if found != FORMAT:
                raise ArtifactError(f"{folder} has format {found}; this version reads {FORMAT}")
            name = manifest["tensors"]
            if name != Path(name).name:
                raise ArtifactError(f"{folder / MANIFEST} names tensors outside its folder")
            payload = (folder / name).read_bytes()
            if sha256(payload).hexdigest() != manifest["sha256"]:
                raise ArtifactError(f"{folder / name} is damaged: its SHA-256 does not match")
            backbone = dict(manifest["backbone"])
            if not isinstance(backbone["name"], str) or not isinstance(
                backbone["pretrained"], str | None
            ):
                raise ArtifactError(f"{folder / MANIFEST} does not say which backbone it is for")
            return cls(
                vocabulary=Vocabulary.from_dict(manifest["vocabulary"]),
                backbone=backbone,
                tensors=load(payload),
                config=manifest["config"],
                metrics=manifest["metrics"],
            )
        except FileNotFoundError as error:
            raise ArtifactError(
                f"{folder} is no artifact: {Path(error.filename).name} is missing"
            ) from error
        except _UNREADABLE as error:
            raise ArtifactError(f"{folder} cannot be read: {error!r}") from error

    def check_backbone(self, fingerprint: str) -> None:
        """Raise ArtifactError unless ``fingerprint`` is that of the artifact's backbone."""
        if fingerprint != self.backbone.get("fingerprint"):
            raise ArtifactError(
                f"the artifact was trained with {self.backbone.get('name')} "
                f"(pretrained={self.backbone.get('pretrained')!r}, fingerprint "
                f"{str(self.backbone.get('fingerprint'))[:12]}), not with this backbone "
                f"({fingerprint[:12]}); load that model"
            )


def probability(cosines: Tensor, platt: Tensor) -> Tensor:
    """Calibrated probabilities of mixed cosines (B, C): sigmoid(slope · s + intercept)."""
    return torch.sigmoid(cosines * platt[:, 0] + platt[:, 1])


def local_scores(
    regions: Tensor, vectors: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """Local cosines (B, C) of features (B, L, D) with g' (C, D): METHOD section 4, unscaled.

    Computed in tiles of one fixed number of categories. That bounds the memory by B·L·128, and
    keeps every bit of a category's score when others are added behind it: matrix products of
    another shape may round in another order.
    """
    count = len(vectors)
    if not count:
        return regions.new_zeros(len(regions), 0)
    missing = -count % LOCAL_TILE
    padded = torch.cat([vectors, vectors.new_zeros(missing, vectors.shape[1])])
    parts = [
        spatial_softmax_pool(regions, tile, mask, temperature=temperature)
        for tile in padded.split(LOCAL_TILE)
    ]
    return torch.cat(parts, 1)[:, :count]


def merge(overall: Tensor, local: Tensor, weight: Tensor) -> Tensor:
    """Final cosines (B, C): (1 − μ_c) of the whole-image score plus μ_c of the local one.

    Our reading of METHOD section 5's "or a weight": a score standardised over the categories
    would change with every category that is added.
    """
    return (1 - weight) * overall + weight * local
