"""What training leaves behind: a head, its vocabulary and what training needs again, in a folder.

``*.artifact.safetensors`` holds the tensors that tagging reads, ``*.training.safetensors`` the
learned images and contexts, and ``artifact.json`` the rest: vocabulary, backbone fingerprint,
settings, metrics, and name and SHA-256 of both files. The files are named by their content and the
JSON is written last, so it always names a whole pair. Folders of format 1, with all tensors in one
file, are read too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pvp_fast.errors import ArtifactError, InputError
from pvp_fast.files import atomic_write
from pvp_fast.modules.adapters import DualAdapter
from pvp_fast.modules.scoring import Head, LocalBranch
from pvp_fast.vocabulary.categories import Vocabulary

FORMAT = 2
TENSORS = "artifact.safetensors"
TRAINING = "training.safetensors"
MANIFEST = "artifact.json"

_BANKS = ("original", "text", "visual")
_ADAPTER = "adapter."
_LOCAL = {"vectors": "local", "weight": "local_weight", "temperature": "local_temperature"}
_TILE = "local_tile"

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

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class TrainingState:
    """What training learned on the way and only training, a report or the ladder reads; float32.

    Attributes:
        text_only: (C, D), prompts trained without transfer.
        pixels: (C, P, 3, H, W), the pseudo visual prompts.
        ctx: the text prompts' context, (M, W), or (C, M, W) of each category's own.
        local_ctx: that of the local branch's prompts, if there is one.
    """

    text_only: Tensor
    pixels: Tensor
    ctx: Tensor
    local_ctx: Tensor | None = None


@dataclass(frozen=True)
class StoredTraining:
    """A training state that lies in a file of an artifact folder, unread."""

    path: Path
    sha256: str

    def read(self) -> TrainingState:
        """Read and verify it.

        Raises:
            ArtifactError: the file is missing or damaged.
        """
        return _guarded(self.path.parent, lambda: _training(load(_read(self.path, self.sha256))))


@dataclass(frozen=True, eq=False)
class Artifact:
    """A trained vocabulary.

    Attributes:
        vocabulary: the C categories.
        backbone: ``name``, ``pretrained``, ``fingerprint`` and ``embed_dim`` (D) of the CLIP that
            made the vectors; no other can use them.
        head: what turns features into tags; on the CPU, in float32.
        state: what :attr:`training` gives: at hand, in a file, or none.
        config: the training settings. metrics: what training measured.

    Raises:
        ArtifactError: the head does not fit the vocabulary or the backbone.
    """

    vocabulary: Vocabulary
    backbone: dict[str, Any]
    head: Head
    state: TrainingState | StoredTraining | None = None
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fits = (len(self.vocabulary), int(self.backbone.get("embed_dim", 0)))
        if (len(self.head), self.head.width) != fits:
            raise ArtifactError(
                f"the head has {len(self.head)} categories of width {self.head.width}; the "
                f"vocabulary has {fits[0]} and the backbone width {fits[1]}"
            )

    @property
    def has_local(self) -> bool:
        """Whether there is a local branch: then images need region features too."""
        return self.head.local is not None

    @cached_property
    def training(self) -> TrainingState:
        """What growing the vocabulary, the ladder and reports need; read at the first use.

        Raises:
            ArtifactError: the artifact has none, or its file is missing or damaged.
        """
        if self.state is None:
            raise ArtifactError(
                "the artifact has no training state (learned images and contexts); use the one "
                "that training wrote"
            )
        state = self.state.read() if isinstance(self.state, StoredTraining) else self.state
        if len(state.text_only) != len(self.vocabulary):
            raise ArtifactError(
                f"the training state has {len(state.text_only)} categories, the vocabulary "
                f"{len(self.vocabulary)}"
            )
        if self.has_local and state.local_ctx is None:
            raise ArtifactError("the training state lacks the context of the local branch")
        return state

    @cached_property
    def version(self) -> str:
        """Twelve hexadecimal digits that name what tags.

        They cover all that decides a tag: every bit of the head, the vocabulary with its synonyms
        and the backbone's fingerprint. Config, metrics and the training state may differ.
        """
        digest = sha256()
        for name, tensor in sorted(_head_tensors(self.head).items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            # Not a view as bytes: of one category, strides may be any.
            digest.update(np.ascontiguousarray(tensor.numpy()).data)
        digest.update(json.dumps(self.vocabulary.to_dict(), sort_keys=True).encode())
        digest.update(str(self.backbone.get("fingerprint")).encode())
        return digest.hexdigest()[:12]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the folder ``path``; a reader sees the old artifact or the new one.

        Raises:
            ArtifactError: the training state is still to be read, and its file is gone.
        """
        folder = Path(path)
        head = _File.of(_head_tensors(self.head), TENSORS)
        state = None
        if self.state is not None:
            state = _File.of(_plain(vars(self.training)), TRAINING)
        manifest = {
            "format": FORMAT,
            "tensors": head.entry(),
            "training": None if state is None else state.entry(),
            "vocabulary": self.vocabulary.to_dict(),
            "backbone": self.backbone,
            "config": self.config,
            "metrics": self.metrics,
        }
        files = [head] if state is None else [head, state]
        for file in files:
            with atomic_write(folder / file.name) as stream:
                stream.write(file.payload)
        # Until the new manifest takes its place, the old one keeps its files.
        with atomic_write(folder / MANIFEST, "w") as stream:
            # Indented by Python, ten thousand categories take as long as saving their vectors.
            stream.write(json.dumps(manifest, indent=2 if len(self.vocabulary) < 1000 else None))
        for old in [*folder.glob(f"*.{TENSORS}"), *folder.glob(f"*.{TRAINING}")]:
            if old.name not in {file.name for file in files}:
                old.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Artifact:
        """Read and verify an artifact folder: what tagging needs, :attr:`training` when asked for.

        Raises:
            ArtifactError: a file is missing, damaged, or of a later format.
        """
        folder = Path(path)
        return _guarded(folder, lambda: cls._load(folder))

    @classmethod
    def _load(cls, folder: Path) -> Artifact:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        given = manifest["format"]
        if given not in (1, FORMAT):
            raise ArtifactError(f"{folder} has format {given}; this version reads up to {FORMAT}")
        stored: StoredTraining | TrainingState | None = None
        if given == 1:
            tensors = load(_read(_inside(folder, manifest["tensors"]), manifest["sha256"]))
            if "pixels" in tensors:
                stored = _training(tensors)
        else:
            part = manifest["tensors"]
            tensors = load(_read(_inside(folder, part["file"]), part["sha256"]))
            if manifest["training"] is not None:
                part = manifest["training"]
                stored = StoredTraining(_inside(folder, part["file"]), str(part["sha256"]))
        backbone = dict(manifest["backbone"])
        if not isinstance(backbone["name"], str) or not isinstance(
            backbone["pretrained"], str | None
        ):
            raise ArtifactError(f"{folder / MANIFEST} does not say which backbone it is for")
        return cls(
            vocabulary=Vocabulary.from_dict(manifest["vocabulary"]),
            backbone=backbone,
            head=_head(tensors),
            state=stored,
            config=manifest["config"],
            metrics=manifest["metrics"],
        )

    def take(self, rows: Sequence[int]) -> Artifact:
        """The artifact of some categories, in that order; each keeps every bit.

        Raises:
            InputError: no row, one that is not there, or one twice.
        """
        if not rows or len(set(rows)) < len(rows):
            raise InputError(f"rows: {list(rows)[:20]}; give at least one category, each once")
        if not all(0 <= row < len(self.vocabulary) for row in rows):
            raise InputError(f"rows: categories go from 0 to {len(self.vocabulary) - 1}")
        state = None
        if self.state is not None:
            old, index = self.training, torch.tensor(rows)

            def own(ctx: Tensor | None) -> Tensor | None:
                return ctx[index] if ctx is not None and ctx.ndim == 3 else ctx

            ctx = old.ctx if old.ctx.ndim < 3 else old.ctx[index]
            state = TrainingState(old.text_only[index], old.pixels[index], ctx, own(old.local_ctx))
        words = Vocabulary([self.vocabulary[row] for row in rows])
        return replace(self, vocabulary=words, head=self.head.take(rows), state=state)

    def check_backbone(self, fingerprint: str) -> None:
        """Raise ArtifactError unless ``fingerprint`` is that of the artifact's backbone."""
        if fingerprint != self.backbone.get("fingerprint"):
            raise ArtifactError(
                f"the artifact was trained with {self.backbone.get('name')} "
                f"(pretrained={self.backbone.get('pretrained')!r}, fingerprint "
                f"{str(self.backbone.get('fingerprint'))[:12]}), not with this backbone "
                f"({fingerprint[:12]}); load that model"
            )


def _guarded(folder: Path, read: Callable[[], _T]) -> _T:
    try:
        return read()
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{folder} is no artifact: {Path(error.filename).name} is missing"
        ) from error
    except _UNREADABLE as error:
        raise ArtifactError(f"{folder} cannot be read: {error!r}") from error


def _inside(folder: Path, name: str) -> Path:
    if name != Path(name).name:
        raise ArtifactError(f"{folder / MANIFEST} names tensors outside its folder")
    return folder / name


def _read(path: Path, digest: str) -> bytes:
    payload = path.read_bytes()
    if sha256(payload).hexdigest() != digest:
        raise ArtifactError(f"{path} is damaged: its SHA-256 does not match")
    return payload


class _File(NamedTuple):
    """A file to be written, named by its content."""

    name: str
    sha256: str
    payload: bytes

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], ending: str) -> _File:
        payload = save(dict(sorted(tensors.items())))
        digest = sha256(payload).hexdigest()
        return cls(f"{digest[:16]}.{ending}", digest, payload)

    def entry(self) -> dict[str, str]:
        """What the manifest says of it."""
        return {"file": self.name, "sha256": self.sha256}


def _plain(tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    return {k: v.detach().cpu().contiguous() for k, v in tensors.items() if v is not None}


def _get(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise ArtifactError(f"the artifact lacks the tensor {name!r}")
    return tensors[name]


def _head_tensors(head: Head) -> dict[str, Tensor]:
    state = head.adapter.state_dict()
    if _one_bank(head.adapter):
        state = {name: value for name, value in state.items() if name not in _BANKS[1:]}
    named = {name if name in _BANKS else _ADAPTER + name: value for name, value in state.items()}
    named |= {"platt": head.platt, "thresholds": head.thresholds}
    if head.local is not None:
        named |= {name: getattr(head.local, part) for part, name in _LOCAL.items()}
        if head.local.tile:
            named[_TILE] = torch.tensor([head.local.tile], dtype=torch.float64)
    return _plain(named)


def _one_bank(adapter: DualAdapter) -> bool:
    """Whether nothing was learned, and the three banks are one, of which a file holds one copy."""
    one, visual = adapter.original, adapter.visual
    return (
        visual.shape[1] == 1 and torch.equal(adapter.text, one) and torch.equal(visual[:, 0], one)
    )


def _head(tensors: Mapping[str, Tensor]) -> Head:
    if _BANKS[1] in tensors or _BANKS[2] in tensors:
        banks = [_get(tensors, name) for name in _BANKS]
    else:
        one = _get(tensors, _BANKS[0])
        banks = [one, one, one[:, None]]
    state = {k.removeprefix(_ADAPTER): v for k, v in tensors.items() if k.startswith(_ADAPTER)}
    local = None
    if any(name in tensors for name in _LOCAL.values()):
        tile = float(tensors[_TILE]) if _TILE in tensors else 0.0  # patches, as it used to be
        parts = {part: _get(tensors, name) for part, name in _LOCAL.items()}
        local = LocalBranch(**parts, tile=tile)
    adapter = DualAdapter.from_state(banks[0], banks[1], banks[2], state).eval()
    return Head(adapter, _get(tensors, "platt"), _get(tensors, "thresholds"), local)


def _training(tensors: Mapping[str, Tensor]) -> TrainingState:
    return TrainingState(
        text_only=_get(tensors, "text_only"),
        pixels=_get(tensors, "pixels"),
        ctx=_get(tensors, "ctx"),
        local_ctx=tensors.get("local_ctx"),
    )
