"""``pvp-fast adapt``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from pvp_fast.cli.common import (
    MOST_UNLABELLED,
    Dataset,
    Split,
    backbone_of,
    drawn,
    progress_console,
    tell,
)
from pvp_fast.cli.pictures import Background, MaxMegapixels, Upright, picture_settings
from pvp_fast.cli.sources import summary_line


def adapt(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder to start from.")],
    images: Annotated[Path, typer.Option(help="Labelled images, all labels or some.")],
    out: Annotated[Path, typer.Option(help="Folder for the new artifact.")],
    dataset: Dataset = "folder",
    unlabelled: Annotated[
        list[str] | None,
        typer.Option(help="More such images, without labels: a folder, as tag takes it."),
    ] = None,
    most: Annotated[
        int, typer.Option(min=1, help="Of more --unlabelled images, this many drawn at random.")
    ] = MOST_UNLABELLED,
    split: Split = None,
    views: Annotated[
        int, typer.Option(min=0, help="Random crops and mirror images of each, learned from too.")
    ] = 3,
    seed: Annotated[int, typer.Option(help="Of the views and the folds.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    upright: Upright = None,
    background: Background = None,
    max_megapixels: MaxMegapixels = None,
) -> None:
    """Go on learning from labelled images, a few a category or more.

    What the text taught stays in the original and the text bank; the images add what the
    categories look like. How much text weighs beside them is what ranks left-out images best; where
    nothing does, only the text stays. Images without labels take part with what the fit itself sees
    in them. Thresholds then are those of the best F1 on left-out images: calibrate sets others.

    Examples:

      pvp-fast adapt runs/coco/artifact --images labelled/ --out runs/adapted

      pvp-fast adapt runs/coco/artifact --images labelled/ --unlabelled photos/ --out runs/adapted

      pvp-fast adapt runs/voc/artifact --images VOC2007 --dataset voc --split train --out runs/a
    """
    from pvp_fast.artifact import Artifact
    from pvp_fast.evaluation import read_dataset
    from pvp_fast.evaluation.adapt import adapt as learn
    from pvp_fast.loaders.sources import find_images
    from pvp_fast.pictures.settings import pictures_of
    from pvp_fast.training.few import FewConfig

    config = FewConfig(seed=seed)
    old = Artifact.load(artifact)
    evalset = read_dataset(dataset, images, split)
    pictures = picture_settings(upright, background, max_megapixels, pictures_of(old.config))
    more, _ = drawn(find_images(unlabelled) if unlabelled else (), most, seed)
    with progress_console().status("encoding and learning from images"):
        backbone = backbone_of(old, device)
        found = learn(
            backbone,
            old,
            evalset,
            unlabelled=more,
            config=config,
            views=views,
            pictures=pictures,
        )
    new = found.artifact
    settings = {**new.config, "pictures": pictures.to_dict()}
    dataclasses.replace(new, config=settings).save(out)
    result = found.adapted
    what = (
        f"{result.after:.1f} after"
        if result.text_weight is not None
        else "no better with them; the artifact is as it was"
    )
    beside = f", {found.unlabelled} without labels" if more else ""
    typer.echo(f"{found.images} images{beside}; mAP on left-out ones {result.before:.1f}, {what}")
    for note in evalset.notes:
        print(note, file=sys.stderr)
    for path, reason in found.failures:
        tell(str(path), reason)
    line = summary_line(found.images + found.unlabelled, "looked at", failed=len(found.failures))
    progress_console().print(line, soft_wrap=True, markup=False)
    typer.echo(str(out))
    if found.failures:
        raise typer.Exit(3)
