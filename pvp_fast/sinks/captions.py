"""Caption files, ``photo.txt`` beside ``photo.jpg``: what trainers of image generators read.

Such a file has no room for a record, so what was added to which is kept in ``.pvp-fast-captions``
in the same folder, one JSON line a write; the last line of a file counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pvp_fast.errors import InputError
from pvp_fast.sinks.beside import Beside, others, read_old, refuse_read_only
from pvp_fast.sinks.ledger import Ledger
from pvp_fast.sinks.names import plain

RECORD = ".pvp-fast-captions"
_MARK = "\ufeff"
_FOREIGN = re.compile(r"""^\s*["'{]|^\s*\[\s*["'{]|#\w+\s+#\w|[\0\t，、；;|]\s*\S""")


@dataclass(frozen=True)
class CaptionStyle:
    """How a trainer wants its captions.

    Attributes:
        ending: of the file, ".txt" or ".caption".
        separator: between tags.
        prefix: what each new caption starts with, a trigger word for example.
        underscores: "teddy_bear" for "teddy bear".
        escape: a backslash before round brackets, which else weigh a tag.
    """

    ending: str = ".txt"
    separator: str = ", "
    prefix: str = ""
    underscores: bool = False
    escape: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\.\w+", self.ending):
            raise InputError(f"ending {self.ending!r}: use .txt or .caption")
        if not self.separator.strip() or "\n" in self.separator:
            raise InputError(f"separator {self.separator!r}: give a mark such as ', '")

    @property
    def mark(self) -> str:
        """The separator without its spaces, by which a caption is split."""
        return self.separator.strip()

    def text(self, name: str) -> str:
        """A tag as it is written; the separator and line breaks in it become spaces."""
        text = " ".join(plain(name).replace(self.mark, " ").split())
        if self.underscores:
            text = text.replace(" ", "_")
        return re.sub(r"(?<!\\)([()])", r"\\\1", text) if self.escape else text


class CaptionSink(Beside):
    """Adds the tags that the caption lacks, behind its separator; what is there stays.

    With several lines, the first is the caption. Text that is no list of tags, and a file that two
    images share, are left alone.

    Args:
        artifact, ledger, options: see :class:`~pvp_fast.sinks.beside.Beside`.
        style: how captions look.
        replace: take out the tags of earlier runs; they are added to otherwise.
        into_text: add tags behind a caption that is a sentence, too.
    """

    def __init__(
        self,
        artifact: str,
        ledger: Ledger,
        *,
        style: CaptionStyle | None = None,
        replace: bool = False,
        into_text: bool = False,
        skip: bool = False,
        dry_run: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(artifact, ledger, skip=skip, dry_run=dry_run, say=say)
        self.style = style or CaptionStyle()
        self.replace, self.into_text = replace, into_text
        self._records = Records()

    def _recorded(self, key: str) -> dict[str, str] | None:
        found = self._records.get(self._path(key))
        return found.get("fields") if self._path(key).exists() else None

    def _path(self, image: str) -> Path:
        return Path(image).with_suffix(self.style.ending)

    def _write(self, image: str, names: list[str], fields: dict[str, str]) -> str | None:
        path = self._path(image)
        if path == Path(image):
            return f"{path.name} is the image itself; give it an image's ending"
        if shared := others(image):
            return f"{path.name} would be that of {', '.join(shared)} too; rename one of them"
        old = read_old(path)
        try:
            # Bytes, not text: line ends stay as they are.
            text = (old or b"").decode("utf-8")
        except UnicodeDecodeError:
            return f"{path.name} is not UTF-8 text; save it as UTF-8"
        record = self._records.get(path)
        ours = [str(tag) for tag in record.get("added", ())]
        base = without(text, ours, self.style)
        if not ours and is_text(base, self.style) and not self.into_text:
            return f"{path.name} holds text, not tags; --into-text adds them behind it"
        kept = [] if self.replace else ours
        new, added = extend(base, [*kept, *map(self.style.text, names)], self.style)
        made = old is None or bool(record.get("new"))
        if not made and not base:  # only a new file gets a line break at its end
            new = new.removesuffix("\n")
        lines = [f"+ {', '.join(a for a in added if a not in ours)}"]
        lines += [f"- {', '.join(o for o in ours if o not in added)}"]
        data, lines = new.encode("utf-8"), [line for line in lines if line[2:]]
        if self.dry_run or (data == old and record.get("fields") == fields):
            self._put(path, data, old, lines)
            return None
        end = str(record.get("end", "")) if ours else _end(base, self.style)
        said: dict[str, Any] = {"separator": self.style.separator, "prefix": self.style.prefix}
        said |= {"end": end, "new": made}
        if data != old:
            refuse_read_only(path)
            # Before the caption: what a run that is killed here has not written is taken out of
            # nothing, but what it has written must not count as the user's.
            both = list(dict.fromkeys([*ours, *added]))
            self._records.put(path, {"added": both, **said})
        try:
            self._put(path, data, old, lines)
        except OSError:
            self._records.put(path, record or _NOTHING)
            raise
        self._records.put(path, {"added": added, "fields": fields, **said})
        return None


def untag(
    image: str, ending: str, records: Records | None = None
) -> list[tuple[Path, bytes, bytes | None]]:
    """The caption of an image, if tags of ours are in it: path, bytes now, and without them.

    The last is None where nothing else is in it.

    Args:
        image: the image, which may be gone, or the caption itself.
        records: for many images one after the other, so that each folder's are read once.

    Raises:
        OSError: it cannot be read.
    """
    path = Path(image).with_suffix(ending)
    record = (records or Records()).get(path)
    old = read_old(path)
    if old is None or not record.get("added"):
        return []
    style = CaptionStyle(ending)
    mark = str(record.get("separator", style.separator))
    style = CaptionStyle(ending, mark)
    text = without(old.decode("utf-8", "surrogateescape"), list(record["added"]), style)
    first, rest = split(text)
    if record.get("end") and first == first.rstrip().removesuffix(style.mark).rstrip():
        text = f"{first}{record['end']}{rest}"
    data = text.encode("utf-8", "surrogateescape")
    prefix = str(record.get("prefix", ""))
    alone = record.get("new") and text.strip(f"{_MARK} \t\r\n") in ("", prefix)
    return [(path, old, None if alone else data)]


def forget(path: Path, records: Records | None = None) -> None:
    """Record that a caption holds nothing of ours any more; the record of the last one is taken
    away."""
    (records or Records()).put(path, _NOTHING)


def forget_unwritten(image: str, ending: str, records: Records) -> None:
    """Forget an image's caption that a run was about to make when it was stopped."""
    path = Path(image).with_suffix(ending)
    if records.get(path).get("added") and not path.exists():
        records.put(path, _NOTHING)


_NOTHING: dict[str, Any] = {"added": [], "new": False}


class Records:
    """The records of the folders met so far."""

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, dict[str, Any]]] = {}

    def get(self, path: Path) -> dict[str, Any]:
        folder = path.parent
        if folder not in self._folders:
            self._folders = {folder: _read(folder / RECORD)}  # folders come one after the other
        return self._folders[folder].get(plain(path.name), {})

    def put(self, path: Path, record: dict[str, Any]) -> None:
        self.get(path)
        known = {**self._folders[path.parent], plain(path.name): record}
        file = path.parent / RECORD
        if any(each.get("added") or each.get("fields") for each in known.values()):
            _append(file, json.dumps({"file": plain(path.name), **record}))
        else:
            file.unlink(missing_ok=True)
        self._folders[path.parent][plain(path.name)] = record


def _append(file: Path, line: str) -> None:
    with open(file, "ab+") as stream:
        before = stream.tell()
        if before:
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":  # a crash has cut the last line off
                line = f"\n{line}"
        try:
            stream.write(f"{line}\n".encode())
            stream.flush()
        except OSError:  # a full disk: no half of a line, nor an empty file
            with contextlib.suppress(OSError):
                stream.truncate(before)
            if not before:
                file.unlink(missing_ok=True)
            raise


def _read(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return found
    for line in lines:
        try:
            record = json.loads(line)
            found[str(record["file"])] = record
        except (ValueError, KeyError, TypeError):
            continue  # cut off by a crash
    return found


def split(text: str) -> tuple[str, str]:
    """The first line of a caption, and the rest with the line break before it."""
    found = re.search(r"\r?\n", text)
    return (text, "") if found is None else (text[: found.start()], text[found.start() :])


def _parts(first: str, style: CaptionStyle) -> list[str]:
    return [part.strip() for part in first.removeprefix(_MARK).split(style.mark)]


def is_text(text: str, style: CaptionStyle) -> bool:
    """Whether a caption is a sentence and no list of tags.

    Several lines, the end of a sentence, or more than four words between two separators are taken
    for one; so are JSON, quotes, hash tags and lists with other separators, which tags behind
    commas would spoil.
    """
    first, rest = split(text)
    if rest.strip() or _FOREIGN.search(first.removeprefix(_MARK).replace(style.mark, " ")):
        return True
    words = [len(part.split()) for part in _parts(first, style)]
    return max(words) > 4 or bool(re.search(r"[.!?]['\")]?\s*$|[.!?]\s", first))


def _same(tag: str) -> str:
    """What spellings of one tag have in common: case, underscores, escapes and weights aside."""
    text = re.sub(r"^[(\[{]+|(?::[\d.]+)?[)\]}]+$", "", tag.replace("\\", ""))
    return unicodedata.normalize("NFC", " ".join(text.replace("_", " ").split())).casefold()


def _end(text: str, style: CaptionStyle) -> str:
    """The separator and spaces at the end of the first line, which tags behind it take the place
    of."""
    first, _ = split(text)
    return first[len(first.rstrip().removesuffix(style.mark).rstrip()) :]


def extend(text: str, tags: list[str], style: CaptionStyle) -> tuple[str, list[str]]:
    """``text`` with the tags that its first line lacks, and these."""
    first, rest = split(text)
    if not text:
        rest = "\n"
        first = style.prefix
    present = {_same(part) for part in _parts(first, style)}
    added = []
    for tag in tags:
        if tag and _same(tag) not in present:
            present.add(_same(tag))
            added.append(tag)
    if not added:
        return text, []
    before = (
        [first.rstrip().removesuffix(style.mark).rstrip()] if first.strip(_MARK + " \t") else []
    )
    if before == [""]:
        before = []
    return style.separator.join(before + added) + rest, added


def without(text: str, tags: list[str], style: CaptionStyle) -> str:
    """``text`` without tags that :func:`extend` has added, the last of each in its first line."""
    first, rest = split(text)
    for tag in reversed(tags):
        found = list(
            re.finditer(
                rf"(?:(?<=\A)|(?<=\ufeff)|\s*{re.escape(style.mark)}\s*){re.escape(tag)}"
                rf"(?=\s*(?:{re.escape(style.mark)}|\Z))",
                first,
            )
        )
        if found:
            last = found[-1]
            first = first[: last.start()] + first[last.end() :]
    if tags and first.startswith(style.mark):
        first = first[len(style.mark) :].lstrip()
    return first + rest


def caption(old: str, names: list[str]) -> str:
    """``old`` with the names its first line lacks, in the usual style."""
    style = CaptionStyle()
    return extend(old, list(map(style.text, names)), style)[0]
