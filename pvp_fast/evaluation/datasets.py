"""Labelled image sets: a folder with labels.json, VOC, COCO and NUS-WIDE.

Paths that come out of a data file never leave their root.
"""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pvp_fast.errors import InputError
from pvp_fast.files import safe_join

SHOWN = 5  # names in a note


@dataclass(frozen=True)
class EvalSet:
    """N images with their labels.

    Attributes:
        paths: N files. names: C category names as the data set spells them.
        labels: (N, C) int8, 1 present, −1 absent, 0 difficult (VOC) or unknown (a folder's).
        notes: what of the data set's files could not be used, one sentence a kind.
    """

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    labels: Tensor
    notes: tuple[str, ...] = ()

    @classmethod
    def unlabelled(cls, paths: Iterable[Path]) -> EvalSet:
        """Images of which no label is known."""
        files = tuple(paths)
        return cls(files, (), torch.zeros(len(files), 0, dtype=torch.int8))


def _lines(path: Path) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8-sig") as stream:
            for line in stream:
                if line.strip():
                    yield line.strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _json(path: Path, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    try:
        # Bytes: a byte order mark is no error.
        return json.loads(path.read_bytes(), object_pairs_hook=pairs)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no readable JSON: {error}") from error


class _Unused:
    """Entries that refer to what the data set does not list, counted by kind and named."""

    def __init__(self) -> None:
        self._found: dict[str, Counter[str]] = {}

    def add(self, kind: str, name: object) -> None:
        """``kind`` is a sentence's beginning, such as "annotations of unlisted images"."""
        self._found.setdefault(kind, Counter())[str(name)] += 1

    def notes(self) -> tuple[str, ...]:
        return tuple(
            f"{names.total()} {kind}: {', '.join(list(names)[:SHOWN])}"
            + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
            for kind, names in self._found.items()
        )


def _positives(rows: list[set[int]], count: int) -> Tensor:
    labels = torch.full((len(rows), count), -1, dtype=torch.int8)
    for row, present in zip(labels, rows, strict=True):
        row[sorted(present)] = 1
    return labels


def _names(names: Iterable[Any], file: Path) -> tuple[str, ...]:
    """Category names, of which each may stand there once."""
    found = tuple(names)
    for name, count in Counter(map(repr, found)).items():
        if count > 1:
            raise InputError(f"{file} lists the category {name} {count} times")
    for name in found:
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{file} has a category named {name!r}; give each a text")
    return found


def _place(folders: Sequence[Path], name: str) -> Path:
    """Where a file of this name lies, in the first of the folders where one does.

    Windows' separators are read as such where no file has them in its name.
    """
    spelled = [name, name.replace("\\", "/")] if "\\" in name else [name]
    places = [safe_join(folder, each, links=True) for folder in folders for each in spelled]
    return next((place for place in places if place.exists()), places[len(spelled) - 1])


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twins = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise ValueError(f"{twins[0]!r} stands there twice")
    return found


def read_folder(root: Path, split: str = "") -> EvalSet:
    """``root/labels.json``: ``{"categories": [...], "photos": {file: {"labels": [...]}}}``.

    A photo may also have ``"absent": [...]``: then what it names in neither list is unknown, 0.
    """
    file = root / "labels.json"
    data = _json(file, _without_twins)
    unused = _Unused()
    try:
        if isinstance(data["categories"], str):
            raise TypeError("categories must be a list")
        names = _names(data["categories"], file)
        index = {name: i for i, name in enumerate(names)}
        photos = sorted(data["photos"].items())
        rows: list[set[int]] = []
        absent: list[set[int] | None] = []
        for photo, entry in photos:
            labels, gone = entry["labels"], entry.get("absent")
            if isinstance(labels, str) or isinstance(gone, str):
                raise TypeError(f"labels and absent of {photo!r} must be lists")
            rows.append({index[label] for label in labels if label in index})
            absent.append(None if gone is None else {index[n] for n in gone if n in index})
            for label in [*labels, *(gone or ())]:
                if label not in index:
                    unused.add("labels of unknown categories, left out", label)
            for label in {*labels} & {*(gone or ())}:
                unused.add("labels that are both present and absent, counted as present", label)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is not of the labels format: {error!r}") from error
    paths = tuple(_place([root], name) for name, _ in photos)
    labels = _positives(rows, len(names))
    for row, present, gone in zip(labels, rows, absent, strict=True):
        if gone is not None:
            _set(row, present, gone)
    return EvalSet(paths, names, labels, unused.notes())


def _set(row: Tensor, present: set[int], gone: set[int]) -> None:
    """What is neither present nor said to be absent is unknown."""
    row.zero_()
    row[sorted(gone)] = -1
    row[sorted(present)] = 1


def read_voc(root: Path, split: str = "test") -> EvalSet:
    """``ImageSets/Main/CLASS_SPLIT.txt`` (−1/0/1) and ``JPEGImages``, VOC2007 or VOC2012.

    Images of other endings than ``.jpg`` are found by the name without it.
    """
    lists = _listed(root / "ImageSets" / "Main", f"*_{glob.escape(split)}.txt")
    if not lists:
        raise InputError(
            f"path: {root} has no ImageSets/Main/*_{split}.txt; give VOCdevkit/VOC2007"
        )
    names = tuple(path.name.removesuffix(f"_{split}.txt") for path in lists)
    columns: list[dict[str, int]] = []
    unused = _Unused()
    for path in lists:
        column: dict[str, int] = {}
        for line in _lines(path):
            image, value = [*line.rsplit(maxsplit=1), ""][:2]
            if value not in ("-1", "0", "1", "+1"):
                raise InputError(f"{path} has the line {line!r}; give an image and -1, 0 or 1")
            if column.get(image, int(value)) != int(value):
                unused.add("contradictions in a list, of which the last counts", image)
            column[image] = int(value)
        columns.append(column)
    images = sorted({image for column in columns for image in column})
    for name, column in zip(names, columns, strict=True):
        for image in images:
            if image not in column:
                unused.add(f"images without a line for {name!r}, difficult there", image)
    rows = [[column.get(image, 0) for column in columns] for image in images]
    folder = root / "JPEGImages"
    files = {path.stem: path.name for path in _listed(folder, "*")}
    files |= {name: name for name in files.values()}
    paths = tuple(
        safe_join(folder, files.get(image, f"{image}.jpg"), links=True) for image in images
    )
    return EvalSet(paths, names, torch.tensor(rows, dtype=torch.int8), unused.notes())


def _listed(folder: Path, pattern: str) -> list[Path]:
    """Files of a pattern in order, without the hidden ones that other systems lay beside them."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def read_coco(root: Path, split: str = "val2014") -> EvalSet:
    """``annotations/instances_SPLIT.json`` and the images in ``SPLIT``.

    Annotations of images or categories that the file does not list are counted in the notes, and
    so are images and categories that it lists twice. Where an image says which categories were
    looked for in vain (``neg_category_ids``, as in LVIS), all others are unknown there.
    """
    unused = _Unused()
    file = root / "annotations" / f"instances_{split}.json"
    data = _json(file)
    try:
        index, names = _coco_categories(data["categories"], file, unused)
        row_of: dict[Any, int] = {}
        rows: dict[Path, int] = {}  # by the file: the same photo may have several ids
        present: list[set[int]] = []
        absent: list[set[int] | None] = []
        for image in sorted(data["images"], key=lambda i: i["id"]):
            if image["id"] in row_of:
                unused.add("images of an id that was there before, left out", image["id"])
                continue
            name = image.get("file_name") or str(image["coco_url"]).rpartition("/")[2]
            path = _place([root / split, root], name)
            if path in rows:
                unused.add("images that are listed again, counted once", name)
            else:
                rows[path] = len(rows)
                present.append(set())
                absent.append(None)
            row = row_of[image["id"]] = rows[path]
            if (negative := image.get("neg_category_ids")) is not None:
                found = {index[category] for category in negative if category in index}
                absent[row] = found | (absent[row] or set())
        for annotation in data["annotations"]:
            key, category = annotation["image_id"], annotation["category_id"]
            if key not in row_of:
                unused.add("annotations of images that are not listed, left out", f"image_id {key}")
            elif category not in index:
                unused.add("annotations of unknown categories, left out", f"category_id {category}")
            else:
                present[row_of[key]].add(index[category])
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is not of COCO's instances format: {error!r}") from error
    labels = _positives(present, len(names))
    for each, there, gone in zip(labels, present, absent, strict=True):
        if gone is not None:
            _set(each, there, gone)
    return EvalSet(tuple(rows), names, labels, unused.notes())


def _coco_categories(
    categories: Iterable[Any], file: Path, unused: _Unused
) -> tuple[dict[Any, int], tuple[str, ...]]:
    """The column of each category id, and the columns' names: ids of one name share one."""
    index: dict[Any, int] = {}
    columns: dict[str, int] = {}
    for category in sorted(categories, key=lambda c: c["id"]):
        key, name = category["id"], category["name"]
        if key in index:
            raise InputError(f"{file} lists the category id {key!r} twice")
        if name in columns:
            unused.add("categories of a name that was there before, counted as one", name)
        index[key] = columns.setdefault(name, len(columns))
    return index, _names(columns, file)


def read_nuswide(root: Path, split: str = "Test") -> EvalSet:
    """``ImageList/SPLITImagelist.txt``, ``TrainTestLabels/Labels_NAME_SPLIT.txt``, ``Flickr``."""
    files = _listed(root / "TrainTestLabels", f"Labels_*_{glob.escape(split)}.txt")
    if not files:
        raise InputError(f"path: {root} has no TrainTestLabels/Labels_*_{split}.txt")
    names = tuple(p.name.removeprefix("Labels_").removesuffix(f"_{split}.txt") for p in files)
    listed = list(_lines(root / "ImageList" / f"{split}Imagelist.txt"))
    columns = [_zeros_and_ones(path) for path in files]
    for path, column in zip(files, columns, strict=True):
        if len(column) != len(listed):
            raise InputError(f"{path} has {len(column)} labels for {len(listed)} images")
    labels = torch.tensor(columns, dtype=torch.int8).T * 2 - 1
    paths = tuple(
        safe_join(root / "Flickr", line.replace("\\", "/"), links=True) for line in listed
    )
    return EvalSet(paths, names, labels.contiguous())


def _zeros_and_ones(path: Path) -> list[int]:
    values = list(_lines(path))
    for number, value in enumerate(values, 1):
        if value not in ("0", "1"):
            raise InputError(f"{path}, line {number} is {value[:40]!r}; give 0 or 1")
    return [int(value) for value in values]


READERS: dict[str, tuple[Callable[[Path, str], EvalSet], str]] = {
    "folder": (read_folder, ""),
    "voc": (read_voc, "test"),
    "coco": (read_coco, "val2014"),
    "nuswide": (read_nuswide, "Test"),
}


def read_dataset(kind: str, path: str | Path, split: str | None = None) -> EvalSet:
    """Read a labelled image set; ``split`` defaults to the kind's usual test split.

    Raises:
        InputError: an unknown kind, or files that are missing or malformed.
    """
    if kind not in READERS:
        raise InputError(f"kind={kind!r}: use one of {', '.join(READERS)}")
    reader, usual = READERS[kind]
    found = reader(Path(path), usual if split is None else split)
    if not found.paths:
        raise InputError(f"path: {path} lists no image; give a {kind} data set that has some")
    return found
