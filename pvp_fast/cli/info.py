"""``pvp-fast info``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def info(
    artifact: Annotated[Path | None, typer.Argument(help="Show this artifact instead.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Show versions, devices and backends, and why one is not available; or an artifact.

    Examples:

      pvp-fast info

      pvp-fast info runs/coco/artifact
    """
    from pvp_fast.info import describe_artifact, environment

    facts = environment() if artifact is None else describe_artifact(artifact)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        typer.echo(f"{name:<{width}}  {value}")
