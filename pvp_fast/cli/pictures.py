"""How pictures are opened: the same options in every command that opens some."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pvp_fast.pictures.settings import PictureSettings

PANEL = "How pictures are opened"
Upright = Annotated[
    bool | None,
    typer.Option(
        "--upright/--no-upright",
        help="Turn photos as their EXIF asks (default); no: as stored, as open_clip does.",
        rich_help_panel=PANEL,
    ),
]
Background = Annotated[
    str | None,
    typer.Option(
        help="Colour under transparent pixels (default white); none: drop the transparency.",
        rich_help_panel=PANEL,
    ),
]
MaxMegapixels = Annotated[
    float | None,
    typer.Option(
        help="Larger pictures are refused, larger JPEGs decoded at a fraction (default 100).",
        rich_help_panel=PANEL,
    ),
]


def picture_settings(
    upright: bool | None,
    background: str | None,
    max_megapixels: float | None,
    base: PictureSettings | None = None,
) -> PictureSettings:
    """``base`` (an artifact's settings, say) with what was given on the command line.

    Raises:
        InputError: a value that cannot be used.
    """
    from pvp_fast.pictures.settings import PictureSettings

    given: dict[str, Any] = {"upright": upright, "max_megapixels": max_megapixels}
    changes = {name: value for name, value in given.items() if value is not None}
    if background is not None:
        changes["background"] = None if background == "none" else background
    return replace(base or PictureSettings(), **changes)
