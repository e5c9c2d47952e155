"""Reading sentences out of caption files, whatever their format."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pvp_fast.errors import CorpusError, InputError
from pvp_fast.sentences.tables import is_table, read_table

FORMATS = ("auto", "coco", "flickr8k", "jsonl", "json", "table", "text")
_WORKS = (
    "what works: COCO captions JSON, a Flickr8k token file, JSON lines with a caption, text or "
    "sentence field, a JSON list of sentences, a table (CSV, TSV) with a caption, text or sentence "
    "column, or plain text with one sentence a line, in UTF-8"
)
_FIELDS = ("caption", "text", "sentence", "captions", "sentences")
_FLICKR_LINE = re.compile(r"^(\S.*?#\d+)\t(.*)$")
_SNIFFED_BYTES = 1 << 16


def read_captions(path: str | os.PathLike[str], format: str = "auto") -> Iterator[str]:
    """Sentences of a captions file, in file order; line formats are streamed.

    Args:
        path: the file.
        format: ``coco`` (captions JSON: ``annotations[].caption``), ``flickr8k``
            (``image.jpg#0<tab>caption``), ``jsonl`` (one object a line with a caption, text or
            sentence field, as in Localized Narratives, or a list in captions or sentences),
            ``json`` (a list of strings or such objects, or a mapping from a name to sentences),
            ``table`` (CSV, TSV and their like, see :mod:`pvp_fast.sentences.tables`), ``text`` (a
            sentence a line), or ``auto`` to tell them apart by ending and content.

    Raises:
        CorpusError: the file is missing, empty, cut off, not UTF-8, or has another structure. A
            bad line is an error, with its number, and not skipped: it usually means that the
            file is damaged or of another kind. Errors in a streamed line come when it is reached.
    """
    if format not in FORMATS:
        raise InputError(f"format {format!r} is unknown; use one of {', '.join(FORMATS)}")
    file = Path(path)
    head = _head(file)
    kind = _detect(file, head) if format == "auto" else format
    if kind in ("coco", "json"):
        found = _from_json(file, _load_json(file), kind)
        if not found:
            raise CorpusError(f"captions file {file} holds no sentence; {_WORKS}")
        return iter(found)
    if kind == "table":
        return read_table(file)
    return _stream(file, kind)


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            head = stream.read(_SNIFFED_BYTES)
    except OSError as error:
        raise CorpusError(
            f"cannot read captions file {file}: {error.strerror or error}; give a readable file"
        ) from error
    if not head:
        raise CorpusError(f"captions file {file} is empty (0 bytes); {_WORKS}")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise CorpusError(f"captions file {file} is UTF-16, not UTF-8; {_WORKS}")
    if b"\0" in head:
        raise CorpusError(f"captions file {file} is a binary file; {_WORKS}")
    return head


def _detect(file: Path, head: bytes) -> str:
    text = head.decode("utf-8-sig", "replace").lstrip()
    suffix = file.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return "jsonl"
    first, _, rest = text.partition("\n")
    if suffix == ".json" or text.startswith(("{", "[")):
        # A whole JSON document, unless the first line is an object by itself and more follow.
        if text.startswith("{") and rest.lstrip().startswith("{") and _is_json(first):
            return "jsonl"
        if text.startswith("{") and suffix != ".json" and _is_json(first) and not rest.strip():
            return "json" if '"annotations"' in first else "jsonl"
        if text.startswith(("{", "[")) and (suffix == ".json" or not _looks_like_prose(text)):
            return "json"
        if suffix == ".json":
            raise CorpusError(
                f"captions file {file} is not JSON: it begins with {text[:20]!r}; {_WORKS}"
            )
    if _FLICKR_LINE.match(first.rstrip("\r")):
        return "flickr8k"
    return "table" if is_table(file, text) else "text"


def _looks_like_prose(text: str) -> bool:
    """A plain sentence may begin with a bracket: "[Two men] talking". JSON goes on with a value."""
    return re.match(r'[\[{]\s*(?:["{\[\]}\d-]|true|false|null|$)', text) is None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _load_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"captions file {file} is not UTF-8 (byte {error.start}); convert it to UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CorpusError(
            f"captions file {file} is cut off or not valid JSON ({error}); fetch it again, or "
            f"give another format; {_WORKS}"
        ) from error


def _from_json(file: Path, data: Any, kind: str) -> list[str]:
    if isinstance(data, Mapping) and "annotations" in data:
        return _from_coco(file, data["annotations"])
    if kind == "coco":
        raise CorpusError(f"captions file {file} has no 'annotations' list; {_WORKS}")
    found: list[str] = []
    for position, item in enumerate(data if isinstance(data, list) else [data]):
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, Mapping) and any(field in item for field in _FIELDS):
            found.extend(_from_object(item, f"captions file {file}, item {position}"))
        elif isinstance(item, Mapping) and item and all(map(_is_strings, item.values())):
            for sentences in item.values():
                found.extend(sentences)
        else:
            raise CorpusError(f"captions file {file}, item {position} is {_short(item)}; {_WORKS}")
    return [sentence.strip() for sentence in found if sentence.strip()]


def _from_coco(file: Path, annotations: Any) -> list[str]:
    if not isinstance(annotations, list):
        raise CorpusError(f"captions file {file}: 'annotations' is not a list; {_WORKS}")
    found = []
    for position, item in enumerate(annotations):
        caption = item.get("caption") if isinstance(item, Mapping) else None
        if not isinstance(caption, str):
            hint = ""
            if isinstance(item, Mapping) and "bbox" in item:
                hint = " (this is an instances file: take captions_*.json beside it)"
            raise CorpusError(
                f"captions file {file}: annotation {position} has no caption text{hint}; {_WORKS}"
            )
        if caption.strip():
            found.append(caption.strip())
    return found


def _from_object(item: Mapping[str, Any], where: str) -> list[str]:
    for field in _FIELDS:
        value = item.get(field)
        if isinstance(value, str):
            return [value]
        if _is_strings(value):
            return list(value or ())
    raise CorpusError(f"{where}: no text in any field of {', '.join(_FIELDS)}; {_WORKS}")


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _stream(file: Path, kind: str) -> Iterator[str]:
    empty = True
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            where = f"captions file {file}, line {number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise CorpusError(f"{where} is not UTF-8; convert the file to UTF-8") from error
            if not line:
                continue
            for sentence in _from_line(line, kind, where):
                if sentence.strip():
                    empty = False
                    yield sentence.strip()
    if empty:
        raise CorpusError(f"captions file {file} holds no sentence; {_WORKS}")


def _from_line(line: str, kind: str, where: str) -> list[str]:
    if kind == "text":
        return [line]
    if kind == "flickr8k":
        match = _FLICKR_LINE.match(line)
        if match is None:
            raise CorpusError(
                f"{where} is not 'image#number<tab>caption' but {line[:40]!r}; the file may be "
                "cut off or damaged; fetch it again, or read it with format='text'"
            )
        return [match[2]]
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorpusError(
            f"{where} is cut off or not JSON ({error}); repair or remove the line"
        ) from error
    if isinstance(item, str):
        return [item]
    if not isinstance(item, Mapping):
        raise CorpusError(f"{where} is {_short(item)}, not an object; {_WORKS}")
    return _from_object(item, where)


def _short(item: Any) -> str:
    text = repr(item)
    return text if len(text) <= 40 else text[:37] + "..."
