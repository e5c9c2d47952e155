"""Find and read a CLIP model: the pocket one, an open_clip name, a local checkpoint."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pvp_fast.clip.preprocess import Preprocess
from pvp_fast.errors import BackboneError

_SAFE = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_READS = "safetensors, or a torch file holding only tensors (.pt, .pth, .bin, .ckpt)"


@dataclass(frozen=True)
class ClipParts:
    """A model on the CPU and what goes in front of it."""

    model: nn.Module
    tokenizer: Callable[..., torch.Tensor]
    preprocess: Preprocess


def load_pocket(pretrained: str | None) -> ClipParts:
    """The model that ships with the package."""
    if pretrained is not None:
        raise BackboneError(
            f"pretrained={pretrained!r}: the pocket model has one set of weights; leave it out"
        )
    from pvp_fast.clip.pocket import load_model

    with _rng_kept():
        model, config = load_model()
        tokenizer = config["tokenizer"] if callable(config.get("tokenizer")) else _simple(model)
    mean, std = (tuple(float(v) for v in config[key]) for key in ("mean", "std"))
    size = _side(config["image_size"])
    interpolation = config.get("interpolation", "bicubic")
    return ClipParts(model, tokenizer, Preprocess(size, mean, std, interpolation))  # type: ignore[arg-type]


def load_open_clip(name: str, pretrained: str | None) -> ClipParts:
    """An open_clip model by architecture name, or by a local-dir:/hf-hub: address.

    Raises:
        BackboneError: unknown name or tag, missing or unsafe file, weights that do not fit.
    """
    import open_clip

    hosted = name.startswith(("local-dir:", "hf-hub:"))
    quick_gelu = False
    if not hosted:
        quick_gelu = _check(name, pretrained)
    elif name.startswith("local-dir:") and not Path(name.split(":", 1)[1]).is_dir():
        raise BackboneError(f"name={name!r}: there is no such folder")
    weights = None if hosted or pretrained == "random" else pretrained
    try:
        with _rng_kept(), _quiet():
            model = open_clip.create_model(
                name,
                pretrained=weights,
                pretrained_text=False,  # a whole checkpoint follows, or random was asked for
                require_pretrained=pretrained != "random",
                force_quick_gelu=quick_gelu,
                weights_only=True,
            )
            tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # a damaged file can fail anywhere in its reader, in any way
        detail = str(error) or type(error).__name__
        raise BackboneError(
            f"name={name!r}, pretrained={pretrained!r} cannot be loaded: {detail}. Weights are "
            f"read from {_READS}, whose names and shapes are this architecture's"
        ) from error
    return ClipParts(model, tokenizer, _preprocess_of(model))


def _check(name: str, pretrained: str | None) -> bool:
    """Refuse what cannot work before any weight is read; returns the tag's QuickGELU setting."""
    import open_clip

    names = [*open_clip.list_models(), "pocket"]
    plain = name.replace("/", "-")
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
        return False
    # open_clip only warns when a tag was trained with the other activation, and the features
    # are then quietly wrong; follow the tag.
    settings = open_clip.get_pretrained_cfg(plain, pretrained)
    if settings:
        return bool(settings.get("quick_gelu", False))
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
    return False


def _preprocess_of(model: Any) -> Preprocess:
    config = model.visual.preprocess_cfg
    mode = config.get("resize_mode") or "shortest"
    interpolation = config.get("interpolation") or "bicubic"
    if mode not in ("shortest", "squash"):
        raise BackboneError(f"this model's resize mode {mode!r} is not supported")
    return Preprocess(
        _side(config["size"]),
        tuple(config["mean"]),
        tuple(config["std"]),
        "bilinear" if interpolation == "bilinear" else "bicubic",
        mode,
    )


def _side(size: Any) -> int:
    if isinstance(size, int):
        return size
    height, width = int(size[0]), int(size[1])
    if height != width:
        raise BackboneError(f"image size {height} x {width}: only square inputs are supported")
    return height


def _simple(model: Any) -> Callable[..., torch.Tensor]:
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer: Callable[..., torch.Tensor] = SimpleTokenizer(context_length=model.context_length)
    return tokenizer


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
            warnings.filterwarnings("ignore", message=".*QuickGELU.*")
            yield
    finally:
        root.setLevel(level)
