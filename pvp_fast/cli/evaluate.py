"""``pvp-fast evaluate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pvp_fast.cli.common import backbone_of, progress_console, tell
from pvp_fast.cli.pictures import Background, MaxMegapixels, Upright, picture_settings
from pvp_fast.cli.sources import summary_line


def evaluate(
    artifacts: Annotated[list[Path], typer.Argument(help="Artifact folders (one per seed).")],
    dataset: Annotated[str, typer.Option(help="voc, coco, nuswide or folder (labels.json).")],
    path: Annotated[Path, typer.Option(help="Where the dataset is.")],
    split: Annotated[
        str | None, typer.Option(help="Such as test (voc), val2014 (coco), Test (nuswide).")
    ] = None,
    difficult: Annotated[
        str, typer.Option(help="VOC's difficult objects: ignore, negative or positive.")
    ] = "ignore",
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Also write all numbers here.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    upright: Upright = None,
    background: Background = None,
    max_megapixels: MaxMegapixels = None,
) -> None:
    """Print the ladder: zero-shot, text prompts, + transfer, + dual adapter, + local if trained.

    With several artifacts (seeds) each number is a mean ± standard deviation. Unreadable images
    are listed on stderr and left out; the exit code is then 3.

    Examples:

      pvp-fast evaluate runs/pocket/artifact --dataset folder --path photos/

      pvp-fast evaluate runs/s0/artifact runs/s1/artifact --dataset voc --path VOCdevkit/VOC2007
    """
    from pvp_fast.artifact import Artifact
    from pvp_fast.evaluation import encode_set, ladder, read_dataset
    from pvp_fast.files import is_stdout, json_text, open_output
    from pvp_fast.pictures.settings import pictures_of

    loaded = [Artifact.load(folder) for folder in artifacts]
    evalset = read_dataset(dataset, path, split)
    backbone = backbone_of(loaded[0], device)
    for artifact in loaded:
        artifact.check_backbone(backbone.fingerprint)
    with progress_console().status("encoding images") as status:
        features = encode_set(
            backbone,
            evalset,
            artifacts=loaded,
            pictures=picture_settings(
                upright, background, max_megapixels, pictures_of(loaded[0].config)
            ),
            progress=lambda n, of: status.update(f"encoding images {n}/{of}"),
        )
    result = ladder(loaded, features, difficult=difficult)
    aside = is_stdout(json_out)
    typer.echo(result.table(), err=aside)
    for note in evalset.notes:
        print(note, file=sys.stderr)
    if result.unmatched:
        print(f"not in the vocabulary: {', '.join(result.unmatched)}", file=sys.stderr)
    typer.echo(f"difficult={difficult}, {len(loaded)} artifact(s)", err=aside)
    for image, reason in features.failures:
        tell(str(image), reason)
    line = summary_line(len(features.z), "evaluated", failed=len(features.failures))
    progress_console().print(line, soft_wrap=True, markup=False)
    if json_out is not None:
        with open_output(json_out, "w") as stream:
            stream.write(json_text(result.to_dict(), indent=2))
    if features.failures:
        raise typer.Exit(3)
