"""Keywords that lie inside an image, read without a tool.

A sidecar with keywords hides them: digiKam then takes all XMP from the sidecar, Immich takes every
list from it that it has. So they are repeated in a sidecar that has no other keywords.
"""

from __future__ import annotations

from collections.abc import Iterable

from PIL import Image, IptcImagePlugin
from PIL.ImageFile import ImageFile

from pvp_fast.errors import ImageError
from pvp_fast.pictures.reader import DAMAGE, open_header
from pvp_fast.sinks.xmp_packet import LISTS, SUBJECT, XmpError, read_keywords

_IPTC_KEYWORDS, _IPTC_CHARSET = (2, 25), (1, 90)
_UTF8 = b"\x1b%G"


def keywords_inside(image: str) -> dict[str, tuple[str, ...]]:
    """The keywords in an image's own XMP and IPTC, by the name of the list; empty where there are
    none that can be read.

    ``dc:subject`` has those of IPTC where it is not filled itself, else the last level of others.
    """
    try:
        with open(image, "rb") as stream, open_header(stream) as opened:
            if opened.format == "PNG" and "xmp" not in opened.info:
                opened.load()  # texts may stand behind the pixels
            found = _from_xmp(opened.info.get("xmp"))
            if SUBJECT.name not in found:
                flat = _from_iptc(opened) or _last_levels(found)
                if flat:
                    found[SUBJECT.name] = flat
            return found
    except (ImageError, *DAMAGE):
        return {}


def _from_xmp(packet: object) -> dict[str, tuple[str, ...]]:
    try:
        return read_keywords(packet) if isinstance(packet, bytes) else {}
    except XmpError:
        return {}


def _from_iptc(image: Image.Image) -> tuple[str, ...]:
    records = IptcImagePlugin.getiptcinfo(image) or {} if isinstance(image, ImageFile) else {}
    charset = "utf-8" if records.get(_IPTC_CHARSET) == _UTF8 else "cp1252"
    texts = records.get(_IPTC_KEYWORDS, [])
    every: Iterable[bytes] = texts if isinstance(texts, list) else [texts]
    return tuple(text.decode(charset, "replace") for text in every)


def _last_levels(found: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    for each in LISTS:
        if each.name in found:
            return tuple(text.rpartition(each.level)[2] for text in found[each.name])
    return ()
