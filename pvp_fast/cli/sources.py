"""Which images a command reads: the same arguments and options, and the same last line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from pvp_fast.errors import InputError

if TYPE_CHECKING:
    from pvp_fast.loaders.passed import PassedOver
    from pvp_fast.loaders.samples import Source

IMAGES = "Image files, folders, quoted globs, lists (.txt, .lst), .tar shards, or - for stdin."
PANEL = "Which images"
Hidden = Annotated[
    bool,
    typer.Option(
        "--hidden",
        help="Also names that start with a dot, and thumbnail and recycle folders.",
        rich_help_panel=PANEL,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        help="Leave out what fits, as in a .gitignore; repeatable. So do .pvpignore files.",
        rich_help_panel=PANEL,
    ),
]
Follow = Annotated[
    bool,
    typer.Option("--follow", help="Also enter links to folders.", rich_help_panel=PANEL),
]
Shard = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        help="Only the I-th of N parts, for job arrays: 1/8 to 8/8.",
        rich_help_panel=PANEL,
    ),
]


def named_source(
    names: list[str],
    hidden: bool = False,
    exclude: list[str] | None = None,
    follow: bool = False,
    shard: str | None = None,
    endings: frozenset[str] = frozenset(),
) -> Source:
    """The images that a command line names, and in folders also files of ``endings``.

    Raises:
        InputError: none of the names leads anywhere, or ``shard`` is no I/N.
    """
    from pvp_fast.loaders import Search, open_source

    search = Search(hidden, tuple(exclude or ()), follow, endings)
    return open_source(names, search, part_of(shard))


def part_of(shard: str | None) -> tuple[int, int] | None:
    """(i, n) of ``--shard I/N``.

    Raises:
        InputError: it is of another form.
    """
    if shard is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if found is None:
        raise InputError(f"shard: {shard!r} is no part; give I/N, such as 1/8")
    return int(found.group(1)), int(found.group(2))


def summary_line(
    done: int,
    word: str,
    *,
    before: int = 0,
    failed: int = 0,
    failed_before: int = 0,
    passed: PassedOver | str = "",
    where: str = "above",
) -> str:
    """What became of everything that was seen, in one sentence.

    Args:
        done: images that were, say, "tagged" (``word``). before: by earlier runs.
        failed: that could not be. failed_before: found damaged by earlier runs, and unchanged.
        passed: files that were seen and left out.
        where: each failure is named.
    """
    parts = [f"{done} image{'s' * (done != 1)} {word}"]
    if before:
        parts.append(f"{before} had been before")
    if failed:
        parts.append(f"{failed} failed, each named {where}")
    if failed_before:
        parts.append(
            f"{failed_before} found damaged before, unchanged (--retry-failed tries them again)"
        )
    if passed:
        parts.append(f"passed over: {passed}")
    return "; ".join(parts)
