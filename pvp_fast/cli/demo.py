"""``pvp-fast demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the runs and the page.")] = Path(
        "pvp-fast-demo"
    ),
    seeds: Annotated[
        int, typer.Option(min=1, help="Train this many times; report the spread.")
    ] = 1,
    sentences: Annotated[int, typer.Option(min=1, help="Grammar sentences to train on.")] = 6000,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of every stage (default: the demo preset).")
    ] = None,
) -> None:
    """Learn 70 categories from sentences, tag pictures never seen, write a page about it.

    Uses the pocket model that ships with the package: no downloads, two cores, under three
    minutes. A run that was cut off goes on where it stopped.

    Example:  [bold]pvp-fast demo --out my-demo[/]
    """
    from pvp_fast.demo.run import run_demo

    page = run_demo(out, seeds=seeds, sentences=sentences, steps=steps)
    typer.echo(str(page))
