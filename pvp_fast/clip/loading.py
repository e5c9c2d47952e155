"""Find and read a CLIP model: the pocket one, an open_clip name, a local checkpoint."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pvp_fast.clip.hub import cache_only_when_offline
from pvp_fast.clip.preprocess import Preprocess
from pvp_fast.clip.settings import (
    OPEN_CLIP_FILE,
    WeightSettings,
    settings_for_file,
    settings_of_tag,
)
from pvp_fast.clip.undrawn import never_loaded, undrawn
from pvp_fast.clip.unreadable import what_ails
from pvp_fast.errors import BackboneError

_SAFE = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_READS = "safetensors, or a torch file holding only tensors (.pt, .pth, .bin, .ckpt)"


@dataclass(frozen=True)
class ClipParts:
    """A model on the CPU, what goes in front of it, and where that was read."""

    model: nn.Module
    tokenizer: Callable[..., torch.Tensor]
    preprocess: Preprocess
    settings: WeightSettings | None = None


def load_pocket(pretrained: str | None) -> ClipParts:
    """The model that ships with the package."""
    if pretrained is not None:
        raise BackboneError(
            f"pretrained={pretrained!r}: the pocket model has one set of weights; leave it out"
        )
    from pvp_fast.clip.pocket import load_model, tokenizer

    with _rng_kept():
        model, config = load_model()
    mean, std = (tuple(float(v) for v in config[key]) for key in ("mean", "std"))
    size = int(config["image_size"])
    interpolation = config.get("interpolation", "bicubic")
    return ClipParts(model, tokenizer(), Preprocess(size, mean, std, interpolation))  # type: ignore[arg-type]


def load_open_clip(
    name: str, pretrained: str | None, like: str | Mapping[str, Any] | None = None
) -> ClipParts:
    """An open_clip model by architecture name, or by a local-dir:/hf-hub: address.

    Args:
        like: for weights from a file: see :func:`pvp_fast.clip.settings.settings_for_file`.

    Raises:
        BackboneError: unknown name or tag, missing or unsafe file, weights that do not fit, a
            tokenizer or weights that are not here and cannot be fetched.
    """
    hosted = name.startswith(("local-dir:", "hf-hub:"))
    settings: WeightSettings | None = None
    if not hosted:
        settings = _settings(name.replace("/", "-"), name, pretrained, like)
    elif isinstance(like, str):
        raise BackboneError(f"like={like!r}: {name!r} brings its own settings; leave it out")
    elif name.startswith("local-dir:") and not Path(name.split(":", 1)[1]).is_dir():
        raise BackboneError(f"name={name!r}: there is no such folder")
    with _offline_unless_needed(name, pretrained) as online:
        tokenizer = _tokenizer(name, online)  # small, and the first to be missing
        model = _model(name, pretrained, hosted, settings, online)
    picture: Any = model.visual.preprocess_cfg
    found = settings or WeightSettings.from_dict(picture, f"the configuration of {name}")
    size = picture["size"]
    said = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    return ClipParts(model, tokenizer, found.preprocess(_size(name, model.visual, said)), found)


def load_folder(
    name: str, pretrained: str | None, like: str | Mapping[str, Any] | None = None
) -> ClipParts:
    """A transformers checkpoint, "transformers:FOLDER".

    Raises:
        BackboneError: see :func:`pvp_fast.clip.transformers_folder.load_transformers`.
    """
    from pvp_fast.clip.transformers_folder import load_transformers

    if pretrained is not None:
        raise BackboneError(f"pretrained={pretrained!r}: {name!r} brings its weights; leave it out")
    if isinstance(like, str):
        raise BackboneError(f"like={like!r}: {name!r} brings its own settings; leave it out")
    with _rng_kept(), _quiet():
        return ClipParts(*load_transformers(Path(name.split(":", 1)[1]), like))


def _model(
    name: str, pretrained: str | None, hosted: bool, settings: WeightSettings | None, online: bool
) -> Any:
    import open_clip

    random = pretrained == "random"
    weights = None if hosted or random else pretrained
    try:
        with _rng_kept(), _quiet(), contextlib.nullcontext() if random else undrawn():
            model = open_clip.create_model(
                name,
                pretrained=weights,
                pretrained_text=False,  # a whole checkpoint follows, or random was asked for
                require_pretrained=not random,
                force_quick_gelu=bool(settings and settings.quick_gelu),
                weights_only=True,
            )
        lacking = [] if random else never_loaded(model)
        if lacking:
            raise ValueError(
                f"{len(lacking)} weights are not in it or NaN, {', '.join(lacking[:3])} among them"
            )
        return model
    except Exception as error:  # a damaged file can fail anywhere in its reader, in any way
        detail = str(error) or type(error).__name__
        if not online and (hosted or not Path(pretrained or "").is_file()):
            raise BackboneError(
                f"name={name!r}, pretrained={pretrained!r}: a file of this model is not in the "
                "local cache and its hub cannot be reached; fetch it on a machine with a network "
                "and copy the cache (HF_HOME), or give the path of a checkpoint"
            ) from error
        if pretrained is not None and Path(pretrained).is_file():
            detail = what_ails(Path(pretrained), detail)
        raise BackboneError(
            f"name={name!r}, pretrained={pretrained!r} cannot be loaded: {detail}. Weights are "
            f"read from {_READS}, whose names and shapes are this architecture's"
        ) from error


def _tokenizer(name: str, online: bool) -> Callable[..., torch.Tensor]:
    import open_clip

    try:
        with _quiet():
            tokenizer: Callable[..., torch.Tensor] = open_clip.get_tokenizer(name)
    except Exception as error:  # as for weights: readers of readers
        where = name if name.startswith("hf-hub:") else _hub_tokenizer(name) or name
        how = (
            f"({error})"
            if online
            else "is not in the local cache and its hub cannot be reached; fetch it on a machine "
            f"with a network (open_clip.get_tokenizer({name!r})) and copy the cache (HF_HOME)"
        )
        raise BackboneError(f"name={name!r}: its tokenizer {where!r} {how}") from error
    return tokenizer


def _hub_tokenizer(name: str) -> str | None:
    """What an architecture needs of a hub: the name of its tokenizer or text tower, if any."""
    import open_clip

    if name.startswith("local-dir:"):  # brings its tokenizer, not the shape of a text tower
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            file = Path(name.split(":", 1)[1]) / OPEN_CLIP_FILE
            text = json.loads(file.read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]
            return text.get("hf_model_name") or None
        return None
    text = (open_clip.get_model_config(name.replace("/", "-")) or {}).get("text_cfg", {})
    return text.get("hf_tokenizer_name") or text.get("hf_model_name") or None


@contextlib.contextmanager
def _offline_unless_needed(name: str, pretrained: str | None) -> Iterator[bool]:
    """The network is tried only where something may have to come from it."""
    file = pretrained == "random" or Path(pretrained or "").is_file()
    local = name.startswith("local-dir:") or (file and not name.startswith("hf-hub:"))
    if local and _hub_tokenizer(name) is None:
        yield True
        return
    with cache_only_when_offline() as online:
        yield online


def _settings(
    plain: str, name: str, pretrained: str | None, like: str | Mapping[str, Any] | None
) -> WeightSettings:
    """Refuse what cannot work before any weight is read; returns what the weights expect."""
    import open_clip

    names = [*open_clip.list_models(), "pocket"]
    if plain not in names:
        near = difflib.get_close_matches(plain, names, n=5, cutoff=0.4)
        hint = f"near it: {', '.join(near)}" if near else "open_clip.list_models() names them all"
        raise BackboneError(f"name={name!r} is no open_clip architecture; {hint}")
    tags = open_clip.list_pretrained_tags_by_model(plain)
    if pretrained is None:
        raise BackboneError(
            f"{name!r} needs weights: give pretrained= a tag ({', '.join(tags) or 'none known'}), "
            "the path of a checkpoint, or 'random' for untrained weights"
        )
    if pretrained == "random":
        return settings_for_file(plain, None, like)
    # open_clip only warns when a tag was trained with the other activation, and the features
    # are then quietly wrong; follow the tag.
    if open_clip.get_pretrained_cfg(plain, pretrained):
        if isinstance(like, str) and like != pretrained:
            raise BackboneError(
                f"like={like!r}: the tag {pretrained!r} has its own settings; leave it out"
            )
        return settings_of_tag(plain, pretrained)
    path = Path(pretrained)
    if not path.is_file():
        if path.suffix or os.sep in pretrained:
            raise BackboneError(f"pretrained={pretrained!r}: no such file; give {_READS}")
        near = difflib.get_close_matches(pretrained, tags, n=5, cutoff=0.4) or tags
        raise BackboneError(
            f"pretrained={pretrained!r} is neither a tag of {name!r} ({', '.join(near)}) nor a file"
        )
    if path.suffix not in _SAFE:
        raise BackboneError(f"pretrained={pretrained!r} is no file of a kind read here: {_READS}")
    _refuse_torchscript(path)
    settings = settings_for_file(plain, path, like)
    if settings.quick_gelu is None and like is None:
        _offer_twin(plain, tags)
    return settings


def _refuse_torchscript(path: Path) -> None:
    """A program in place of tensors: OpenAI's own files, and what torch.jit.save writes."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        inside = archive.namelist()
    if any("/code/" in f"/{entry}" for entry in inside):
        raise BackboneError(
            f"pretrained={str(path)!r} is a TorchScript archive, which holds a program. For "
            "OpenAI's weights give the tag pretrained='openai'; for others take the tensors out "
            "where you trust the file, and load what this writes: "
            "s = torch.jit.load(FILE, map_location='cpu').state_dict(); "
            "skip = ('attn_mask', 'input_resolution', 'context_length', 'vocab_size'); "
            "torch.save({k: v for k, v in s.items() if k.split('.')[-1] not in skip}, 'w.pt')"
        )


def _offer_twin(plain: str, tags: list[str]) -> None:
    """Say that nothing in the file tells which activation it was trained with, where both exist."""
    import open_clip

    twin = f"{plain}-quickgelu"
    quick = [tag for tag in tags if settings_of_tag(plain, tag).quick_gelu]
    if twin in open_clip.list_models() or quick:
        other = f"like={quick[0]!r} (--like {quick[0]})" if quick else f"the name {twin!r}"
        warnings.warn(
            f"weights of {plain!r} from a file: loaded with GELU. If they were trained with "
            f"QuickGELU, as OpenAI's were, every feature is a little wrong: then give {other}; a "
            "tag given as like= settles it either way",
            stacklevel=4,
        )


def _size(name: str, visual: Any, said: tuple[int, int]) -> tuple[int, int]:
    """(height, width) that an image tower reads; a timm trunk keeps what it was built for.

    open_clip tells timm no size: ViTamin-XL-384 is configured for 256 pixels, which its positions
    do not fit.
    """
    trunk = getattr(visual, "trunk", None)
    built = getattr(getattr(trunk, "patch_embed", None), "img_size", None)
    if built is None or getattr(trunk, "dynamic_img_size", False) or tuple(built) == said:
        return said
    size = (int(built[0]), int(built[1]))
    warnings.warn(
        f"{name}: the configuration says {said} pixels (height, width), the image tower's "
        f"positions are those of {size}, which it is given",
        stacklevel=4,
    )
    visual.image_size = size
    return size


@contextlib.contextmanager
def _rng_kept() -> Iterator[None]:
    """Building a model draws random weights: from a fixed seed, without moving the global one."""
    state = torch.random.default_generator.get_state()
    torch.random.default_generator.manual_seed(0)
    try:
        yield
    finally:
        torch.random.default_generator.set_state(state)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """open_clip reports progress and its QuickGELU mismatch on the root logger and as warnings."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="QuickGELU mismatch.*")
            yield
    finally:
        root.setLevel(level)
