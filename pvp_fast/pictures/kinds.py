"""File endings: which are pictures that can be read here, and which only look like pictures or may
hold some."""

from __future__ import annotations

from PIL import features

from pvp_fast.pictures import heif, raw

# Pillow's names of the formats that are tried, and their endings.
ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".jps"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"),
    "QOI": (".qoi",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "PCX": (".pcx",),
    "PSD": (".psd",),
    "TGA": (".tga", ".icb", ".vda", ".vst", ".targa"),
}
_FEATURES = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}
# fmt: off
RAW = frozenset(
    {
        ".3fr", ".ari", ".arw", ".bay", ".cr2", ".cr3", ".crw", ".dcr", ".dcs",
        ".dng", ".drf", ".erf", ".fff", ".gpr", ".iiq", ".k25", ".kdc", ".mdc",
        ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".ptx", ".pxn", ".raf",
        ".raw", ".rw2", ".rwl", ".rwz", ".sr2", ".srf", ".srw", ".x3f",
    }
)
_OTHERS = frozenset(
    {
        ".ai", ".bpg", ".cur", ".dds", ".djvu", ".eps", ".exr", ".flif", ".hdp", ".hdr",
        ".icns", ".ico", ".jxl", ".jxr", ".kra", ".psb", ".svg", ".svgz", ".wdp", ".wmf",
        ".emf", ".xbm", ".xcf", ".xpm", ".zip", ".rar", ".7z",
    }
)
# fmt: on


def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that it can read here; TGA, which has no mark, comes last."""
    return tuple(f for f in ENDINGS if f not in _FEATURES or features.check(_FEATURES[f]))


SUFFIXES = frozenset(ending for name in formats() for ending in ENDINGS[name]) | (
    heif.SUFFIXES if heif.can_read() else frozenset()
)
SUFFIXES |= RAW if raw.can_read() else frozenset()
LOOKS_LIKE = SUFFIXES | heif.SUFFIXES | RAW | _OTHERS | frozenset().union(*ENDINGS.values())


def remedy(ending: str) -> str:
    """What would make files of this ending readable; empty where nothing would."""
    if ending in SUFFIXES:
        return ""
    if ending in heif.SUFFIXES:
        return heif.HINT
    return raw.HINT if ending in RAW else ""
