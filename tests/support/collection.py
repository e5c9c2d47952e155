"""A mixed collection, as archives hold them, made from a seed: every kind of file that a folder of
photos can hold, about 8 % of it in trouble, and what a run over it must say of each.

``Collection(folder, count, seed)`` makes it, ``change`` adds, mends and replaces files in it.
"""

from __future__ import annotations

import copy
import functools
import io
import os
import random
import shutil
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, features
from support.image_files import bomb, encoded, exif_block, jpeg_bomb, photo_turned, scene
from support.raw_files import dng

from pvp_fast.pictures import heif, raw

TROUBLE, PASSED = 0.08, 0.06
_BASES = 48  # different scenes; each file of them has its own bytes


@dataclass
class Expected:
    """What a run over a collection must find, by the name in it.

    Attributes:
        good, bad: images, and shards that are cut. passed: files that are seen and left out.
    """

    good: set[str] = field(default_factory=set)
    bad: set[str] = field(default_factory=set)
    passed: int = 0


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _with_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG with one more chunk behind its header."""
    return png[:33] + _chunk(kind, body) + png[33:]


def _frames(picture: Image.Image, kind: str, **options: object) -> bytes:
    others = [picture.rotate(90 * n) for n in (1, 2)]
    return encoded(picture, kind, save_all=True, append_images=others, **options)


def _deep(picture: Image.Image, scale: int) -> Image.Image:
    gray = np.asarray(picture.convert("L")).astype(np.uint32) * scale // 255
    return Image.fromarray(gray.astype(np.uint16))


def _cut_out(picture: Image.Image) -> Image.Image:
    found = picture.convert("RGBA")
    mask = Image.linear_gradient("L").resize(picture.size)
    found.putalpha(mask)
    return found


def _profiled(picture: Image.Image) -> bytes:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return encoded(picture, icc_profile=profile)


Maker = Callable[[Image.Image, random.Random], bytes]
# Ending, weight, maker.
GOOD: list[tuple[str, int, Maker]] = [
    (".jpg", 60, lambda p, r: encoded(p, quality=r.choice([75, 88, 95]))),
    (".JPG", 10, lambda p, r: photo_turned(p, r.randint(1, 8), r.choice("<>"))),
    (".jpeg", 3, lambda p, r: encoded(p, progressive=True)),
    (".jpg", 2, lambda p, r: encoded(p.convert("L"))),
    (".jpg", 2, lambda p, r: encoded(p.convert("CMYK"))),
    (".jpg", 2, lambda p, r: encoded(p) + bytes(r.randint(1, 900))),
    (".jpe", 1, lambda p, r: encoded(p, subsampling=0)),
    (".jfif", 1, lambda p, r: encoded(p)),
    (".jpg", 1, lambda p, r: _profiled(p)),
    (".mpo", 1, lambda p, r: _frames(p, "MPO")),
    (".png", 4, lambda p, r: encoded(p, "PNG")),
    (".PNG", 2, lambda p, r: encoded(_cut_out(p), "PNG")),
    (".png", 1, lambda p, r: encoded(_cut_out(p).convert("LA"), "PNG")),
    (".png", 1, lambda p, r: encoded(p.quantize(32), "PNG", transparency=3)),
    (".png", 1, lambda p, r: encoded(_deep(p, 65535), "PNG")),
    (".png", 1, lambda p, r: encoded(p, "PNG", exif=exif_block(r.randint(2, 8))[6:])),
    (".png", 1, lambda p, r: _with_chunk(encoded(p, "PNG"), b"tEXt", b"note\0" + b"x" * 70_000)),
    (".png", 1, lambda p, r: _with_chunk(encoded(p, "PNG"), b"iCCP", b"broken\0\0nothing")),
    (".webp", 2, lambda p, r: encoded(p, "WEBP")),
    (".webp", 1, lambda p, r: _frames(p, "WEBP")),
    (".gif", 1, lambda p, r: _frames(p.quantize(64), "GIF")),
    (".bmp", 1, lambda p, r: encoded(p, "BMP")),
    (".tif", 1, lambda p, r: encoded(p, "TIFF", compression="tiff_lzw")),
    (".tiff", 1, lambda p, r: encoded(_deep(p, r.choice([1023, 4095, 65535])), "TIFF")),
    (".tif", 1, lambda p, r: _frames(p, "TIFF")),
    (".tif", 1, lambda p, r: encoded(p, "TIFF", tiffinfo={274: r.randint(2, 8)})),
    (".pgm", 1, lambda p, r: encoded(p.convert("L"), "PPM")),
    (".ppm", 1, lambda p, r: encoded(p, "PPM")),
    (".tga", 1, lambda p, r: encoded(p, "TGA")),
    (".qoi", 1, lambda p, r: _small("QOI", r.randrange(6))),
    (".sgi", 1, lambda p, r: encoded(p, "SGI")),
    (".pcx", 1, lambda p, r: encoded(p, "PCX")),
]
if features.check("jpg_2000"):
    GOOD += [
        (".jp2", 1, lambda p, r: encoded(p, "JPEG2000")),
        (".j2k", 1, lambda p, r: encoded(_deep(p, 65535), "JPEG2000", no_jp2=True)),
    ]
if features.check("avif"):
    GOOD += [
        (".avif", 1, lambda p, r: encoded(p, "AVIF", speed=10)),
        (".avif", 1, lambda p, r: encoded(p, "AVIF", speed=10, exif=exif_block(6)[6:])),
    ]


@functools.cache
def _small(kind: str, number: int) -> bytes:
    """Formats that are slow to write are written a few times only."""
    picture = scene(64 + 4 * number, 48, number)
    if kind == "QOI":
        return encoded(picture, kind)
    import pillow_heif

    stream = io.BytesIO()
    pillow_heif.from_pillow(picture).save(stream, quality=60)
    return stream.getvalue()


def _heic(picture: Image.Image, chance: random.Random) -> bytes:
    """With a box that means nothing behind it, which makes each file another."""
    return _small("HEIC", chance.randrange(6)) + b"\0\0\0\x10free" + chance.randbytes(8)


if heif.can_read():
    GOOD.append((".heic", 3, _heic))
if raw.can_read():
    GOOD += [
        (".dng", 1, lambda p, r: dng(p, preview=p, orientation=r.choice([1, 3, 6, 8]))),
        (".DNG", 1, lambda p, r: dng(p, preview=None)),
    ]


def _cut(kind: str, **options: object) -> Maker:
    def maker(picture: Image.Image, chance: random.Random) -> bytes:
        data = encoded(picture, kind, **options)
        return data[: int(len(data) * chance.uniform(0.3, 0.7))]

    return maker


BAD: list[tuple[str, int, Maker]] = [
    (".jpg", 6, _cut("JPEG")),
    (".jpg", 2, lambda p, r: _cut("JPEG")(p, r) + b"\xff\xd9"),
    (".jpg", 3, lambda p, r: b"<!doctype html><title>404</title>" * 9),
    (".jpg", 4, lambda p, r: b""),
    (".png", 2, lambda p, r: bomb() + bytes([r.randrange(256)])),
    (".jpg", 2, lambda p, r: jpeg_bomb()),
    (".png", 3, _cut("PNG")),
    (".webp", 2, _cut("WEBP")),
    (".tif", 1, _cut("TIFF")),
    (".gif", 1, lambda p, r: b"GIF89a\x10\0\x10\0\0\0\0;" + r.randbytes(4)),
    (".bmp", 1, _cut("BMP")),
    (".nef", 1, lambda p, r: b"II*\0" + r.randbytes(200)),
    (".heic", 1, lambda p, r: b"\0\0\0\x18ftypheic" + r.randbytes(120)),
    (".jp2", 1, _cut("JPEG2000") if features.check("jpg_2000") else lambda p, r: b"no"),
    (".psd", 1, lambda p, r: b"8BPS\0\1" + r.randbytes(60)),
]
BAD = [
    row
    for row in BAD
    if (row[0] != ".heic" or heif.can_read()) and (row[0] != ".nef" or raw.can_read())
]
_ODD = [
    "with spaces {n}",
    "-dash {n}",
    "näme {n}",
    "na\u0308me {n}",
    "写真 {n}",
    "emoji 🦒 {n}",
    "quo'te\" {n}",
    "[brackets] {n}",
    "{{braces}} {n}",
    "st*r? {n}",
    "new\nline {n}",
    "tab\t{n}",
    "IMG.2024.01.{n}",
    "hash#{n}",
    "100% {n}",
    "back\\slash {n}",
    "comma, semi; {n}",
    "=cmd {n}",
    "bytes\udcff\udcfe {n}",
    "x" * 200 + "{n}",
]
_FOLDERS = [
    "2019",
    "2019/Été",
    "2020/[holiday] (1)",
    "2021/a b/c",
    "deep/er/and/deep/er/still",
    "scans",
    "写真",
    "bytes\udcfe",
]
_BESIDE: list[tuple[str, bytes]] = [
    ("{n}.svg", b"<svg/>"),
    ("{n}.mp4", b"\0\0\0\x18ftypmp42"),
    ("{n}.txt", b"a caption"),
    (".hidden-{n}.jpg", b"\xff\xd8\xff"),
    ("._IMG_{n}.JPG", b"\0\5\x16\7"),
    ("@eaDir/IMG_{n}.jpg", b"\xff\xd8\xff"),
    ("#recycle/{n}.jpg", b"\xff\xd8\xff"),
    ("excluded/{n}.jpg", b"\xff\xd8\xff"),
    ("{n}.ico", b"\0\0\1\0"),
    ("{n}.jpg.part", b"\xff\xd8\xff"),
    ("Thumbs.db{n}", b"\xd0\xcf"),
    ("{n}", b"no ending"),
]


class Collection:
    """A folder with about ``count`` files, images in shards counted as files.

    Args:
        root: the folder, made here. count: files to make. seed: of all of it.
        outside: a folder of files that links in the collection lead to.

    Attributes:
        expected: what a run must find; names are relative to ``root``, members of a shard stand
            behind its name.
    """

    def __init__(self, root: Path, count: int, seed: int = 0) -> None:
        self.root, self.outside = root, root.with_name(root.name + "-elsewhere")
        self.chance = random.Random(seed)
        self.expected = Expected()
        self._number = 0
        self._clock = 1_600_000_000
        self._shards: dict[str, dict[str, bytes]] = {}
        self._files: list[str] = []  # images that are files or links, in the order made
        self._links: set[str] = set()
        self._bases = [
            scene(self.chance.randint(48, 200), self.chance.randint(48, 160), seed * 997 + n)
            for n in range(_BASES)
        ]
        root.mkdir(parents=True)
        self.outside.mkdir()
        (root / ".pvpignore").write_text("excluded/\n")
        self.expected.passed += 1
        for name in _FOLDERS:
            (root / name).mkdir(parents=True, exist_ok=True)
        self._special()
        self._fill(count)

    def copy(self, root: Path) -> Collection:
        """The same in another place, with times and links; what is outside stays where it is."""
        subprocess.run(["cp", "-a", self.root, root], check=True)
        new = copy.deepcopy(self)
        new.root = root
        return new

    # --- making -------------------------------------------------------------------------------

    def _fill(self, count: int) -> None:
        while self.seen < count:
            left = count - self.seen
            what = self.chance.random()
            if what < 0.004 and left > 12:
                self._shard(self.chance.randint(6, min(40, left - 4)))
            elif what < 0.004 + PASSED:
                self._beside()
            elif what < 0.004 + PASSED + TROUBLE:
                self._bad()
            else:
                self._good()

    @property
    def seen(self) -> int:
        """Files so far: images, good and bad, and what is left out."""
        found = self.expected
        return len(found.good) + len(found.bad) + found.passed

    def _picture(self) -> Image.Image:
        base = self.chance.choice(self._bases)
        left, top = self.chance.randint(0, 12), self.chance.randint(0, 12)
        return base.crop((left, top, *base.size))

    def _name(self, ending: str) -> str:
        self._number += 1
        pattern = "IMG_{n:05d}"
        if self.chance.random() < 0.08:
            pattern = self.chance.choice(_ODD)
        return f"{self.chance.choice(_FOLDERS)}/{pattern.format(n=self._number)}{ending}"

    def _put(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self._stamp(path)

    def _stamp(self, path: Path) -> None:
        """Every writing has its own time: two of one size in one clock tick look alike."""
        self._clock += 1
        os.utime(path, ns=(self._clock * 10**9, self._clock * 10**9 + self._clock % 1000))

    def _made(self, kinds: list[tuple[str, int, Maker]]) -> tuple[str, bytes]:
        ending, _, make = self.chance.choices(kinds, [weight for _, weight, _ in kinds])[0]
        return ending, make(self._picture(), self.chance)

    def _good(self) -> None:
        how = self.chance.random()
        old = self.root / self.chance.choice(self._files) if how < 0.04 and self._files else None
        # The same photo once more: a copy, a link to where photos are kept, a link to its side.
        if old is not None and os.path.relpath(old, self.root) in self.expected.good:
            name = self._name(old.suffix)
            new = self.root / name
            if how < 0.02:
                shutil.copy(old, new)
                self._stamp(new)
            elif how < 0.03:
                target = self.outside / f"{self._number}{old.suffix}"
                shutil.copy(old, target)
                self._stamp(target)
                self._link(name, target)
            else:
                self._link(name, os.path.relpath(old, new.parent))
        else:
            ending, data = self._made(GOOD)
            name = self._name(ending)
            self._put(name, data)
        self._files.append(name)
        self.expected.good.add(name)

    def _link(self, name: str, target: str | Path) -> None:
        (self.root / name).symlink_to(target)
        self._links.add(name)

    def _bad(self) -> None:
        if self.chance.random() < 0.1:
            name = self._name(".jpg")
            self._link(name, self.chance.choice(["nowhere.jpg", Path(name).name]))  # or to itself
        else:
            ending, data = self._made(BAD)
            name = self._name(ending)
            self._put(name, data)
        self.expected.bad.add(name)

    def _beside(self) -> None:
        self._number += 1
        pattern, data = self.chance.choice(_BESIDE)
        self._put(f"{self.chance.choice(_FOLDERS)}/{pattern.format(n=self._number)}", data)
        self.expected.passed += 1

    def _special(self) -> None:
        """One of each of what is no file, or an image by its name alone."""
        (self.root / "link to a folder").symlink_to("2019")
        (self.root / "link to above").symlink_to("..")
        os.mkfifo(self.root / "pipe.jpg")
        self.expected.passed += 3
        (self.root / "folder.jpg").mkdir()

    # --- shards -------------------------------------------------------------------------------

    def _shard(self, count: int) -> None:
        self._number += 1
        ending = self.chance.choice([".tar", ".tar", ".TAR", ".tar.gz", ".tgz"])
        name = f"{self.chance.choice(_FOLDERS)}/shard-{self._number}{ending}"
        members: dict[str, bytes] = {}
        for number in range(count):
            self._member(members, name, number)
        self._shards[name] = members
        self._write_shard(name)
        if ending in (".tar", ".TAR") and self.chance.random() < 0.3:
            self._cut_shard(name)

    def _member(self, members: dict[str, bytes], shard: str, number: int) -> None:
        is_bad = self.chance.random() < TROUBLE
        kinds = [row for row in (BAD if is_bad else GOOD) if row[0] in (".jpg", ".png", ".webp")]
        ending, data = self._made(kinds)
        stem = self.chance.choice(
            ["{n:04d}", "sub/{n:04d}", "IMG.2024.{n}", "ÄÖ {n}", "p" * 120 + "{n}"]
        ).format(n=number)
        members[f"{stem}{ending}"] = data
        if self.chance.random() < 0.4:
            first = stem.rpartition("/")[2].partition(".")[0]
            folder = stem.rpartition("/")[0]
            said = self.chance.choice([b'{"a": 1}', b"{broken", b"caption"])
            kind = "txt" if said == b"caption" else "json"
            if "." not in stem.rpartition("/")[2]:
                members[f"{folder}/{first}.{kind}" if folder else f"{first}.{kind}"] = said
        key = f"{shard}/{stem}"
        (self.expected.bad if is_bad else self.expected.good).add(key)

    def _write_shard(self, name: str) -> None:
        path = self.root / name
        mode = "w:gz" if name.lower().endswith("gz") else "w"
        with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as tar:
            for member, data in self._shards[name].items():
                entry = tarfile.TarInfo(member)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        self._stamp(path)

    def _cut_shard(self, name: str) -> None:
        """Take the end mark away: all members are there, and the shard is a failure besides."""
        path = self.root / name
        size = 0
        with tarfile.open(path) as tar:
            for entry in tar:
                size = entry.offset_data + -(-entry.size // 512) * 512
        with path.open("r+b") as stream:
            stream.truncate(size)
        self._stamp(path)
        self.expected.bad.add(name)

    # --- changes ------------------------------------------------------------------------------

    def change(self, share: float = 0.02) -> None:
        """Add some files, mend some that are bad, put other photos in the place of some."""
        count = max(2, int(self.seen * share))
        self._fill(self.seen + count)
        for name in self._some(self.expected.bad, max(1, count // 2)):
            self._mend(name)
        for name in self._some(self.expected.good, count):
            self._replace(name)

    def _some(self, names: set[str], count: int) -> Iterator[str]:
        listed = sorted(names)
        yield from self.chance.sample(listed, min(count, len(listed)))

    def _mend(self, name: str) -> None:
        shard = next((s for s in self._shards if name == s or name.startswith(f"{s}/")), None)
        if shard is not None:
            member = next((m for m in self._shards[shard] if name == f"{shard}/{_stem(m)}"), None)
            if member is not None:
                self._shards[shard][member] = self._like(name)
                self._set(name, good=True)
            self._write_shard(shard)
            self.expected.bad.discard(shard)  # it has its end mark again
            return
        path = self.root / name
        if path.is_symlink():
            path.unlink()
            self._links.discard(name)
        self._put(name, self._like(name))
        self._set(name, good=True)

    def _replace(self, name: str) -> None:
        path = self.root / name
        if not path.is_file() or path.is_symlink():
            return
        if self.chance.random() < 0.15:
            data = path.read_bytes()
            self._put(name, data[: len(data) // 3] if data.startswith(b"\xff\xd8") else b"")
            self._set(name, good=False)
        else:
            self._put(name, self._like(name))

    def _set(self, name: str, *, good: bool) -> None:
        """A file is good or bad now, and the links that lead to it."""
        place = os.path.realpath(self.root / name)
        others = [n for n in self._links if os.path.realpath(self.root / n) == place]
        for each in (name, *others):
            (self.expected.bad if good else self.expected.good).discard(each)
            (self.expected.good if good else self.expected.bad).add(each)

    def _like(self, name: str) -> bytes:
        """Another picture for a file of this name; the content decides, not the ending."""
        return encoded(self._picture())


def _stem(member: str) -> str:
    """The name of an image of a shard in its key, for the names made here."""
    return member.rpartition(".")[0]
