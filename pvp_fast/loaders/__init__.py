"""Images as batches for the image tower: files, tar shards or memory, and no image lost.

:class:`ImageStream` is the way in; ``sources`` and ``shards`` say what it reads, ``decode`` how.
"""

from pvp_fast.loaders.augment import Augment
from pvp_fast.loaders.samples import Sample, Source
from pvp_fast.loaders.shards import TarSource
from pvp_fast.loaders.sources import (
    FileSource,
    ItemSource,
    ListSource,
    PartSource,
    open_source,
)
from pvp_fast.loaders.stream import ImageStream
from pvp_fast.loaders.walk import Search
from pvp_fast.loaders.windows import Batch, Failure
from pvp_fast.pictures import OPEN_CLIP, PictureSettings

__all__ = [
    "OPEN_CLIP",
    "Augment",
    "Batch",
    "Failure",
    "FileSource",
    "ImageStream",
    "ItemSource",
    "ListSource",
    "PartSource",
    "PictureSettings",
    "Sample",
    "Search",
    "Source",
    "TarSource",
    "open_source",
]
