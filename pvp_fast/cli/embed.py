"""``pvp-fast embed``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pvp_fast.cli.common import (
    MODEL_HELP,
    image_progress,
    load_backbone,
    progress_console,
    tell,
    warn_of_photos,
)
from pvp_fast.cli.pictures import Background, MaxMegapixels, Upright, picture_settings
from pvp_fast.cli.sources import (
    IMAGES,
    Exclude,
    Follow,
    Hidden,
    Shard,
    named_source,
    summary_line,
)


def embed(
    images: Annotated[list[str], typer.Argument(help=IMAGES)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the embeddings.")],
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "pocket",
    pretrained: Annotated[
        str | None, typer.Option(help="open_clip tag (laion2b_s34b_b79k) or checkpoint path.")
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            help="For a checkpoint file: the tag whose pictures and activation it shares."
        ),
    ] = None,
    regions: Annotated[
        bool, typer.Option("--regions", help="Also region features, for a local branch.")
    ] = False,
    tile: Annotated[
        float | None,
        typer.Option(help="Side of the regions, a share of the image's (0.75); 0: patches."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 64,
    shard_rows: Annotated[int, typer.Option(min=1, help="Images of a file.")] = 16_384,
    hidden: Hidden = False,
    exclude: Exclude = None,
    follow: Follow = False,
    shard: Shard = None,
    redo: Annotated[
        bool,
        typer.Option("--redo", help="Encode again what has changed, drop what is gone."),
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try damaged images again, too.")
    ] = False,
    upright: Upright = None,
    background: Background = None,
    max_megapixels: MaxMegapixels = None,
) -> None:
    """Encode images once; tag them later with any vocabulary by ``tag --embeddings``.

    A run that was stopped goes on where it was, and one whose source has grown encodes what is
    new; a source that has changed is an error. Images that cannot be read are listed on stderr and
    tried again by the next run, and the exit code is then 3.

    Examples:

      pvp-fast embed photos/ --out embeddings/ --model ViT-B-32 --pretrained laion2b_s34b_b79k

      pvp-fast embed 'shards/train-{000..099}.tar' --out embeddings/
    """
    from pvp_fast.loaders.sources import passed_over
    from pvp_fast.modules.tiles import TILE
    from pvp_fast.tagging.embeddings import embed_images

    source = named_source(images, hidden, exclude, follow, shard)
    backbone = load_backbone(model, pretrained, device, like)
    warn_of_photos(backbone, source)
    with image_progress(source.count) as advance_to:
        store = embed_images(
            backbone,
            source,
            out,
            regions=regions,
            tile=TILE if tile is None else tile,
            batch_size=batch_size,
            shard_rows=shard_rows,
            progress=advance_to,
            pictures=picture_settings(upright, background, max_megapixels),
            redo=redo,
            retry_failed=retry_failed,
        )
    now = [failure for failure in store.failures if failure.index in store.tried]
    for failure in now:
        tell(failure.key, failure.reason)
    line = summary_line(
        store.made,
        f"embedded in {out}",
        before=len(store) - store.made,
        failed=len(now),
        failed_before=len(store.failures) - len(now),
        passed=passed_over(source),
    )
    progress_console().print(line, soft_wrap=True, markup=False)
    if store.failures:
        raise typer.Exit(3)
