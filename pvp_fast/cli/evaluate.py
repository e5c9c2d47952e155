"""``pvp-fast evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pvp_fast.cli.common import pick_device
from pvp_fast.errors import InputError

READERS = ("voc", "coco", "nuswide", "folder")


def evaluate(
    artifacts: Annotated[list[Path], typer.Argument(help="Artifact folders (one per seed).")],
    dataset: Annotated[str, typer.Option(help="voc, coco, nuswide or folder (labels.json).")],
    path: Annotated[Path, typer.Option(help="Where the dataset is.")],
    split: Annotated[str | None, typer.Option(help="VOC image set, such as test.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="COCO and NUS-WIDE: the folder of images.")
    ] = None,
    difficult: Annotated[
        str, typer.Option(help="VOC's difficult objects: ignore, negative or positive.")
    ] = "ignore",
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Also write all numbers here.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
) -> None:
    """Print the ladder: zero-shot, text prompts, + transfer, + dual adapter (mAP, CF1, OF1).

    With several artifacts (seeds) each number is a mean ± standard deviation.

    Examples:

      pvp-fast evaluate runs/pocket/artifact --dataset folder --path photos/

      pvp-fast evaluate runs/s0/artifact runs/s1/artifact --dataset voc --path VOCdevkit/VOC2007
    """
    from pvp_fast.artifact import Artifact
    from pvp_fast.demo import backbone_for
    from pvp_fast.evaluation import ladder
    from pvp_fast.report.ladder import rows_of, spread, table_text

    if dataset not in READERS:
        raise InputError(f"--dataset {dataset!r}: use one of {', '.join(READERS)}")
    loaded = [Artifact.load(folder) for folder in artifacts]
    evalset = _read(dataset, path, split, images)
    backbone = backbone_for(loaded[0], pick_device(device))
    ladders = [ladder(backbone, artifact, evalset, difficult=difficult) for artifact in loaded]
    rows = spread([rows_of(item) for item in ladders])
    typer.echo(table_text(rows))
    typer.echo(f"difficult={difficult}, {len(loaded)} artifact(s)")
    if json_out is not None:
        from pvp_fast.files import atomic_write

        with atomic_write(json_out, "w") as stream:
            json.dump(
                {"rows": rows, "runs": [item.to_dict() for item in ladders]}, stream, indent=2
            )


def _read(dataset: str, path: Path, split: str | None, images: Path | None) -> Any:
    import inspect

    from pvp_fast import evaluation

    reader = getattr(evaluation, f"read_{dataset}")
    given = {"split": split, "images": images}
    known = inspect.signature(reader).parameters
    options = {name: value for name, value in given.items() if value is not None}
    for name in options:
        if name not in known:
            raise InputError(f"--{name} does not apply to --dataset {dataset}")
    return reader(path, **options)
