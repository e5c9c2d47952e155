"""``auto``: a small strong CLIP for photos, from the local cache, else downloaded.

Chosen by what their authors publish: zero-shot accuracy on ImageNet (open_clip's table of
pretrained models), size, and a licence that allows any use.
"""

from __future__ import annotations

from dataclasses import dataclass

from pvp_fast.clip.hub import cache_only_when_offline
from pvp_fast.errors import BackboneError

_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class Choice:
    """Published weights: their names in open_clip, where they lie, and what is said of them.

    Attributes:
        megabytes: size of the download. accuracy: published top-1 on ImageNet, in percent.
    """

    name: str
    pretrained: str
    repository: str
    megabytes: int
    accuracy: float
    licence: str = "MIT"

    def cached(self) -> bool:
        """Whether the weights are in huggingface_hub's cache."""
        from huggingface_hub import try_to_load_from_cache

        return any(
            isinstance(try_to_load_from_cache(self.repository, file), str) for file in _FILES
        )


CHOICES = (
    Choice(
        "ViT-B-32-256",
        "datacomp_s34b_b86k",
        "laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K",
        605,
        72.8,
    ),
    Choice(
        "ViT-B-16",
        "datacomp_xl_s13b_b90k",
        "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K",
        599,
        73.5,
    ),
    Choice(
        "ViT-B-32",
        "datacomp_xl_s13b_b90k",
        "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K",
        605,
        69.2,
    ),
    Choice(
        "ViT-B-32",
        "laion2b_s34b_b79k",
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        605,
        66.6,
    ),
)


@dataclass(frozen=True)
class Resolved:
    """What "auto" came to: names for ``Backbone.load``, and a sentence about it."""

    name: str
    pretrained: str
    note: str


def resolve() -> Resolved:
    """The first choice whose weights are here, else the first one, to be downloaded.

    Raises:
        BackboneError: none is here and the hub cannot be reached.
    """
    try:
        here = next((choice for choice in CHOICES if choice.cached()), None)
    except ImportError as error:
        raise BackboneError(
            "model='auto' needs huggingface_hub, which open_clip_torch brings; or name a model"
        ) from error
    if here is not None:
        what = f"model: {here.name} ({here.pretrained}), from the local cache"
        return Resolved(here.name, here.pretrained, what)
    with cache_only_when_offline() as online:
        if online:
            first = CHOICES[0]
            what = (
                f"model: {first.name} ({first.pretrained}, {first.licence} licence): "
                f"{first.megabytes} MB are downloaded once"
            )
            return Resolved(first.name, first.pretrained, what)
    raise BackboneError(
        "model='auto': no CLIP for photos is in the local cache and the hub cannot be reached; "
        f"copy the cache of a machine that has {CHOICES[0].repository} (HF_HOME), name a "
        "checkpoint (--model ViT-B-32 --pretrained FILE), or take --model pocket, a "
        "demonstration on drawings"
    )
