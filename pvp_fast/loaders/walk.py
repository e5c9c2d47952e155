"""The files of a folder and of a glob: what is listed, what is passed over, what cannot be read."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from pvp_fast.errors import ImageError
from pvp_fast.loaders import passed as kinds_of_passed
from pvp_fast.loaders.ignore import Patterns
from pvp_fast.loaders.passed import PassedOver
from pvp_fast.loaders.shards import is_shard
from pvp_fast.pictures.kinds import LOOKS_LIKE, SUFFIXES

# Folders in which network storage and systems keep thumbnails, and what was thrown away.
_REFUSE = frozenset(
    {
        "@eadir",
        "@recycle",
        "@recently-snapshot",
        "@tmp",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "recycler",
        "recycled",
        "system volume information",
        "lost+found",
        "lost.dir",
        "__macosx",
        "network trash folder",
        "temporary items",
        "thumbs.db",
        ".trashes",
        ".trash",
        ".trash-1000",
        ".thumbnails",
        ".thumbs",
        ".recycle",
        ".@__thumb",
        ".picasaoriginals",
    }
)
Found = tuple[str, ImageError | None]


@dataclass(frozen=True)
class Search:
    """What is taken of folders and globs; files that are named themselves always are.

    Attributes:
        hidden: also names that start with a dot, and thumbnail and recycle folders.
        exclude: patterns of what is left out, as in a .gitignore, from the folder that is walked.
        follow: also enter links to folders, each folder once.
        endings: also files of these endings, in small letters, though they are no images.
    """

    hidden: bool = False
    exclude: tuple[str, ...] = ()
    follow: bool = False
    endings: frozenset[str] = frozenset()


def walk(root: str, search: Search, passed: PassedOver) -> Iterator[Found]:
    """(path, None) of every picture and shard below a folder, its files first, in sorted order;
    (path, why) of what cannot be read. The rest is counted in ``passed``."""
    rules = [("", Patterns(search.exclude))]
    waiting = [(root, "", rules)]
    entered = {_identity(root)}
    while waiting:
        folder, relative, rules = waiting.pop()
        own = Patterns.of_folder(folder)
        if own is not None:
            rules = [*rules, (relative, own)]
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            reason = f"the folder cannot be read: {error.strerror or error}"
            yield folder, ImageError(reason, folder)
            continue
        below = []
        for entry in entries:
            path = relative + entry.name
            try:
                is_folder = entry.is_dir()
            except OSError:  # a link that leads to itself, say
                is_folder = False
            kind = _left_out(entry, is_folder, path, search, rules)
            if kind is None and is_folder and entry.is_symlink():
                place = _identity(entry.path)
                if place in entered or not search.follow:
                    kind = kinds_of_passed.LINKS
                    passed.add(kind)
                    continue
                entered.add(place)
            if kind is not None:
                passed.add(kind, _files_below(entry.path) if is_folder else 1)
            elif is_folder:
                if search.follow:
                    place = _identity(entry.path)
                    if place in entered and not entry.is_symlink():
                        continue
                    entered.add(place)
                below.append((entry.path, path + "/", rules))
            else:
                yield from _file(entry, passed, search.endings)
        waiting += reversed(below)


def _identity(folder: str) -> tuple[int, int]:
    try:
        found = os.stat(folder)
    except OSError:
        return -1, -1
    return found.st_dev, found.st_ino


def _left_out(
    entry: os.DirEntry[str],
    is_folder: bool,
    path: str,
    search: Search,
    rules: list[tuple[str, Patterns]],
) -> str | None:
    """Why an entry is not looked at, or None."""
    name = entry.name
    if name.startswith("._"):  # AppleDouble: what macOS keeps of a file on foreign disks
        return kinds_of_passed.HIDDEN
    if not search.hidden:
        if is_folder and name.lower() in _REFUSE:
            return kinds_of_passed.REFUSE
        if name.startswith("."):
            return kinds_of_passed.HIDDEN
    verdict = None
    for base, patterns in rules:
        found = patterns.verdict(path[len(base) :], is_folder)
        verdict = verdict if found is None else found
    return kinds_of_passed.EXCLUDED if verdict else None


def _files_below(folder: str) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def _file(entry: os.DirEntry[str], passed: PassedOver, endings: frozenset[str]) -> Iterator[Found]:
    ending = os.path.splitext(entry.name)[1].lower()
    wanted = ending in SUFFIXES or ending in endings or is_shard(entry.name)
    try:
        regular = stat.S_ISREG(entry.stat().st_mode)
    except OSError as error:
        if wanted:
            why = f"a link that leads nowhere: {_target(entry.path)}"
            if not entry.is_symlink():
                why = f"cannot be read: {error.strerror or error}"
            yield entry.path, ImageError(why, entry.path)
        else:
            passed.add(ending if ending in LOOKS_LIKE else kinds_of_passed.OTHER)
        return
    if not regular:
        passed.add(kinds_of_passed.SPECIAL)
    elif wanted:
        yield entry.path, None
    else:
        passed.add(ending if ending in LOOKS_LIKE else kinds_of_passed.OTHER)


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return path


def finds(pattern: str) -> bool:
    """Whether a glob matches anything."""
    fixed, rest = _literal(pattern)
    found = glob.iglob(os.path.join(glob.escape(fixed), rest), recursive=True)
    return next(found, None) is not None


def matches(pattern: str, search: Search, passed: PassedOver) -> Iterator[Found] | None:
    """What a glob finds, sorted; None where it finds nothing.

    As much of the pattern as names folders that exist is taken literally, brackets and all. Folders
    that match are walked, unless ``**`` has gone into them already. A file whose ending the pattern
    leaves open is taken where it is a picture or a shard.
    """
    fixed, rest = _literal(pattern)
    found = sorted(glob.glob(os.path.join(glob.escape(fixed), rest), recursive=True))
    if not found:
        return None
    return _matched(found, fixed, rest, search, passed)


def _matched(
    found: list[str], fixed: str, rest: str, search: Search, passed: PassedOver
) -> Iterator[Found]:
    wanted = os.path.splitext(os.path.basename(rest))[1]
    named = len(wanted) > 1 and not set("*?[") & set(wanted)
    rules = Patterns(search.exclude)
    for path in found:
        relative = os.path.relpath(path, fixed or ".").replace(os.sep, "/")
        is_folder = os.path.isdir(path)
        if is_folder and "**" in rest:
            continue
        parts = relative.split("/")
        above = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
        if rules.verdict(relative, is_folder) or any(rules.verdict(up, True) for up in above):
            passed.add(kinds_of_passed.EXCLUDED, _files_below(path) if is_folder else 1)
        elif not search.hidden and any(part.lower() in _REFUSE for part in parts):
            passed.add(kinds_of_passed.REFUSE, _files_below(path) if is_folder else 1)
        elif is_folder:
            yield from walk(path, search, passed)
        else:
            ending = os.path.splitext(path)[1].lower()
            if named or ending in SUFFIXES or is_shard(path):
                yield path, None
            else:
                passed.add(ending if ending in LOOKS_LIKE else kinds_of_passed.OTHER)


def _literal(pattern: str) -> tuple[str, str]:
    """The longest head of a pattern that is a folder as it stands, and the rest."""
    parts = pattern.split("/")
    for count in range(len(parts) - 1, 0, -1):
        head = "/".join(parts[:count]) or "/"
        if os.path.isdir(head):
            return head, "/".join(parts[count:])
    return "", pattern
