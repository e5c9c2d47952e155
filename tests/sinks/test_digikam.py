"""What digiKam itself shows of an image after every merge: the user's keywords and ours."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from support import digikam
from support.image_files import encoded, scene

from pvp_fast.cli import run
from pvp_fast.sinks import open_sink
from pvp_fast.sinks.xmp_packet import merge
from pvp_fast.tagging.tagger import Tag, TagResult

needs_tools = pytest.mark.skipif(
    not digikam.is_installed() or shutil.which("exiftool") is None,
    reason="needs digikam, xvfb-run, dbus-run-session and exiftool",
)
FLAT = ["-XMP-dc:Subject=me", "-XMP-dc:Subject=Dog"]
LIGHTROOM = [*FLAT, "-XMP-lr:HierarchicalSubject=people|me", "-XMP-lr:HierarchicalSubject=Dog"]
DIGIKAM = ["-XMP-digiKam:TagsList=people/me", "-XMP-digiKam:TagsList=Dog"]
WINDOWS = [*FLAT, "-XMP-microsoft:LastKeywordXMP=people/me", "-XMP-microsoft:LastKeywordXMP=Dog"]
IPTC = ["-IPTC:Keywords=me", "-IPTC:Keywords=Dog"]
FLATS, PATHS = {"me", "Dog"}, {"people/me", "Dog"}
# Where the user's keywords lie, how, and what of them is shown.
CASES = {
    "none": ("", [], set()),
    "rating": ("sidecar", ["-XMP-xmp:Rating=4"], set()),
    "flat": ("sidecar", FLAT, FLATS),
    "lightroom": ("sidecar", LIGHTROOM, PATHS),
    "digikam": ("sidecar", [*DIGIKAM, *LIGHTROOM], PATHS),
    "windows": ("sidecar", WINDOWS, PATHS),
    "flat inside": ("image", FLAT, FLATS),
    "lightroom inside": ("image", LIGHTROOM, PATHS),
    "digikam inside": ("image", [*DIGIKAM, *FLAT], PATHS),
    "iptc inside": ("image", IPTC, FLATS),
    "both inside": ("image", [*IPTC, *FLAT], FLATS),
    "windows inside": ("image", WINDOWS, PATHS),
}
KINDS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "tif": "TIFF"}


def exiftool(*arguments: str | Path) -> None:
    subprocess.run(["exiftool", "-q", "-overwrite_original", *map(str, arguments)], check=True)


def photo(path: Path, where: str, keywords: list[str]) -> Path:
    number = len(list(path.parent.iterdir()))
    path.write_bytes(encoded(scene(48, 32, number), KINDS[path.suffix[1:]]))
    if where == "image":
        exiftool(*keywords, path)
    elif where:
        exiftool(*keywords, f"{path}.xmp")
    return path


def tag(path: Path, *names: str) -> None:
    with open_sink("xmp", Path("-"), "v1") as sink:
        tags = tuple(Tag(name, 0.5, number) for number, name in enumerate(names))
        assert sink.write(TagResult(str(path), tags)) is None


@needs_tools
def test_digikam_shows_both_after_every_merge(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    expected: dict[str, set[str]] = {}
    for name, (where, keywords, users) in CASES.items():
        plain = photo(folder / f"{name}, as it was.jpg", where, keywords)
        expected[plain.name] = users
        tagged = photo(folder / f"{name}, tagged.jpg", where, keywords)
        tag(tagged, "dog", "teddy bear")
        tag(tagged, "teddy bear", "日本")
        ours = {"teddy bear", "日本"} | ({"dog"} if not users else set())
        expected[tagged.name] = users | ours
        back = photo(folder / f"{name}, taken back.jpg", where, keywords)
        before = {p: p.read_bytes() for p in folder.glob(f"{name}, taken back.*")}
        tag(back, "dog", "cat")
        assert run(["untag", str(back)]) == 0
        assert {p: p.read_bytes() for p in folder.glob(f"{name}, taken back.*")} == before
        expected[back.name] = users
    for ending in ("png", "webp", "tif"):
        tagged = photo(folder / f"inside.{ending}", "image", FLAT)
        tag(tagged, "dog", "cat")
        expected[tagged.name] = {"me", "Dog", "cat"}
    assert digikam.shown_tags(folder, tmp_path / "digikam") == expected


def test_a_new_sidecar_repeats_what_it_would_hide(tmp_path: Path) -> None:
    """Without any tool: the packet that Pillow puts into an image."""
    packet = merge(None, ["me", "Dog"], "x").packet
    for ending, options in {"jpg": {}, "webp": {}, "png": {}, "tif": {}}.items():
        path = tmp_path / f"photo.{ending}"
        if ending == "tif":
            options = {"tiffinfo": {700: packet}}
        elif ending == "png":
            from PIL import PngImagePlugin

            options = {"pnginfo": PngImagePlugin.PngInfo()}
            options["pnginfo"].add_itxt("XML:com.adobe.xmp", packet.decode())
        else:
            options = {"xmp": packet}
        path.write_bytes(encoded(scene(48, 32), KINDS[ending], **options))
        tag(path, "dog", "cat")
        sidecar = Path(f"{path}.xmp")
        assert b"<rdf:li>me</rdf:li>" in sidecar.read_bytes()
        assert b"<rdf:li>dog</rdf:li>" not in sidecar.read_bytes()
        once = sidecar.read_bytes()
        tag(path, "dog", "cat")
        assert sidecar.read_bytes() == once
        assert run(["untag", str(path)]) == 0
        assert not sidecar.exists()
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(encoded(scene(48, 32), xmp=b"<x:xmpmeta"))
    tag(broken, "cat")
    assert b"<rdf:li>cat</rdf:li>" in Path(f"{broken}.xmp").read_bytes()
