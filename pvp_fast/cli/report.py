"""``pvp-fast report``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pvp_fast.cli.common import progress_console, tell, warn_of_photos
from pvp_fast.cli.pictures import Background, MaxMegapixels, Upright, picture_settings
from pvp_fast.cli.sources import Exclude, Follow, Hidden, Shard, named_source, summary_line
from pvp_fast.cli.vocabulary import NOTHING, Chosen, NameOptions, takes_names
from pvp_fast.errors import InputError

LEAST = 0.02  # less probable tags would fill the page and say nothing


@takes_names
def report(
    source: Annotated[Path, typer.Argument(help="Tags (JSONL of tag), or an artifact folder.")],
    root: Annotated[
        Path | None, typer.Argument(help="Folder of the images; the only one with --vocabulary.")
    ] = None,
    out: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("report.html"),
    labels: Annotated[
        Path | None, typer.Option(help="Labelled set of these images: shows right and wrong.")
    ] = None,
    dataset: Annotated[
        str, typer.Option(help="What --labels is: folder (labels.json), voc, coco or nuswide.")
    ] = "folder",
    split: Annotated[str | None, typer.Option(help="Split of --labels, as evaluate's.")] = None,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Tagged images",
    size: Annotated[int, typer.Option(help="Longer side of the thumbnails, in pixels.")] = 220,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    given: NameOptions = NOTHING,
    hidden: Hidden = False,
    exclude: Exclude = None,
    follow: Follow = False,
    shard: Shard = None,
    upright: Upright = None,
    background: Background = None,
    max_megapixels: MaxMegapixels = None,
) -> None:
    """Write a gallery of tagged images as one HTML file: search, threshold, histograms, failures.

    An artifact tags the folder first and keeps every tag above 2 %, so that the slider can go
    below the thresholds; a tags file has what was written. About 10 kB an image.

    Examples:

      pvp-fast report tags.jsonl photos/ -o report.html

      pvp-fast report --vocabulary tags.txt photos/

      pvp-fast report runs/coco/artifact photos/ --labels photos/ --title 'Holiday'
    """
    from pvp_fast.evaluation import read_dataset
    from pvp_fast.files import is_stdout, open_output
    from pvp_fast.loaders.sources import passed_over
    from pvp_fast.report.gallery import (
        Entry,
        build_gallery,
        read_tags,
        with_labels,
        with_thumbnails,
    )

    if (root is None) == (given.vocabulary is None):
        raise InputError("give tags or an artifact and a folder, or --vocabulary FILE and a folder")
    artifact = source if given.vocabulary is None and source.is_dir() else None
    root = root or source
    if not root.is_dir():
        raise InputError(f"root: {root} is no folder; give the folder of the images")
    evalset = None if labels is None else read_dataset(dataset, labels, split)
    threshold = 0.0
    passed = ""
    names: tuple[str, ...] = ()
    console = progress_console()
    pictures = picture_settings(upright, background, max_megapixels)
    walked = bool(artifact or given.vocabulary)  # images found in the folder, not named by a file
    if walked:
        tagger = Chosen(artifact, given).tagger(device)
        pictures = picture_settings(upright, background, max_megapixels, tagger.pictures)
        tagger.pictures = pictures
        names = tagger.artifact.vocabulary.names
        threshold = float(tagger.artifact.head.thresholds.median())
        entries = []
        images = named_source([str(root)], hidden, exclude, follow, shard)
        warn_of_photos(tagger.backbone, images)
        with console.status("tagging"):
            for found in tagger.tag(images, top_k=None, threshold=LEAST, prefetch=2):
                name = os.path.relpath(found.image, root)
                tags = tuple((t.name, t.score) for t in found.tags)
                entries.append(Entry(name, tags, found.error))
        passed = str(passed_over(images))
    elif hidden or exclude or follow or shard:
        raise InputError(
            f"--hidden, --exclude, --follow, --shard: {source} says which images; give an artifact "
            "to choose among those of a folder"
        )
    else:
        given.refuse("not with tags that are there")
        entries = read_tags(source)
    if evalset is not None:
        entries = with_labels(entries, root, evalset, links=walked)
    with console.status("making thumbnails"):
        entries = with_thumbnails(entries, root, size=size, pictures=pictures, links=walked)
    page = build_gallery(entries, title=title, threshold=threshold, names=names, passed=passed)
    with open_output(out, "w") as stream:
        stream.write(page)
    bad = [entry for entry in entries if entry.error is not None]
    for entry in bad:
        tell(entry.name, str(entry.error))
    line = summary_line(len(entries) - len(bad), "shown", failed=len(bad), passed=passed)
    console.print(line, soft_wrap=True, markup=False)
    if not is_stdout(out):
        typer.echo(str(out))
    if bad:
        raise typer.Exit(3)
