"""``pvp-fast export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder, as train writes it.")],
    path: Annotated[Path, typer.Argument(help="File to write, .pt2 or .onnx.")],
) -> None:
    """Image tower and tagging head as one graph: normalised pixels in, probabilities out.

    Labels, thresholds and the preprocessing are inside, as JSON under the key pvp_fast.

    Examples:

      pvp-fast export runs/coco/artifact tagger.onnx

      pvp-fast export runs/coco/artifact tagger.pt2
    """
    from pvp_fast.tagging.export import export as write
    from pvp_fast.tagging.tagger import Tagger

    write(Tagger.load(artifact), path)
    typer.echo(str(path))
