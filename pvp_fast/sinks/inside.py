"""Keywords inside the images themselves, by exiftool, which writes a new file and renames it.

The XMP packet of an image is merged as a sidecar is, with the same record of what is ours in it,
and put back as a whole; pixels and all other metadata stay. exiftool is started twice an image.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from pvp_fast.errors import InputError
from pvp_fast.sinks.beside import Beside
from pvp_fast.sinks.ledger import Content, Ledger
from pvp_fast.sinks.xmp_packet import XmpError, merge, read_record, take_back

_PATIENCE = 120  # seconds for one image


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
        try:
            change = merge(old, names, replace=self.replace, **fields)
        except XmpError as error:
            return f"{os.path.basename(image)}: {error}"
        if self.dry_run:
            lines = [f"+ {n}: {', '.join(found)}" for n, found in change.added.items()]
            lines += [f"- {n}: {', '.join(found)}" for n, found in change.removed.items()]
            self._put(Path(image), change.packet, old or b"", lines)
        elif change.packet != old:
            put(image, change.packet)
        return None


def untag(image: str) -> tuple[bool, bytes | None]:
    """Whether keywords of ours are inside an image, and its XMP without them (None: without any).

    Raises:
        InputError: exiftool is not installed, or what is there is no XMP.
        OSError: the image cannot be read.
    """
    _require()
    old = _read(image)
    if old is None:
        return False, None
    new = take_back(old).packet
    return new != old, new


def put(image: str, packet: bytes | None) -> None:
    """Put an XMP packet into an image in place of its own, or take it out.

    Raises:
        OSError: the image cannot be written; it is as it was.
    """
    with tempfile.TemporaryDirectory() as folder:
        argument = "-XMP="
        if packet is not None:
            path = Path(folder) / "packet.xmp"
            path.write_bytes(packet)
            argument = f"-XMP<={path}"
        _run(image, "-q", "-P", "-overwrite_original", argument)


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
