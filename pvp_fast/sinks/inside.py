"""Keywords inside the images themselves, by exiftool, which writes a new file and renames it.

The XMP packet of an image is merged as a sidecar is, with the same record of what is ours in it,
and put back as a whole; pixels and all other metadata stay. exiftool is started twice an image.

Keywords also lie in IPTC's older records (IIM), and which of the two a program shows is its own
choice: by the Metadata Working Group's rule that of the two which was written last, told by a
digest. So where IPTC keywords are, ours are added to them as well and the digest is brought up to
date; and where only they are, they are repeated in ``dc:subject``, which would hide them otherwise.
Both are recorded and taken back. Images without IPTC keywords get none.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pvp_fast.errors import InputError
from pvp_fast.sinks.beside import Beside, refuse_read_only
from pvp_fast.sinks.ledger import Content, Ledger
from pvp_fast.sinks.xmp_packet import (
    SUBJECT,
    XmpError,
    has_keywords,
    merge,
    read_record,
    take_back,
)

_PATIENCE = 120  # seconds for one image
_IPTC_KEYWORD = b"\x1c\x02\x19"  # how each begins: mark, record 2, data set 25


class InsideSink(Beside):
    """Merges tags into the XMP of each image; its time of change is kept.

    Args:
        artifact, ledger, options: see :class:`~pvp_fast.sinks.beside.Beside`.
        replace: take out the keywords of earlier runs; they are added to otherwise.

    Raises:
        InputError: exiftool is not installed.
    """

    def __init__(
        self,
        artifact: str,
        ledger: Ledger,
        *,
        replace: bool = False,
        skip: bool = False,
        dry_run: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> None:
        _require()
        super().__init__(artifact, ledger, skip=skip, dry_run=dry_run, say=say)
        self.replace = replace

    def _fields(self, content: Content) -> dict[str, str]:
        # Writing changes the size, and another photo brings other metadata.
        return {"artifact": self.artifact, "settings": self.ledger.settings}

    def _recorded(self, key: str) -> dict[str, str] | None:
        with contextlib.suppress(OSError, XmpError):  # write() will say what is wrong
            record = read_record(_read(key) or b"")
            return {n: record[n][0] for n in ("artifact", "settings") if n in record}
        return None

    def _write(self, image: str, names: list[str], fields: dict[str, str]) -> str | None:
        old = _read(image)
        iptc = _read_iptc(image)
        try:
            before = _recorded_iptc(old)
            users = [text for text in iptc.keywords if text not in before]
            added = _missing_in(users, names, iptc.charset)
            if not self.replace:
                added = [*before, *(text for text in added if text not in before)]
            if users:
                fields = {**fields, "iptc": json.dumps(added)}
            first = [] if has_keywords(old) else users
            change = merge(old, [*first, *names], replace=self.replace, first=None, **fields)
        except XmpError as error:
            return f"{os.path.basename(image)}: {error}"
        new = [text for text in added if text not in before] if users else []
        gone = [text for text in before if text not in added]
        if self.dry_run:
            lines = [f"+ {n}: {', '.join(found)}" for n, found in change.added.items()]
            lines += [f"- {n}: {', '.join(found)}" for n, found in change.removed.items()]
            lines += [f"+ IPTC: {', '.join(new)}"] * bool(new)
            lines += [f"- IPTC: {', '.join(gone)}"] * bool(gone)
            self._put(Path(image), change.packet, old or b"", lines)
        elif change.packet != old:
            refuse_read_only(image)
            _put(image, change.packet, iptc, new, gone)
        return None


def untag(image: str, *, dry_run: bool = False) -> bool:
    """Take keywords of ours out of an image; whether there were any.

    Raises:
        InputError: exiftool is not installed, or what is there is no XMP.
        OSError: the image cannot be read or written; it is as it was.
    """
    _require()
    old = _read(image)
    if old is None:
        return False
    new = take_back(old).packet
    if new != old and not dry_run:
        refuse_read_only(image)
        _put(image, new, _read_iptc(image), [], _recorded_iptc(old))
    return new != old


class _Iptc(NamedTuple):
    """IPTC of an image: its keywords, their encoding, and whether a digest of it is kept."""

    keywords: tuple[str, ...] = ()
    charset: str = "cp1252"
    digest: bool = False


def _read_iptc(image: str) -> _Iptc:
    """The IPTC keywords; exiftool is asked only where there may be some."""
    with open(image, "rb") as stream:
        if not os.fstat(stream.fileno()).st_size:
            return _Iptc()
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data.find(_IPTC_KEYWORD) < 0:
                return _Iptc()
    asked = ("-IPTC:Keywords", "-IPTC:CodedCharacterSet", "-Photoshop:IPTCDigest")
    (found,) = json.loads(_run(image, "-json", *asked))
    keywords = found.get("Keywords", [])
    if not isinstance(keywords, list):
        keywords = [keywords]
    charset = "utf-8" if found.get("CodedCharacterSet") == "UTF8" else "cp1252"
    return _Iptc(tuple(map(str, keywords)), charset, "IPTCDigest" in found)


def _recorded_iptc(packet: bytes | None) -> list[str]:
    """What was added to IPTC, as the packet's record says."""
    record = {} if packet is None else read_record(packet)
    try:
        found = json.loads(record["iptc"][0])
    except (KeyError, IndexError, ValueError):
        return []
    return [str(text) for text in found] if isinstance(found, list) else []


def _missing_in(present: Sequence[str], names: Sequence[str], charset: str) -> list[str]:
    """Names that are not among the IPTC keywords and can be written there."""
    there = {SUBJECT.same(text) for text in present}
    found = []
    for name in names:
        if SUBJECT.same(name) in there:
            continue
        with contextlib.suppress(UnicodeEncodeError):
            name.encode(charset)
            found.append(name)
    return found


def _put(
    image: str, packet: bytes | None, iptc: _Iptc, new: Sequence[str], gone: Sequence[str]
) -> None:
    """Put an XMP packet into an image in place of its own, or take it out; and change its IPTC.

    Raises:
        OSError: the image cannot be written; it is as it was.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["-XMP="]
        if packet is not None:
            path = Path(folder) / "packet.xmp"
            path.write_bytes(packet)
            arguments = [f"-XMP<={path}"]
        arguments += [f"-IPTC:Keywords-={text}" for text in gone]
        arguments += [f"-IPTC:Keywords+={text}" for text in new]
        if iptc.digest and (new or gone):
            arguments.append("-Photoshop:IPTCDigest=new")
        _run(image, "-q", "-P", "-overwrite_original", *arguments)


def _read(image: str) -> bytes | None:
    return _run(image, "-b", "-XMP") or None


def _run(image: str, *options: str) -> bytes:
    name = os.path.abspath(image)  # never an option
    try:
        done = subprocess.run(
            ["exiftool", "-m", *options, name], capture_output=True, check=False, timeout=_PATIENCE
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(None, f"exiftool took over {_PATIENCE} s", image) from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[0].removeprefix("Error: ") if lines else "exiftool failed"
        raise OSError(None, reason, image)
    return done.stdout


def _require() -> None:
    if shutil.which("exiftool") is None:
        raise InputError("--inside: needs exiftool (apt install libimage-exiftool-perl)")
