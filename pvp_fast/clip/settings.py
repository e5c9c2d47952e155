"""Settings that belong to a model's weights and not to its architecture.

A checkpoint file does not say which picture it was trained on, and a wrong mean, resize or
activation changes every feature without an error. What is known is taken, in this order, from the
caller (``like``), from a configuration beside the weights, and from what all published weights of
the architecture share.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pvp_fast.clip.preprocess import CLIP_MEAN, CLIP_STD, RESIZE_MODES, Preprocess
from pvp_fast.errors import BackboneError

OPEN_CLIP_FILE = "open_clip_config.json"
TRANSFORMERS_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"  # transformers 5 puts the image processor's inside
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, as transformers writes them


@dataclass(frozen=True)
class WeightSettings:
    """What weights expect of a picture, and of the towers' activation.

    Attributes:
        mean, std: per channel, in [0, 1] units. interpolation: "bicubic" or "bilinear".
        resize_mode: "shortest", "longest" or "squash". fill: grey of the bars that "longest" adds.
        quick_gelu: whether the weights were trained with QuickGELU; None where nothing says it.
        source: where this is from, for people.
    """

    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    quick_gelu: bool | None = None
    source: str = "open_clip's default"
    fill: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for an artifact; ``like=`` takes them back."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str) -> WeightSettings:
        """From :meth:`to_dict`'s or open_clip's fields; absent ones and None are CLIP's.

        Raises:
            BackboneError: values that no picture can be made with.
        """
        given = {k: v for k, v in data.items() if v is not None}
        try:
            mean, std = (
                _channels(given.get(name, usual))
                for name, usual in (("mean", CLIP_MEAN), ("std", CLIP_STD))
            )
            found = cls(
                mean,
                std,
                str(given.get("interpolation", "bicubic")),
                str(given.get("resize_mode", "shortest")),
                given.get("quick_gelu"),
                source,
                int(given.get("fill", given.get("fill_color", 0))),
            )
        except (TypeError, ValueError) as error:
            raise BackboneError(
                f"{source}: mean and std must be three numbers each, and a fill one"
            ) from error
        if not all(0 <= m <= 1 for m in found.mean) or not all(0 < d <= 2 for d in found.std):
            raise BackboneError(
                f"{source}: mean {found.mean} and std {found.std} are not those of pixels from 0 "
                "to 1; divide them by 255 if they are of pixels up to 255"
            )
        if found.interpolation not in ("bicubic", "bilinear"):
            raise BackboneError(
                f"{source}: interpolation {found.interpolation!r} is not supported; "
                "bicubic and bilinear are"
            )
        if found.resize_mode not in RESIZE_MODES:
            raise BackboneError(
                f"{source}: resize mode {found.resize_mode!r} is not supported; "
                f"{', '.join(RESIZE_MODES)} are"
            )
        return found

    @property
    def picture(self) -> tuple[Any, ...]:
        """What has to agree for two weights to read the same picture."""
        return self.mean, self.std, self.interpolation, self.resize_mode, self.fill

    def preprocess(self, size: int | tuple[int, int]) -> Preprocess:
        """The picture they expect, for an input of this size."""
        return Preprocess(size, *self.picture)


def settings_of_tag(name: str, tag: str) -> WeightSettings:
    """Of published weights: architecture and tag."""
    import open_clip

    found: Mapping[str, Any] = open_clip.get_pretrained_cfg(name, tag)
    quick = {"quick_gelu": bool(found.get("quick_gelu", False) or name.endswith("-quickgelu"))}
    return WeightSettings.from_dict({**found, **quick}, f"{name}, {tag}")


def settings_for_file(
    name: str, weights: Path | None, like: str | Mapping[str, Any] | None
) -> WeightSettings:
    """Of weights from ``weights``, or untrained ones where that is None.

    Args:
        like: a tag of the architecture whose picture it is, or :meth:`WeightSettings.to_dict`.

    Raises:
        BackboneError: an unknown tag, an unreadable configuration, or published weights that
            differ while nothing says which of them these are like.
    """
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    if isinstance(like, Mapping):
        return WeightSettings.from_dict(like, str(like.get("source") or "like="))
    if like is not None:
        if like not in tags:
            raise BackboneError(
                f"like={like!r} is no tag of {name!r}; there are {', '.join(tags) or 'none'}"
            )
        return dataclasses.replace(settings_of_tag(name, like), source=f"as {name}, {like}")
    if weights is not None:
        beside = settings_beside(weights.parent, name)
        if beside is not None:
            return beside
    return _shared(name, tags, ask=weights is not None)


def _shared(name: str, tags: Sequence[str], *, ask: bool) -> WeightSettings:
    """What the published weights of an architecture have in common."""
    if not tags:
        return WeightSettings(source=f"open_clip's default: no weights of {name} are published")
    known = {tag: settings_of_tag(name, tag) for tag in tags}
    groups: dict[tuple[Any, ...], list[str]] = {}
    for tag, settings in known.items():
        groups.setdefault(settings.picture, []).append(tag)
    if len(groups) > 1 and ask:
        choices = "; ".join(
            f"{', '.join(group)} ({_describe(known[group[0]])})" for group in groups.values()
        )
        raise BackboneError(
            f"weights of {name!r} read different pictures, and the file does not say which: give "
            f"like= (--like) one of the tags {choices}"
        )
    most = max(groups.values(), key=len)
    gelus = {known[tag].quick_gelu for tag in tags}
    return dataclasses.replace(
        known[most[0]],
        quick_gelu=gelus.pop() if len(gelus) == 1 else None,
        source=f"shared by {len(most)} of {len(tags)} published weights of {name}",
    )


def _describe(settings: WeightSettings) -> str:
    mean = "/".join(f"{v:.3g}" for v in settings.mean)
    return f"mean {mean}, {settings.resize_mode}, {settings.interpolation}"


def settings_beside(folder: Path, name: str | None = None) -> WeightSettings | None:
    """The settings in a configuration file in the weights' folder, if there is one.

    Args:
        name: the architecture; a configuration of open_clip's that describes another is passed
            over with a warning, as where weights of several lie in one folder.

    Raises:
        BackboneError: it cannot be read.
    """
    for file, read in (
        (folder / OPEN_CLIP_FILE, partial(_open_clip, name)),
        (folder / TRANSFORMERS_FILE, _transformers),
        (folder / PROCESSOR_FILE, _processor),
    ):
        if not file.is_file():
            continue
        try:
            data = read(json.loads(file.read_bytes()))  # bytes: a byte order mark is no error
            if data is not None:
                return WeightSettings.from_dict(data, str(file))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if isinstance(error, BackboneError):
                raise
            raise BackboneError(
                f"{file} beside the weights is no readable configuration ({error!r}); mend or "
                "remove it, or give like= (--like) a tag"
            ) from error
    return None


_SHAPE = {
    "vision_cfg": ("layers", "width", "patch_size", "timm_model_name"),
    "text_cfg": ("layers", "width", "hf_model_name"),
}


def _open_clip(name: str | None, data: Mapping[str, Any]) -> dict[str, Any] | None:
    model = data.get("model_cfg")
    if name is not None and model is not None and _is_another(name, model):
        warnings.warn(
            f"{OPEN_CLIP_FILE} beside the weights describes another architecture than {name}: it "
            "is passed over; give like= (--like) a tag if it belongs to them",
            stacklevel=8,
        )
        return None
    quick = None if model is None else bool(model.get("quick_gelu", False))
    return {**(data.get("preprocess_cfg") or {}), "quick_gelu": quick}


def _is_another(name: str, model: Mapping[str, Any]) -> bool:
    """Whether a configuration contradicts the architecture in the shape of a tower."""
    import open_clip

    own = open_clip.get_model_config(name) or {}
    pairs = [(own.get("embed_dim"), model.get("embed_dim"))]
    for tower, keys in _SHAPE.items():
        mine, theirs = (config.get(tower) or {} for config in (own, model))
        pairs += [(mine.get(key), theirs.get(key)) for key in keys]
    return any(a is not None and b is not None and a != b for a, b in pairs)


def _processor(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """None for the file as transformers 4 wrote it, without the image processor."""
    image = data.get("image_processor", data.get("feature_extractor"))
    return None if image is None else _transformers(image)


def _transformers(data: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' image processors.

    CLIP's crops the shorter side's square; a size of height and width squashes, a crop behind it
    or not (SigLIP, Chinese-CLIP); SigLIP 2's variable sizes are read at one, a square. Pixels
    that are scaled by another number than 1/255 are the same with another mean and spread.
    """
    resample = data.get("resample", 3)
    if resample not in _RESAMPLE:
        raise ValueError(f"resample {resample} is not supported; 2 (bilinear) and 3 (bicubic) are")
    size, crop = data.get("size"), data.get("crop_size")
    if isinstance(size, Mapping) and size.get("longest_edge") is not None:
        raise ValueError(f"size {size} is of the longer side: not supported")
    squash = "max_num_patches" in data or (isinstance(size, Mapping) and "height" in size)
    sides = {*_sides(size), *(_sides(crop) if data.get("do_center_crop", True) else ())}
    if len(sides) > 1:
        raise ValueError(f"size {size} and crop_size {crop} are not one square: not supported")
    scale = (
        255 * float(data.get("rescale_factor", 1 / 255)) if data.get("do_rescale", True) else 255
    )
    scale = 1 if abs(scale - 1) < 1e-6 else scale
    normal = data.get("do_normalize", True)
    return {
        "mean": [m / scale for m in _channels(data["image_mean"])] if normal else (0.0, 0.0, 0.0),
        "std": [d / scale for d in _channels(data["image_std"])] if normal else (1 / scale,) * 3,
        "interpolation": _RESAMPLE[resample],
        "resize_mode": "squash" if squash else "shortest",
    }


def _sides(size: Any) -> set[int]:
    """Of a transformers size: a number, or a mapping with some that are null."""
    values = size.values() if isinstance(size, Mapping) else (size,)
    return {int(value) for value in values if value is not None}


def _channels(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in values)
    return red, green, blue
