"""Labelled image sets: a folder with labels.json, VOC, COCO and NUS-WIDE.

Paths that come out of a data file never leave their root.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pvp_fast.errors import InputError
from pvp_fast.files import safe_join


@dataclass(frozen=True)
class EvalSet:
    """N images with their labels.

    Attributes:
        paths: N files. names: C category names as the data set spells them.
        labels: (N, C) int8, 1 present, −1 absent, 0 difficult (only VOC has it).
    """

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    labels: Tensor


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


def _positives(rows: list[set[int]], count: int) -> Tensor:
    labels = torch.full((len(rows), count), -1, dtype=torch.int8)
    for row, present in zip(labels, rows, strict=True):
        row[sorted(present)] = 1
    return labels


def read_folder(root: Path, split: str = "") -> EvalSet:
    """``root/labels.json``: ``{"categories": [...], "photos": {file: {"labels": [...]}}}``."""
    data = _json(root / "labels.json")
    try:
        names = tuple(data["categories"])
        index = {name: i for i, name in enumerate(names)}
        photos = sorted(data["photos"].items())
        rows = [{index[label] for label in entry["labels"]} for _, entry in photos]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{root / 'labels.json'} is not of the labels format: {error!r}"
        ) from error
    paths = tuple(safe_join(root, name) for name, _ in photos)
    return EvalSet(paths, names, _positives(rows, len(names)))


def read_voc(root: Path, split: str = "test") -> EvalSet:
    """``ImageSets/Main/CLASS_SPLIT.txt`` (−1/0/1) and ``JPEGImages``, VOC2007 or VOC2012."""
    lists = sorted((root / "ImageSets" / "Main").glob(f"*_{split}.txt"))
    if not lists:
        raise InputError(
            f"path: {root} has no ImageSets/Main/*_{split}.txt; give VOCdevkit/VOC2007"
        )
    names = tuple(path.name.removesuffix(f"_{split}.txt") for path in lists)
    rows: dict[str, list[int]] = {}
    for column, path in enumerate(lists):
        for line in _lines(path):
            image, _, value = line.partition(" ")
            if value.strip() not in ("-1", "0", "1"):
                raise InputError(f"{path} has the line {line!r}; give an image and -1, 0 or 1")
            rows.setdefault(image, [0] * len(names))[column] = int(value)
    images = sorted(rows)
    paths = tuple(safe_join(root / "JPEGImages", f"{image}.jpg") for image in images)
    return EvalSet(paths, names, torch.tensor([rows[i] for i in images], dtype=torch.int8))


def read_coco(root: Path, split: str = "val2014") -> EvalSet:
    """``annotations/instances_SPLIT.json`` and the images in ``SPLIT``."""
    data = _json(root / "annotations" / f"instances_{split}.json")
    try:
        categories = sorted(data["categories"], key=lambda c: c["id"])
        index = {c["id"]: i for i, c in enumerate(categories)}
        images = sorted(data["images"], key=lambda i: i["id"])
        present: dict[int, set[int]] = {image["id"]: set() for image in images}
        for annotation in data["annotations"]:
            present[annotation["image_id"]].add(index[annotation["category_id"]])
        paths = tuple(safe_join(root / split, image["file_name"]) for image in images)
        rows = [present[image["id"]] for image in images]
        names = tuple(c["name"] for c in categories)
    except (KeyError, TypeError, AttributeError) as error:
        file = root / "annotations" / f"instances_{split}.json"
        raise InputError(f"{file} is not of COCO's instances format: {error!r}") from error
    return EvalSet(paths, names, _positives(rows, len(categories)))


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
    paths = tuple(safe_join(root / "Flickr", line.replace("\\", "/")) for line in listed)
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
