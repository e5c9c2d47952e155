"""Labelled image sets: a folder with labels.json, VOC, COCO and NUS-WIDE.

Paths that come out of a data file never leave their root.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
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
        with open(path, encoding="utf-8") as stream:
            for line in stream:
                if line.strip():
                    yield line.strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
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


def read_folder(root: Path, split: str = "") -> EvalSet:
    """``root/labels.json``: ``{"categories": [...], "photos": {file: {"labels": [...]}}}``.

    A photo may also have ``"absent": [...]``: then what it names in neither list is unknown, 0.
    """
    data = _json(root / "labels.json")
    unused = _Unused()
    try:
        names = tuple(data["categories"])
        index = {name: i for i, name in enumerate(names)}
        photos = sorted(data["photos"].items())
        rows: list[set[int]] = []
        absent: list[set[int] | None] = []
        for _, entry in photos:
            rows.append({index[label] for label in entry["labels"] if label in index})
            gone = entry.get("absent")
            absent.append(None if gone is None else {index[n] for n in gone if n in index})
            for label in [*entry["labels"], *(gone or ())]:
                if label not in index:
                    unused.add("labels of unknown categories, left out", label)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{root / 'labels.json'} is not of the labels format: {error!r}"
        ) from error
    paths = tuple(safe_join(root, name, links=True) for name, _ in photos)
    labels = _positives(rows, len(names))
    for row, present, gone in zip(labels, rows, absent, strict=True):
        if gone is not None:
            row.zero_()
            row[sorted(gone)] = -1
            row[sorted(present)] = 1
    return EvalSet(paths, names, labels, unused.notes())


def read_voc(root: Path, split: str = "test") -> EvalSet:
    """``ImageSets/Main/CLASS_SPLIT.txt`` (−1/0/1) and ``JPEGImages``, VOC2007 or VOC2012."""
    lists = sorted((root / "ImageSets" / "Main").glob(f"*_{split}.txt"))
    if not lists:
        raise InputError(
            f"path: {root} has no ImageSets/Main/*_{split}.txt; give VOCdevkit/VOC2007"
        )
    names = tuple(path.name.removesuffix(f"_{split}.txt") for path in lists)
    columns: list[dict[str, int]] = []
    for path in lists:
        column: dict[str, int] = {}
        for line in _lines(path):
            image, _, value = line.partition(" ")
            if value.strip() not in ("-1", "0", "1"):
                raise InputError(f"{path} has the line {line!r}; give an image and -1, 0 or 1")
            column[image] = int(value)
        columns.append(column)
    images = sorted({image for column in columns for image in column})
    unused = _Unused()
    for name, column in zip(names, columns, strict=True):
        for image in images:
            if image not in column:
                unused.add(f"images without a line for {name!r}, difficult there", image)
    rows = [[column.get(image, 0) for column in columns] for image in images]
    paths = tuple(safe_join(root / "JPEGImages", f"{image}.jpg", links=True) for image in images)
    return EvalSet(paths, names, torch.tensor(rows, dtype=torch.int8), unused.notes())


def read_coco(root: Path, split: str = "val2014") -> EvalSet:
    """``annotations/instances_SPLIT.json`` and the images in ``SPLIT``.

    Annotations of images or categories that the file does not list are counted in the notes.
    """
    unused = _Unused()
    data = _json(root / "annotations" / f"instances_{split}.json")
    try:
        categories = sorted(data["categories"], key=lambda c: c["id"])
        index = {c["id"]: i for i, c in enumerate(categories)}
        images = sorted(data["images"], key=lambda i: i["id"])
        present: dict[int, set[int]] = {image["id"]: set() for image in images}
        for annotation in data["annotations"]:
            image, category = annotation["image_id"], annotation["category_id"]
            if image not in present:
                unused.add(
                    "annotations of images that are not listed, left out", f"image_id {image}"
                )
            elif category not in index:
                unused.add("annotations of unknown categories, left out", f"category_id {category}")
            else:
                present[image].add(index[category])
        paths = tuple(safe_join(root / split, image["file_name"], links=True) for image in images)
        rows = [present[image["id"]] for image in images]
        names = tuple(c["name"] for c in categories)
    except (KeyError, TypeError, AttributeError) as error:
        file = root / "annotations" / f"instances_{split}.json"
        raise InputError(f"{file} is not of COCO's instances format: {error!r}") from error
    return EvalSet(paths, names, _positives(rows, len(categories)), unused.notes())


def read_nuswide(root: Path, split: str = "Test") -> EvalSet:
    """``ImageList/SPLITImagelist.txt``, ``TrainTestLabels/Labels_NAME_SPLIT.txt``, ``Flickr``."""
    files = sorted((root / "TrainTestLabels").glob(f"Labels_*_{split}.txt"))
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
