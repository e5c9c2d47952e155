"""Patterns that leave files out, as in a .gitignore: of ``--exclude`` and ``.pvpignore`` files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

IGNORE_FILE = ".pvpignore"


class Patterns:
    """Rules of one folder; the last that fits decides.

    A pattern without a slash fits a name at any depth, one with a slash a path from the folder;
    ``*`` and ``?`` stop at slashes, ``**`` does not; a slash at the end asks for a folder; ``!`` in
    front takes back.

    Args:
        lines: one pattern each; empty ones and those that start with ``#`` are left out.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self._rules = [_rule(line.strip()) for line in lines if line.strip()[:1] not in ("", "#")]

    def verdict(self, path: str, is_folder: bool) -> bool | None:
        """Whether a path from the folder, with ``/``, is left out; None where no rule fits."""
        found = None
        for leaves_out, folders_only, pattern in self._rules:
            if (is_folder or not folders_only) and pattern.fullmatch(path):
                found = leaves_out
        return found

    @classmethod
    def of_folder(cls, folder: str) -> Patterns | None:
        """Those in a folder's ignore file, where there is one that can be read."""
        try:
            with open(
                os.path.join(folder, IGNORE_FILE), encoding="utf-8", errors="surrogateescape"
            ) as stream:
                return cls(stream)
        except OSError:
            return None


def _rule(line: str) -> tuple[bool, bool, re.Pattern[str]]:
    leaves_out = not line.startswith("!")
    line = line.removeprefix("!")
    folders_only = line.endswith("/")
    line = line.rstrip("/")
    anywhere = "" if "/" in line else "(?:.*/)?"
    return leaves_out, folders_only, re.compile(anywhere + _regex(line.removeprefix("/")), re.S)


def _regex(glob: str) -> str:
    found, at = "", 0
    while at < len(glob):
        if glob.startswith("**/", at):
            found, at = found + "(?:.*/)?", at + 3
        elif glob.startswith("**", at):
            found, at = found + ".*", at + 2
        elif glob[at] in "*?":
            found, at = found + ("[^/]*" if glob[at] == "*" else "[^/]"), at + 1
        elif glob[at] == "[" and "]" in glob[at + 2 :]:
            end = glob.index("]", at + 2)
            inside = glob[at + 1 : end].replace("\\", r"\\")
            if inside[0] in "!^":
                inside = "^" + inside[1:]
            found, at = found + f"[{inside}]", end + 1
        else:
            found, at = found + re.escape(glob[at]), at + 1
    return found
