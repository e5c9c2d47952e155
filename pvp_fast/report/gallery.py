"""A gallery of a tagged set in one HTML file: ``pvp-fast report``."""

from __future__ import annotations

import functools
import html
import io
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pvp_fast.errors import ImageError, InputError
from pvp_fast.evaluation import EvalSet
from pvp_fast.evaluation.ladder import plain_name
from pvp_fast.files import safe_join
from pvp_fast.loaders.shards import is_shard, read_shard
from pvp_fast.metrics import reliability
from pvp_fast.pictures import PictureSettings, open_image
from pvp_fast.report.page import data_uri, fill, script_json
from pvp_fast.report.svg import diagonal

if TYPE_CHECKING:
    from pvp_fast.tagging.discover import Discovery, Proposal

QUALITY = 72
WORST = 12  # rows of the table of badly calibrated tags


@dataclass(frozen=True)
class Entry:
    """One image: its name, its tags (name, probability), why it failed, and what is in it.

    ``truth`` is None where there are no labels. ``thumbnail`` is a data URI.
    """

    name: str
    tags: tuple[tuple[str, float], ...] = ()
    error: str | None = None
    truth: frozenset[str] | None = None
    thumbnail: str = ""


def read_tags(path: Path) -> list[Entry]:
    """Entries of a JSONL file as ``pvp-fast tag`` writes it.

    Raises:
        InputError: the file cannot be read, is empty, or a line is not of that form.
    """
    entries = []
    try:
        with open(path, encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    entries.append(_entry(line, f"{path}, line {number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not entries:
        raise InputError(f"{path} lists no image; give what pvp-fast tag wrote")
    return entries


def _entry(line: str, where: str) -> Entry:
    try:
        found = json.loads(line)
        name = found["image"] if "image" in found else found["key"]  # the older name
        tags = tuple((t["name"], float(t["score"])) for t in found["tags"])
        error = found.get("error")
        if not all(isinstance(text, str) for text in (name, *(t for t, _ in tags))):
            raise TypeError("a name is no text")
        if not all(0 <= score <= 1 for _, score in tags):
            raise ValueError("a score is not between 0 and 1")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error_:
        raise InputError(
            f"{where} is not a line of pvp-fast tag (--format jsonl): {error_!r}"
        ) from error_
    return Entry(name, tags, None if error is None else str(error))


def locate(name: str, root: Path, links: bool = False) -> Path:
    """The image a tags file names, inside ``root``: as the file says, or relative to ``root``.

    Args:
        links: links in ``root`` may lead out of it, for names that were found there and not read.

    Raises:
        InputError: it lies outside ``root``.
    """
    base = root.resolve()
    if links:
        return safe_join(base, name, links=True)
    found = Path(name).resolve()  # tags files written in this folder name images from here
    if found.is_relative_to(base) and (found.exists() or _shard_of(found) is not None):
        return found
    return safe_join(base, name)


def with_thumbnails(
    entries: Iterable[Entry],
    root: Path,
    *,
    size: int = 220,
    pictures: PictureSettings | None = None,
    links: bool = False,
) -> list[Entry]:
    """Entries with small JPEG pictures; one that cannot be read gets its reason as ``error``.

    Args:
        size: the longer side in pixels. pictures: how they are opened, as when they were tagged.
        links: see :func:`locate`.

    Raises:
        InputError: an image lies outside ``root``.
    """
    from PIL import Image

    if not 16 <= size <= 1024:
        raise InputError(f"size is {size}; thumbnails have 16 to 1024 pixels")
    opened = pictures or PictureSettings()
    found = []
    for entry in entries:
        if entry.error is None:
            try:
                image = open_image(_picture(locate(entry.name, root, links)), opened)
                image.thumbnail((size, size), Image.Resampling.LANCZOS)
                stream = io.BytesIO()
                image.save(stream, "JPEG", quality=QUALITY, optimize=True)
                entry = replace(entry, thumbnail=data_uri(stream.getvalue()))
            except ImageError as error:
                entry = replace(entry, error=error.reason)
        found.append(entry)
    return found


def _picture(path: Path) -> Any:
    """The file, or the bytes of an image that lies in a shard.

    Raises:
        ImageError: it cannot be read there.
    """
    shard = _shard_of(path)
    image = path if shard is None else _members(shard).get(os.fspath(path), path)
    return image() if callable(image) else image


def _shard_of(path: Path) -> Path | None:
    return next((p for p in path.parents if is_shard(p.name) and p.is_file()), None)


@functools.lru_cache(4)
def _members(shard: Path) -> dict[str, Any]:
    return {sample.key: sample.image for sample in read_shard(os.fspath(shard))}


def with_labels(
    entries: Iterable[Entry], root: Path, dataset: EvalSet, links: bool = False
) -> list[Entry]:
    """Entries with the data set's labels, matched by path; others stay without.

    Labels of categories that never appear among the tags are kept: they were missed.

    Args:
        links: see :func:`locate`.

    Raises:
        InputError: no image of the data set is among the entries.
    """
    entries = list(entries)
    spelled = {plain_name(tag): tag for entry in entries for tag, _ in entry.tags}
    names = [spelled.get(plain_name(name), name) for name in dataset.names]
    truth = {
        path.resolve(): frozenset(n for n, label in zip(names, row, strict=True) if label > 0)
        for path, row in zip(dataset.paths, dataset.labels.tolist(), strict=True)
    }
    places = [locate(entry.name, root, links).resolve() for entry in entries]
    found = [replace(e, truth=truth.get(at)) for e, at in zip(entries, places, strict=True)]
    if all(entry.truth is None for entry in found):
        raise InputError("labels: they are of other images; give the data set that was tagged")
    return found


def build_gallery(
    entries: Sequence[Entry],
    *,
    title: str = "Tagged images",
    threshold: float = 0.0,
    names: Sequence[str] = (),
    proposals: Sequence[Proposal] = (),
    passed: str = "",
) -> str:
    """The gallery as one HTML text that asks nothing of any server.

    Args:
        entries: with thumbnails, and labels where there are some.
        threshold: where the slider starts.
        names: the order of the tags; others follow as they appear.
        passed: what was seen and left out, in words.
        proposals: of :func:`pvp_fast.tagging.discover.discover`, shown first, with their examples.

    Raises:
        InputError: a threshold that is no probability.
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold is {threshold}; it is a probability, 0 to 1")
    good = [entry for entry in entries if entry.error is None]
    bad = [entry for entry in entries if entry.error is not None]
    index: dict[str, int] = {}
    for name in (*names, *(t for e in good for t, _ in e.tags)):
        index.setdefault(name, len(index))
    for entry in good:
        for name in sorted(entry.truth or ()):
            index.setdefault(name, len(index))
    data = {
        "names": list(index),
        "threshold": round(threshold, 2),
        "images": [
            {
                "n": e.name,
                "u": e.thumbnail,
                "t": [index[name] for name, _ in e.tags],
                "s": [round(score, 4) for _, score in e.tags],
                "y": None if e.truth is None else sorted(index[name] for name in e.truth),
            }
            for e in good
        ],
    }
    values = {
        "title": html.escape(title),
        "summary": _summary(good, bad, index, passed),
        "proposals": _proposals(proposals, good),
        "failures": _failures(bad),
        "calibration": _calibration(good),
        "data": script_json(data),
    }
    return fill("gallery.html", values)


def build_discovery(
    found: Discovery,
    root: Path,
    *,
    limit: int = 30,
    size: int = 220,
    pictures: PictureSettings | None = None,
) -> str:
    """A gallery of what :func:`pvp_fast.tagging.discover.discover` proposes, with its examples.

    Args:
        root: the folder of the images. limit: proposals shown. size: of the thumbnails.
        pictures: how images are opened, as when they were embedded.

    Raises:
        InputError: an image lies outside ``root``.
    """
    shown = found.proposals[:limit]
    tags: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for proposal in shown:
        for key, chance in proposal.examples:
            tags[key].append((proposal.name, chance))
    entries = [Entry(key, tuple(named)) for key, named in tags.items()]
    return build_gallery(
        with_thumbnails(entries, root, size=size, pictures=pictures),
        title="Proposed categories",
        names=[proposal.name for proposal in shown],
        proposals=shown,
    )


def _proposals(proposals: Sequence[Proposal], good: Sequence[Entry]) -> str:
    if not proposals:
        return ""
    place = {entry.name: number for number, entry in enumerate(good)}
    figures = []
    for proposal in proposals:
        also = f", also {', '.join(proposal.also)}" if proposal.also else ""
        pictures = "".join(
            f"<img data-image='{place[key]}' alt=''>"
            for key, _ in proposal.examples
            if key in place
        )
        figures.append(
            f"<figure><figcaption><b>{html.escape(proposal.name)}</b>{html.escape(also)} "
            f"<span class='soft'>{proposal.images:,} images, nearest category "
            f"{html.escape(proposal.nearest)}</span></figcaption>"
            f"<div class='strip'>{pictures}</div></figure>"
        )
    return (
        f"<details id='proposals' open><summary>{len(proposals):,} proposed categories</summary>"
        f"{''.join(figures)}</details>"
    )


def _summary(
    good: Sequence[Entry], bad: Sequence[Entry], index: Mapping[str, int], passed: str
) -> str:
    parts = [f"{len(good):,} images", f"{len(index):,} tags"]
    labelled = sum(entry.truth is not None for entry in good)
    if labelled:
        parts.append(f"{labelled:,} with labels")
    if bad:
        parts.append(f"{len(bad):,} could not be read")
    if passed:
        parts.append(f"passed over: {html.escape(passed)}")
    return " · ".join(parts)


def _failures(bad: Sequence[Entry]) -> str:
    if not bad:
        return ""
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(e.name)}</th><td>{html.escape(e.error or '')}</td></tr>"
        for e in bad
    )
    return (
        f"<details id='failures'><summary>{len(bad):,} could not be read</summary>"
        f"<div class='scroll'><table class='wrap'><tbody>{rows}</tbody></table></div></details>"
    )


def _calibration(good: Sequence[Entry]) -> str:
    """Reliability diagram and worst tags, from the tags of labelled images."""
    seen: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    for entry in good:
        if entry.truth is not None:
            for name, score in entry.tags:
                seen[name].append((score, name in entry.truth))
    pairs = [pair for found in seen.values() for pair in found]
    if not pairs:
        return ""
    chance = torch.tensor([[score] for score, _ in pairs], dtype=torch.double)
    diagram = reliability(chance, torch.tensor([[right] for _, right in pairs]), bins=10)
    points = [
        (c, s, int(n))
        for c, s, n in zip(
            diagram.chance.tolist(), diagram.share.tolist(), diagram.count.tolist(), strict=True
        )
        if n
    ]
    rows = []
    for name, found in seen.items():
        count = len(found)
        mean = math.fsum(score for score, _ in found) / count
        share = sum(right for _, right in found) / count
        # A few tags prove little: the gap counts in standard errors of a share.
        rows.append((abs(mean - share) * math.sqrt(count), name, count, mean, share))
    rows.sort(key=lambda row: (-row[0], row[1]))
    table = "".join(
        f"<tr><th scope='row'>{html.escape(name)}</th><td>{count}</td><td>{mean:.2f}</td>"
        f"<td>{share:.2f}</td></tr>"
        for _, name, count, mean, share in rows[:WORST]
    )
    return (
        f"<details id='calibration'><summary>Calibration: error {100 * diagram.ece:.1f} %"
        "</summary><div class='pair'><div><p class='soft'>How often tags of a probability are "
        f"right, over {len(pairs):,} tags of labelled images</p>{diagonal(points)}</div><div>"
        "<p class='soft'>Tags furthest from their probability</p><table><thead><tr>"
        "<th scope='col'>tag</th><th scope='col'>tagged</th><th scope='col'>mean prob.</th>"
        f"<th scope='col'>right</th></tr></thead><tbody>{table}</tbody></table></div></div>"
        "</details>"
    )
